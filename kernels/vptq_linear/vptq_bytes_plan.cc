// What a block of threads of byte books' kernels takes in, and what it holds in shared memory.
#include <algorithm>
#include <cstdint>

#include "kernels/vptq_linear/vptq_byte_block.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"

namespace thinwire {
namespace {

constexpr int kByteStaticBytes = 256;
constexpr int kMostRoundsHeld = 8;

}  // namespace

bool HasVptqByteTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes) {
  const bool known =
      (index_bits == 8 || index_bits == 12) && (residual_bits == 0 || residual_bits == 8);
  return known && length <= 8 &&
         vptq::ByteTableBytes(index_bits, residual_bits) + vptq::ByteBlock<4>::kRoundBytes +
                 kByteStaticBytes <=
             shared_memory_bytes;
}

void PlanVptqBytes(VptqBytesCall& call) {
  const int rows = call.result.num_tokens * call.rows_of_token;
  const int parts = (call.num_strips + kVptqBytePart - 1) / kVptqBytePart;
  call.rows_at_once = rows == 1 ? 1 : rows <= 8 ? 8 : 16;
  vptq::WithByteTiles(call.rows_at_once, [&](auto tiles) {
    using B = vptq::ByteBlock<decltype(tiles)::value>;
    call.result.splits = parts <= B::kParts ? 1 : parts;
    const int table_bytes = vptq::ByteTableBytes(call.index_bits, call.residual_bits);
    const int left = call.shared_memory_bytes - table_bytes - kByteStaticBytes;
    call.rounds_held = std::clamp(left / B::kRoundBytes, 1, kMostRoundsHeld);
    call.shared_bytes =
        table_bytes + std::max(call.rounds_held * B::kRoundBytes, vptq::kByteXBytes);
  });
  call.makes_x = rows == 1 && call.result.splits == 1;
}

}  // namespace thinwire
