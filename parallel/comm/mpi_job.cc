#include "parallel/comm/mpi_job.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/backoff.h"

#if defined(__SANITIZE_ADDRESS__)
#include <dlfcn.h>
#include <sanitizer/lsan_interface.h>
#endif

namespace thinwire {
namespace {

#if defined(__SANITIZE_ADDRESS__)
// What MPI allocates to start and to end is not ours to free. Suppressions by name cannot say so,
// as Open MPI has unloaded most of its modules when leaks are looked for.
using IgnoreLeaks = __lsan::ScopedDisabler;

// The thread of Open MPI's PMIx allocates at any time: it stays loaded, so that a suppression can
// name it.
void KeepNamesOfLeaks() { dlopen("libpmix.so.2", RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE); }
#else
struct IgnoreLeaks {};
void KeepNamesOfLeaks() {}
#endif

// How long ranks that saw a failure wait for the others before they leave on their own.
constexpr absl::Duration kLeaveTimeout = absl::Seconds(10);

// Whether processes may read each other's memory, which containers often forbid. Open MPI finds out
// at the first large message, and prints errors from then on.
bool CanReadOtherProcesses() {
  int scope = 0;
  if (std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope && scope != 0) return false;
  char from = 1;
  char to = 0;
  const iovec local = {&to, 1};
  const iovec remote = {&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

// Keeps Open MPI from printing about hardware that is not there. What the user has set wins; other
// implementations of MPI ignore these.
void SetQuietDefaults() {
  setenv("OMPI_MCA_btl_base_warn_component_unused", "0", 0);
  setenv("OMPI_MCA_opal_warn_on_missing_libcuda", "0", 0);
  setenv("OMPI_MCA_btl_openib_warn_no_device_params_found", "0", 0);
  setenv("OMPI_MCA_mpi_show_handle_leaks", "0", 0);
  if (!CanReadOtherProcesses()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

// "Open MPI v4.1.4, package: ..." -> "Open MPI 4.1.4".
std::string LibraryName() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(version, &length);
  const std::vector<std::string> words =
      absl::StrSplit(std::vector<std::string>(absl::StrSplit(version, absl::ByAnyChar(",\n")))[0],
                     absl::ByAnyChar(" \t"), absl::SkipEmpty());
  std::string name;
  for (absl::string_view word : words) {
    if (word.size() > 1 && word[0] == 'v' && word[1] >= '0' && word[1] <= '9')
      word.remove_prefix(1);
    absl::StrAppend(&name, name.empty() ? "" : " ", word);
  }
  return name;
}

}  // namespace

absl::Status MpiError(int code, absl::string_view call, int job_rank) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat(call, " on rank ", job_rank, " of the job: ", text));
}

absl::StatusOr<std::unique_ptr<MpiJob>> MpiJob::Join() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized) {
    return absl::FailedPreconditionError("this process has initialised MPI already");
  }
  [[maybe_unused]] const IgnoreLeaks ignore;
  SetQuietDefaults();
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  if (code != MPI_SUCCESS) return MpiError(code, "MPI_Init_thread", -1);
  KeepNamesOfLeaks();
  // From here on the destructor ends MPI.
  std::unique_ptr<MpiJob> job(new MpiJob());
  TW_RETURN_IF_ERROR(job->Initialise());
  if (provided < MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError(
        absl::StrCat(job->library(), " does not support MPI_THREAD_MULTIPLE, which is needed"));
  }
  return job;
}

absl::Status MpiJob::Initialise() {
  library_ = LibraryName();
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  for (MPI_Comm* comm : {&data_, &control_}) {
    const int code = MPI_Comm_dup(MPI_COMM_WORLD, comm);
    if (code != MPI_SUCCESS) return MpiError(code, "MPI_Comm_dup", rank_);
    MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
  }
  MPI_Comm host = MPI_COMM_NULL;
  const int code =
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
  if (code != MPI_SUCCESS) return MpiError(code, "MPI_Comm_split_type", rank_);
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_free(&host);

  // MPI connects two ranks when the first message passes between them. Here that delays no request,
  // and a network that does not work shows at once.
  std::vector<int> ranks(size_, rank_);
  std::vector<int> received(size_);
  const int connected =
      MPI_Alltoall(ranks.data(), 1, MPI_INT, received.data(), 1, MPI_INT, control_);
  if (connected != MPI_SUCCESS) return MpiError(connected, "MPI_Alltoall", rank_);

  void* attribute = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &attribute, &found);
  max_tag_ = found ? *static_cast<int*>(attribute) : 32767;
  return PostNoticeReceive();
}

MpiJob::~MpiJob() {
  TW_CHECK(known_.empty());
  [[maybe_unused]] const IgnoreLeaks ignore;
  if (!WaitForOthers()) {
    std::fprintf(stderr,
                 "thinwire: rank %d of the job waited in vain for the others to end, and leaves "
                 "without MPI_Finalize\n",
                 rank_);
    // MPI may still read these.
    for (MpiPendingSend& send : unfinished_) (void)send.data.release();
    return;
  }
  if (notice_request_ != MPI_REQUEST_NULL) {
    MPI_Cancel(&notice_request_);
    MPI_Wait(&notice_request_, MPI_STATUS_IGNORE);
  }
  MPI_Finalize();
}

bool MpiJob::WaitForOthers() {
  MPI_Request request = MPI_REQUEST_NULL;
  if (control_ == MPI_COMM_NULL || MPI_Ibarrier(control_, &request) != MPI_SUCCESS) return true;
  Backoff unbounded((absl::InfiniteDuration()));
  Backoff bounded(kLeaveTimeout);
  for (;;) {
    int done = 0;
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    if (done) return true;
    Poll();
    if (!(any_failed_ ? bounded : unbounded).Wait()) return false;
  }
}

void MpiJob::Register(MpiFailure* failure) {
  const std::lock_guard lock(lock_);
  known_.push_back(failure);
  for (const int64_t context : failure->lineage) {
    const auto it = failed_contexts_.find(context);
    if (it == failed_contexts_.end()) continue;
    failure->cause = it->second;
    failure->failed.store(true, std::memory_order_release);
    return;
  }
}

void MpiJob::Unregister(MpiFailure* failure) {
  const std::lock_guard lock(lock_);
  known_.erase(std::find(known_.begin(), known_.end(), failure));
}

absl::Status MpiJob::Cause(const MpiFailure& failure) const {
  const std::lock_guard lock(lock_);
  return failure.cause;
}

void MpiJob::MarkFailed(int64_t context, const absl::Status& why) {
  if (!failed_contexts_.try_emplace(context, why).second) return;
  any_failed_ = true;
  for (MpiFailure* failure : known_) {
    if (failure->failed.load(std::memory_order_relaxed)) continue;
    const std::vector<int64_t>& lineage = failure->lineage;
    if (std::find(lineage.begin(), lineage.end(), context) == lineage.end()) continue;
    failure->cause = why;
    failure->failed.store(true, std::memory_order_release);
  }
}

void MpiJob::Fail(MpiFailure* failure, const absl::Status& why, absl::string_view text,
                  absl::Span<const int> members) {
  const std::lock_guard lock(lock_);
  if (failure->failed.load(std::memory_order_relaxed)) return;
  const int64_t context = failure->lineage.back();
  failure->cause = why;
  failure->failed.store(true, std::memory_order_release);
  MarkFailed(context, absl::UnavailableError(text));

  Notice notice = {};
  notice.context = context;
  text.copy(notice.text, sizeof(notice.text) - 1);
  for (const int member : members) {
    if (member == rank_) continue;
    MpiPendingSend send;
    send.data = std::make_unique<std::byte[]>(sizeof(notice));
    std::memcpy(send.data.get(), &notice, sizeof(notice));
    // If even this fails, the others find out by their timeouts.
    if (MPI_Isend(send.data.get(), sizeof(notice), MPI_BYTE, member, 0, control_, &send.request) ==
        MPI_SUCCESS) {
      unfinished_.push_back(std::move(send));
    }
  }
}

absl::Status MpiJob::PostNoticeReceive() {
  const int code =
      MPI_Irecv(&notice_, sizeof(notice_), MPI_BYTE, MPI_ANY_SOURCE, 0, control_, &notice_request_);
  return code == MPI_SUCCESS ? absl::OkStatus() : MpiError(code, "MPI_Irecv", rank_);
}

void MpiJob::Poll() {
  const std::unique_lock notice_lock(notice_lock_, std::try_to_lock);
  if (!notice_lock.owns_lock()) return;  // another thread is at it
  while (notice_request_ != MPI_REQUEST_NULL) {
    int arrived = 0;
    if (MPI_Test(&notice_request_, &arrived, MPI_STATUS_IGNORE) != MPI_SUCCESS || !arrived) return;
    {
      const std::lock_guard lock(lock_);
      notice_.text[sizeof(notice_.text) - 1] = '\0';
      MarkFailed(notice_.context, absl::UnavailableError(notice_.text));
    }
    if (!PostNoticeReceive().ok()) return;
  }
}

void MpiJob::Abandon(std::vector<MpiPendingSend> sends) {
  const std::lock_guard lock(lock_);
  for (MpiPendingSend& send : sends) unfinished_.push_back(std::move(send));
}

}  // namespace thinwire
