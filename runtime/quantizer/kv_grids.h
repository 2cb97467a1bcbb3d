// Codes of K and V: grids of channels by error, bits of units by what their errors cost the layer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

struct KvGridArgs {
  const ModelConfig* config = nullptr;
  const ChannelStats* q = nullptr;  // with samples where bits < 8; first tokens left out
  const ChannelStats* k = nullptr;
  const ChannelStats* v = nullptr;
  const DenseLinear* out = nullptr;  // o_proj
  int bits = 4;                      // 8, 4 or 3: average over K and V of every head

  // Below 8 bits: what the layer's o_proj loses, by KV head, when K (V) alone has the codes that
  // are passed. Its ratio to what the formula below says corrects the formula.
  absl::FunctionRef<absl::StatusOr<std::vector<double>>(QuantSite site, const SiteCodes& codes)>
      measure_loss;
};

// Fills the sites k and v of `codes`.
//
// 8 bits: each channel's range. Below, each channel has the grid of least squared error, and units
// of 16 channels get 1 to 8 bits such that every head's K and V together have `bits` on average.
// With independent errors e, a query's output moves by sum_j p_j^2 times (o_proj's columns W_c)
//   of V: sum_c |W_c|^2 e_c,
//   of K: sum_c E[q_c^2] e_c / head_dim  x  sum_c |W_c|^2 var(v_c)
// (a logit's error moves the output towards v_j), summed over the query heads of the KV head, each
// head's K and V times what a measurement at `bits` says of the formula; the widths minimise the
// total. K rows of all heads are equally long, and so are V rows.
absl::Status ChooseKvGrids(const KvGridArgs& args, ThreadPool& pool, LayerCodes& codes);

}  // namespace thinwire
