// Which part of a decoder model a rank holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/plan/mesh.h"

namespace thinwire {

// Half-open.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Range& a, const Range& b) = default;
};

// The sizes that cutting depends on.
struct DecoderShape {
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t ffn = 0;
  int64_t vocab = 0;
};

// How the projections whose outputs are added to the residual (o_proj, fc2/down) are cut.
enum class ResidualCut {
  kByInputs,   // a rank has the columns that its heads or its part of ffn feed: partial sums of all
               // output features, to be added up over ranks
  kByOutputs,  // a rank has some output features, whole: their inputs are gathered, and no sum
               // spans ranks
};

// What one rank of a mesh holds. Tensor parallelism follows Megatron-LM (Shoeybi et al., arXiv
// 1909.08053): q/k/v and fc1/gate/up are cut by output features, o_proj and fc2/down by input
// features (or, see ResidualCut, by output features as well), embeddings and the head by
// vocabulary; norms and position tables are whole on every rank. Where a group has more ranks than
// the model has KV heads, each KV head is held by tp_size / num_kv_heads neighbouring ranks.
// Pipeline parallelism gives each stage consecutive layers, as equal in number as they divide.
class ShardPlan {
 public:
  // InvalidArgument names the size that does not divide and the --tp or --pp values that would.
  static absl::StatusOr<ShardPlan> Create(const DecoderShape& shape, const Mesh& mesh, int rank,
                                          ResidualCut cut = ResidualCut::kByInputs);

  const Mesh& mesh() const { return mesh_; }
  int tp_rank() const { return tp_rank_; }
  int pp_rank() const { return pp_rank_; }
  bool first_stage() const { return pp_rank_ == 0; }
  bool last_stage() const { return pp_rank_ == mesh_.pp_size - 1; }

  Range layers() const { return layers_; }
  Range heads() const { return heads_; }
  Range kv_heads() const { return kv_heads_; }
  Range ffn() const { return ffn_; }

  ResidualCut residual_cut() const { return residual_cut_; }
  // What this rank holds of o_proj and fc2/down: input features, by query head and of ffn, and of
  // `hidden` the output features.
  Range out_heads() const { return out_heads_; }
  Range down_ffn() const { return down_ffn_; }
  Range ResidualChannels(int64_t hidden) const;
  // Whether their biases are this rank's to add: of partial sums one has them.
  bool adds_residual_bias() const {
    return residual_cut_ == ResidualCut::kByOutputs || tp_rank_ == 0;
  }

  // Vocabulary ids of this rank. Parts are ceil(vocab / tp_size) long but the last, which may be
  // shorter (or empty): vocabularies are seldom divisible, and nothing depends on equal parts.
  Range vocab() const { return VocabOf(tp_rank_); }
  Range VocabOf(int tp_rank) const;

  // The tp sizes that this shape can be cut into, ascending.
  static std::vector<int> UsableTpSizes(const DecoderShape& shape);

 private:
  Mesh mesh_;
  int tp_rank_ = 0;
  int pp_rank_ = 0;
  int64_t vocab_size_ = 0;
  ResidualCut residual_cut_ = ResidualCut::kByInputs;
  Range layers_, heads_, kv_heads_, ffn_, out_heads_, down_ffn_;
};

}  // namespace thinwire
