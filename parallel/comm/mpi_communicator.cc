#include "parallel/comm/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/backoff.h"
#include "parallel/comm/host_communicator.h"
#include "parallel/comm/mpi_job.h"

namespace thinwire {
namespace {

// How long a failed call waits for transfers that are under way in the caller's memory.
constexpr absl::Duration kSettleTimeout = absl::Milliseconds(200);

// All groups share one MPI communicator: group `context` has the tags 2 context (collectives) and
// 2 context + 1 (point to point). MPI's own ways to make communicators wait for other ranks without
// a bound; tags need nobody.
class MpiTransport final : public HostTransport {
 public:
  MpiTransport(MpiJob& job, std::vector<int64_t> lineage, std::vector<int> members, int rank,
               int64_t piece_bytes)
      : job_(job), members_(std::move(members)), rank_(rank), piece_bytes_(piece_bytes) {
    failure_.lineage = std::move(lineage);
    job_.Register(&failure_);
  }

  ~MpiTransport() override {
    Backoff backoff(timeout_);
    while (!failure_.failed && !pending_.empty()) {
      const size_t before = pending_.size();
      if (!ReapSends().ok()) break;
      if (pending_.size() < before) backoff.Restart();
      if (backoff.IsCheckDue()) job_.Poll();
      if (!backoff.Wait()) {
        EndGroup(absl::DeadlineExceededError(absl::StrCat("rank ", rank_, " has ", pending_.size(),
                                                          " messages that nobody receives")));
      }
    }
    if (!pending_.empty()) job_.Abandon(std::move(pending_));
    job_.Unregister(&failure_);
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  absl::Status Exchange(Channel channel, absl::Span<const OutgoingMessage> outgoing,
                        absl::Span<const IncomingMessage> incoming) override {
    // Before anything is matched: a peer that failed no longer keeps what it was sending.
    job_.Poll();
    TW_RETURN_IF_ERROR(failure());
    requests_.clear();
    peers_.clear();
    absl::Status status;
    for (const OutgoingMessage& message : outgoing) {
      status.Update(PostSend(channel, message));
    }
    if (status.ok()) status = ReceiveAndWait(Tag(channel), incoming);
    if (status.ok()) return pending_.empty() ? status : ReapSends();
    status = Fail(status);
    Settle();
    return status;
  }

  absl::Status SendBuffered(Channel channel, const OutgoingMessage& message) override {
    job_.Poll();
    TW_RETURN_IF_ERROR(failure());
    absl::Status status = ReapSends();
    for (int64_t begin = 0; status.ok() && begin <= message.bytes; begin += piece_bytes_) {
      const int64_t bytes = std::min(piece_bytes_, message.bytes - begin);
      MpiPendingSend send;
      send.data = std::make_unique_for_overwrite<std::byte[]>(bytes);
      if (bytes > 0) {
        std::memcpy(send.data.get(), static_cast<const std::byte*>(message.data) + begin, bytes);
      }
      const int code = MPI_Isend(send.data.get(), static_cast<int>(bytes), MPI_BYTE,
                                 members_[message.peer], Tag(channel), job_.data(), &send.request);
      if (code != MPI_SUCCESS) {
        status = MpiError(code, "MPI_Isend", job_.rank());
      } else {
        pending_.push_back(std::move(send));
      }
    }
    return status.ok() ? status : Fail(status);
  }

  int64_t NewSplitId() override { return job_.NewContext(); }

  absl::StatusOr<std::unique_ptr<HostTransport>> Split(int64_t id, int /*color*/,
                                                       absl::Span<const int> ranks) override {
    if (id > (job_.max_tag() - 1) / 2) {
      return absl::ResourceExhaustedError(
          absl::StrCat("too many splits: context ", id, " exceeds the tags of ", job_.library()));
    }
    std::vector<int> members;
    for (const int rank : ranks) members.push_back(members_[rank]);
    const auto self = std::find(ranks.begin(), ranks.end(), rank_);
    TW_CHECK(self != ranks.end());
    std::vector<int64_t> lineage = failure_.lineage;
    lineage.push_back(id);
    return std::make_unique<MpiTransport>(job_, std::move(lineage), std::move(members),
                                          static_cast<int>(self - ranks.begin()), piece_bytes_);
  }

  void set_timeout(absl::Duration timeout) override { timeout_ = timeout; }

  void Abort(const absl::Status& why) override {
    const std::string text = absl::StrCat("aborted by rank ", rank_, ": ", why.message());
    job_.Fail(&failure_, absl::UnavailableError(text), text, members_);
  }

  absl::Status PollFailure() override {
    job_.Poll();
    return failure();
  }

  absl::Status failure() const override {
    if (!failure_.failed.load(std::memory_order_acquire)) return absl::OkStatus();
    return job_.Cause(failure_);
  }

 private:
  // How far a message has been received.
  struct Arrival {
    IncomingMessage message;
    int64_t begin = 0;  // of the next piece
    bool matched = false;
  };

  int Tag(Channel channel) const {
    return static_cast<int>(2 * failure_.lineage.back() + static_cast<int>(channel));
  }

  // Ends the communicator on all ranks, and returns its first failure, which may be another one.
  absl::Status Fail(const absl::Status& why) {
    EndGroup(why);
    return failure();
  }

  void EndGroup(const absl::Status& why) {
    job_.Fail(&failure_, why, absl::StrCat("rank ", rank_, " failed: ", why.message()), members_);
  }

  // A message is as many whole pieces as it has and one that is shorter, maybe empty: so its end
  // shows.
  absl::Status PostSend(Channel channel, const OutgoingMessage& message) {
    for (int64_t begin = 0; begin <= message.bytes; begin += piece_bytes_) {
      const int64_t bytes = std::min(piece_bytes_, message.bytes - begin);
      MPI_Request request = MPI_REQUEST_NULL;
      const int code =
          MPI_Isend(static_cast<const std::byte*>(message.data) + begin, static_cast<int>(bytes),
                    MPI_BYTE, members_[message.peer], Tag(channel), job_.data(), &request);
      if (code != MPI_SUCCESS) return MpiError(code, "MPI_Isend", job_.rank());
      requests_.push_back(request);
      peers_.push_back(message.peer);
    }
    return absl::OkStatus();
  }

  absl::Status ReceiveAndWait(int tag, absl::Span<const IncomingMessage> incoming) {
    arrivals_.clear();
    for (const IncomingMessage& message : incoming) arrivals_.push_back({message});
    size_t unmatched = arrivals_.size();
    size_t completed = 0;
    Backoff backoff(timeout_);
    while (unmatched > 0 || completed < requests_.size()) {
      bool progress = false;
      for (Arrival& arrival : arrivals_) {
        while (!arrival.matched) {
          TW_ASSIGN_OR_RETURN(const bool found, MatchPiece(tag, arrival));
          if (!found) break;
          progress = true;
          if (arrival.matched) --unmatched;
        }
      }
      TW_ASSIGN_OR_RETURN(const int newly_completed, TestSome());
      completed += newly_completed;
      if (progress || newly_completed > 0) {
        backoff.Restart();
        continue;
      }
      if (backoff.IsCheckDue()) {
        job_.Poll();
        TW_RETURN_IF_ERROR(failure());
      }
      if (!backoff.Wait()) return TimeoutError();
    }
    return absl::OkStatus();
  }

  // Begins to receive the next piece if it is there. Looking at the size first keeps a message that
  // is too long away from MPI_Recv: Open MPI 4.1 writes such messages past the end of the memory
  // when they are large. It also means that MPI never holds memory of a message that has not come.
  absl::StatusOr<bool> MatchPiece(int tag, Arrival& arrival) {
    const IncomingMessage& message = arrival.message;
    int found = 0;
    MPI_Message handle = MPI_MESSAGE_NULL;
    MPI_Status status;
    int code = MPI_Improbe(members_[message.peer], tag, job_.data(), &found, &handle, &status);
    if (code != MPI_SUCCESS) return MpiError(code, "MPI_Improbe", job_.rank());
    if (!found) return false;

    const int64_t expected = std::min(piece_bytes_, message.bytes - arrival.begin);
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (bytes != expected) {
      return absl::InternalError(absl::StrCat(
          "rank ", rank_, " expected ", message.bytes, " bytes from rank ", message.peer,
          " and received ", arrival.begin + bytes, bytes == piece_bytes_ ? " or more" : ""));
    }
    MPI_Request request = MPI_REQUEST_NULL;
    code = MPI_Imrecv(static_cast<std::byte*>(message.data) + arrival.begin, bytes, MPI_BYTE,
                      &handle, &request);
    if (code != MPI_SUCCESS) return MpiError(code, "MPI_Imrecv", job_.rank());
    requests_.push_back(request);
    peers_.push_back(message.peer);
    arrival.begin += piece_bytes_;
    arrival.matched = arrival.begin > message.bytes;
    return true;
  }

  // The number of requests that completed since the last call.
  absl::StatusOr<int> TestSome() {
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int completed = 0;
    const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &completed,
                                  indices_.data(), statuses_.data());
    if (code == MPI_SUCCESS) return completed == MPI_UNDEFINED ? 0 : completed;
    for (int i = 0; code == MPI_ERR_IN_STATUS && i < completed; ++i) {
      if (statuses_[i].MPI_ERROR == MPI_SUCCESS) continue;
      return Annotate(MpiError(statuses_[i].MPI_ERROR, "MPI_Testsome", job_.rank()),
                      absl::StrCat("transfer with rank ", peers_[indices_[i]]));
    }
    return MpiError(code, "MPI_Testsome", job_.rank());
  }

  absl::Status TimeoutError() const {
    const std::string duration = absl::FormatDuration(timeout_);
    for (const Arrival& arrival : arrivals_) {
      if (arrival.matched) continue;
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", rank_, " received nothing from rank ", arrival.message.peer, " for ", duration));
    }
    size_t i = 0;
    while (i + 1 < requests_.size() && requests_[i] == MPI_REQUEST_NULL) ++i;
    return absl::DeadlineExceededError(absl::StrCat(
        "rank ", rank_, " finished no transfer with rank ", peers_[i], " for ", duration));
  }

  // After a failure: gives transfers that are under way in the caller's memory time to end.
  void Settle() {
    Backoff backoff(kSettleTimeout);
    for (MPI_Request& request : requests_) {
      int done = request == MPI_REQUEST_NULL;
      while (!done && MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done &&
             backoff.Wait()) {
      }
      if (!done) MPI_Request_free(&request);
    }
  }

  absl::Status ReapSends() {
    absl::Status status;
    std::erase_if(pending_, [&](MpiPendingSend& send) {
      int done = 0;
      const int code = MPI_Test(&send.request, &done, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS && status.ok()) status = MpiError(code, "MPI_Isend", job_.rank());
      return done != 0;
    });
    return status;
  }

  MpiJob& job_;
  const std::vector<int> members_;  // ranks of the job
  const int rank_;
  const int64_t piece_bytes_;
  absl::Duration timeout_;
  MpiFailure failure_;
  std::vector<MpiPendingSend> pending_;

  // Of the exchange under way; kept for their memory.
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;  // of the requests
  std::vector<Arrival> arrivals_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
};

}  // namespace

std::unique_ptr<Communicator> CreateMpiCommunicator(MpiJob& job, int64_t piece_bytes) {
  TW_CHECK(piece_bytes > 0 && piece_bytes <= INT32_MAX);
  std::vector<int> members;
  for (int r = 0; r < job.size(); ++r) members.push_back(r);
  return std::make_unique<HostCommunicator>(std::make_unique<MpiTransport>(
      job, std::vector<int64_t>{0}, std::move(members), job.rank(), piece_bytes));
}

}  // namespace thinwire
