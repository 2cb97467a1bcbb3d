// What encoded rows travel in: the rows' bytes, then two bytes that tell whether they are whole and
// mean what the receiver takes them for.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/tensor_view.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/row_codec.h"

namespace thinwire {

// What sender and receiver agree on without saying so: none of it travels.
struct MessageKey {
  Site site = Site::kControl;
  RowCodec codec;
  int sender = 0;  // rank in the communicator that carries the message
  int64_t num_rows = 0;
  int64_t row_bytes = 0;
  bool on_gpu = false;

  int64_t rows_bytes() const { return num_rows * row_bytes; }
  // Rows and check; on a GPU, where there is no check, rows up to whole kPadding: links and kernels
  // are slow to move what does not lie in whole vectors.
  int64_t message_bytes() const {
    return on_gpu ? (rows_bytes() + kPadding - 1) / kPadding * kPadding
                  : rows_bytes() + kCheckBytes;
  }
  // Of message_bytes(), those that are not rows.
  int64_t extra_bytes() const { return message_bytes() - rows_bytes(); }

  // The low 16 bits of XXH3 (xxHash 0.8) of the rows' bytes, seeded with the key and with
  // kWireVersion; little-endian. Damage, another version and another meaning go unseen once in
  // 65536 times; transports' own checks, and the comparison of flags at start, come before.
  static constexpr int64_t kCheckBytes = 2;
  static constexpr int64_t kPadding = 16;
};

// Of every byte layout in this folder and in kernels/group_codes.
inline constexpr int kWireVersion = 1;

// Writes the check behind the rows. message: [message_bytes] uint8. On a GPU there is none: its
// links check what they carry, and a look at the bytes would cost a launch.
void SealMessage(const MessageKey& key, TensorView message);

// DataLoss names sender and sizes when the check does not match; the site is the caller's to name.
absl::Status CheckMessage(const MessageKey& key, ConstTensorView message);

}  // namespace thinwire
