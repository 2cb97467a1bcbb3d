#include "runtime/model/embed_tokens.h"

#include "kernels/core/status_macros.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"

namespace thinwire {

absl::Status EmbedTokens(const EmbedTokensArgs& args, Wire& wire, Stream& stream) {
  const DecoderWeights& weights = *args.weights;
  const bool projected = !weights.project_in.weight.empty();
  const TensorView embedded = projected ? args.narrow.Rows(0, args.x.dim(0)) : args.x;
  TW_RETURN_IF_ERROR(Embedding({.ids = args.token_ids,
                                .table = weights.token_embedding.view(),
                                .first_id = args.plan->vocab().begin,
                                .out = embedded,
                                .late_ids = args.late_ids},
                               stream));
  TW_RETURN_IF_ERROR(wire.AllReduce(Site::kEmbedding, embedded, stream));
  if (projected) {
    TW_RETURN_IF_ERROR(Linear({.x = embedded,
                               .weight = weights.project_in.weight.view(),
                               .bias = weights.project_in.bias.view(),
                               .y = args.x,
                               .batch_invariant = wire.exact()},
                              stream));
  }
  if (weights.position_embedding.empty()) return absl::OkStatus();
  return Embedding({.ids = args.positions,
                    .table = weights.position_embedding.view(),
                    .first_id = -args.spec->position_offset,
                    .accumulate = true,
                    .out = args.x},
                   stream);
}

}  // namespace thinwire
