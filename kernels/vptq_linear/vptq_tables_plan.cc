// Which books fit in tables, and who adds up what.
#include <algorithm>
#include <cstdint>

#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_tables_block.h"

namespace thinwire {

bool HasVptqTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes) {
  const bool known =
      (index_bits == 8 && (residual_bits == 0 || residual_bits == 8)) ||
      (index_bits == 12 && (residual_bits == 0 || residual_bits == 8 || residual_bits == 12));
  return known && length <= kVptqRow &&
         vptq::TableBytes(index_bits, residual_bits) + vptq::kFewestSumBytes + vptq::kStaticBytes <=
             shared_memory_bytes;
}

int NumVptqThirds(int index_bits, int residual_bits, int64_t shared_memory_bytes) {
  if (index_bits != 12) return 0;
  const int64_t left = shared_memory_bytes - vptq::TableBytes(index_bits, residual_bits) -
                       vptq::kFewestSumBytes - vptq::kStaticBytes;
  // Rows of all banks.
  return static_cast<int>(std::clamp<int64_t>(left / 128 * 8, 0, 4096));
}

void PlanVptqTables(VptqTablesCall& call) {
  const auto round_up = [](int a, int b) { return (a + b - 1) / b; };
  const int warps =
      vptq::WithTiles(call, [](auto tiles) { return vptq::Block<decltype(tiles)::value>::kWarps; });
  call.num_strips = round_up(call.num_units, kVptqStripUnits);
  const int parts = round_up(call.num_strips, kVptqPartStrips);
  call.strips_each = round_up(call.num_strips, parts);
  const int slots = warps / call.strips_each;
  call.parts_at_once = parts <= slots ? parts : 1;
  call.items_at_once = slots / call.parts_at_once;
  call.result.splits = parts / call.parts_at_once;
  call.num_thirds = NumVptqThirds(call.index_bits, call.residual_bits, call.shared_memory_bytes);
  const int table_bytes =
      vptq::TableBytes(call.index_bits, call.residual_bits) + 16 * call.num_thirds;
  call.shared_bytes =
      std::min(call.shared_memory_bytes - vptq::kStaticBytes, table_bytes + vptq::kMostSumBytes);
  call.sum_floats = (call.shared_bytes - table_bytes) / 4;
  call.makes_x = call.result.splits == 1 && call.result.num_tokens == 1 && call.planes == 1 &&
                 call.x_stride * 2 <= call.sum_floats * 4;
}

}  // namespace thinwire
