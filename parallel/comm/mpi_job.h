// This process's membership in an MPI job: initialisation, end, and the notices by which ranks tell
// each other that a communicator failed. Private to mpi_*.cc and their tests, as it shows mpi.h.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace thinwire {

// The error of an MPI call on a rank of the job, as Unavailable.
absl::Status MpiError(int code, absl::string_view call, int job_rank);

// Whether one communicator failed, as far as this rank knows. Lives as long as the communicator and
// is known to the job for that time. `lineage`: the contexts of the communicators that it was split
// from, its own last.
struct MpiFailure {
  std::vector<int64_t> lineage;
  std::atomic<bool> failed = false;
  absl::Status cause;  // guarded by the job's lock
};

// A send that MPI has not finished, with the memory it reads.
struct MpiPendingSend {
  MPI_Request request = MPI_REQUEST_NULL;
  std::unique_ptr<std::byte[]> data;
};

// Thread-safe. Must outlive all communicators of the job.
class MpiJob {
 public:
  // Initialises MPI, once per process, with threads that may all call it. Waits for the other ranks
  // of the job, without a bound, as MPI has none.
  static absl::StatusOr<std::unique_ptr<MpiJob>> Join();

  // Waits for the other ranks to come here too, then ends MPI. If any communicator failed on this
  // rank, the wait is bounded by some seconds, after which the process leaves without MPI_Finalize
  // (and mpirun then ends the rest of the job).
  ~MpiJob();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  const std::string& library() const { return library_; }  // "Open MPI 4.1.4"

  // The ranks of the job in order, errors returned; all communicators use it, told apart by tags.
  MPI_Comm data() const { return data_; }
  int max_tag() const { return max_tag_; }

  // A number > 0 that no rank of the job has got before.
  int64_t NewContext() { return (next_context_++) * size_ + rank_; }

  // Makes `failure` known to notices, and fails it at once if one has already come.
  void Register(MpiFailure* failure);
  void Unregister(MpiFailure* failure);

  // Fails `failure` and what was split from it with `why`, unless it failed before, and sends
  // `text` to the ranks `members` of the job. Does not wait.
  void Fail(MpiFailure* failure, const absl::Status& why, absl::string_view text,
            absl::Span<const int> members);

  absl::Status Cause(const MpiFailure& failure) const;

  // Takes in notices that have arrived.
  void Poll();

  // Keeps sends that nobody will receive until MPI ends.
  void Abandon(std::vector<MpiPendingSend> sends);

 private:
  // Fixed-size and small, so that MPI sends it without the receiver's help.
  struct Notice {
    int64_t context;
    char text[1016];
  };

  MpiJob() = default;
  absl::Status Initialise();
  absl::Status PostNoticeReceive();
  void MarkFailed(int64_t context, const absl::Status& why);  // with lock_ held
  bool WaitForOthers();

  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int max_tag_ = 0;
  std::string library_;
  MPI_Comm data_ = MPI_COMM_NULL;
  MPI_Comm control_ = MPI_COMM_NULL;
  std::atomic<int64_t> next_context_ = 1;
  std::atomic<bool> any_failed_ = false;

  std::mutex notice_lock_;  // guards the two below; taken before lock_
  Notice notice_ = {};
  MPI_Request notice_request_ = MPI_REQUEST_NULL;

  mutable std::mutex lock_;  // guards what follows, and MpiFailure::cause
  std::vector<MpiFailure*> known_;
  std::map<int64_t, absl::Status> failed_contexts_;
  std::vector<MpiPendingSend> unfinished_;
};

}  // namespace thinwire
