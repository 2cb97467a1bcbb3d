// How Wire measures its calls, and what its messages lie in. Private to this folder.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor_view.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/message.h"
#include "parallel/wire/wire.h"

namespace thinwire {

// Bytes [begin, begin + count) of a view of bytes.
inline TensorView Part(const TensorView& bytes, int64_t begin, int64_t count) {
  return bytes.Rows(begin, count);
}

// The rows of a message, or room for them.
inline TensorView RowsOf(const MessageKey& key, const TensorView& message) {
  return TensorView(message.mutable_raw(), DType::kU8, {key.num_rows, key.row_bytes},
                    message.device());
}

// Measures one call: bytes from the communicator's own counter, time from the clock, which runs for
// the codec first.
class Wire::Recording {
 public:
  // A receiver passes no logical bytes and no call: the sender has counted them.
  Recording(Ledger* ledger, Communicator* comm, Site site, int64_t logical_bytes, int64_t calls = 1)
      : ledger_(ledger),
        comm_(comm),
        site_(site),
        entry_({.logical_bytes = logical_bytes, .calls = calls}),
        sent_before_(comm->bytes_sent()),
        since_(std::chrono::steady_clock::now()) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void InCodec() { Switch(&entry_.codec_ns); }
  void InTransfer() { Switch(&entry_.transfer_ns); }
  void AddMetadata(int64_t bytes) { entry_.metadata_bytes += bytes; }

  // Records the call and passes its status on, with the site's name where it failed.
  absl::Status Done(const absl::Status& status) {
    Switch(&entry_.codec_ns);
    entry_.payload_bytes = comm_->bytes_sent() - sent_before_ - entry_.metadata_bytes;
    ledger_->Record(site_, entry_);
    return Annotate(status, SiteName(site_));
  }

 private:
  void Switch(int64_t* clock) {
    const std::chrono::steady_clock::time_point now = std::chrono::steady_clock::now();
    *running_ += std::chrono::duration_cast<std::chrono::nanoseconds>(now - since_).count();
    since_ = now;
    running_ = clock;
  }

  Ledger* ledger_;
  Communicator* comm_;
  Site site_;
  LedgerEntry entry_;
  int64_t sent_before_;
  std::chrono::steady_clock::time_point since_;
  int64_t* running_ = &entry_.codec_ns;
};

}  // namespace thinwire
