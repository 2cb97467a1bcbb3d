#include "runtime/model/coded_layer.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/gptq_tensors.h"
#include "runtime/model/site_coding.h"

namespace thinwire {
namespace {

// Output rows unpacked at a time: some hundred KB, and a multiple of CodedWeights' blocks.
constexpr int64_t kRowBlock = 64;
constexpr int64_t kBlocksPerThread = 4;

// Which inputs or outputs of a projection this rank holds: channels of the whole projection, in
// run-time order, which is a permutation of `range`.
struct Features {
  Range range;
  std::vector<int32_t> channels;

  int64_t size() const { return range.size(); }
  bool in_sequence() const { return std::is_sorted(channels.begin(), channels.end()); }
};

// A projection in the checkpoint.
struct Projection {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool bias = false;
};

// Runs of columns whose weights share a scale.
struct ColumnGroups {
  std::vector<int32_t> offsets = {0};  // [num_runs + 1]
  std::vector<int32_t> ids;            // [num_runs] group in the checkpoint
};

ColumnGroups GroupColumns(absl::Span<const int32_t> g_idx, const std::vector<int32_t>& channels) {
  ColumnGroups groups;
  for (size_t j = 0; j < channels.size(); ++j) {
    const int32_t id = g_idx[channels[j]];
    if (!groups.ids.empty() && groups.ids.back() == id) {
      groups.offsets.back() = static_cast<int32_t>(j + 1);
    } else {
      groups.ids.push_back(id);
      groups.offsets.push_back(static_cast<int32_t>(j + 1));
    }
  }
  return groups;
}

absl::StatusOr<Tensor> VectorInOrder(const WeightReader& reader, const std::string& name,
                                     int64_t size, const Features& rows) {
  TW_ASSIGN_OR_RETURN(Tensor in_sequence,
                      Tensor::Allocate(DType::kF32, {rows.size()}, Device::Cpu()));
  TW_RETURN_IF_ERROR(reader.ReadVector(name, size, rows.range, in_sequence.mutable_view()));
  if (rows.in_sequence()) return in_sequence;
  TW_ASSIGN_OR_RETURN(Tensor ordered, Tensor::Allocate(DType::kF32, {rows.size()}, Device::Cpu()));
  const float* from = in_sequence.view().data<float>();
  auto* to = ordered.mutable_view().mutable_data<float>();
  for (int64_t r = 0; r < rows.size(); ++r) to[r] = from[rows.channels[r] - rows.range.begin];
  return ordered;
}

class CodedLayerReader {
 public:
  explicit CodedLayerReader(const LayerSource& source)
      : source_(source),
        config_(*source.config),
        plan_(*source.plan),
        names_(source.spec->layer),
        head_dim_(config_.head_dim) {}

  absl::Status Read(LayerWeights& out) const {
    const Features hidden_attention = InOrder(QuantSite::kQkvIn, {0, config_.hidden});
    const Features hidden_mlp = InOrder(QuantSite::kMlpIn, {0, config_.hidden});
    const Features heads = InOrder(QuantSite::kOutIn, HeadChannels(plan_.heads()));
    const Features ffn = InOrder(QuantSite::kDownIn, plan_.ffn());
    const Features out_heads = InOrder(QuantSite::kOutIn, HeadChannels(plan_.out_heads()));
    const Features down_ffn = InOrder(QuantSite::kDownIn, plan_.down_ffn());
    const Features residual = InSequence(plan_.ResidualChannels(config_.hidden));
    const Features plain_heads = InSequence(HeadChannels(plan_.heads()));
    const Features kv_heads = InSequence(HeadChannels(plan_.kv_heads()));
    TW_ASSIGN_OR_RETURN(const Features v_heads, ValueChannels(heads));

    TW_RETURN_IF_ERROR(ReadNormSite(names_.attention_norm, QuantSite::kQkvIn, hidden_attention,
                                    out.attention_norm, out.qkv_in));
    const int64_t q_rows = config_.num_heads * head_dim_;
    const int64_t kv_rows = config_.num_kv_heads * head_dim_;
    const int64_t hidden = config_.hidden;
    const bool qkv_bias = config_.attention_bias;
    TW_RETURN_IF_ERROR(ReadLinear({source_.prefix + names_.q, q_rows, hidden, qkv_bias},
                                  plain_heads, hidden_attention, QuantSite::kQkvIn,
                                  out.qkv.emplace_back()));
    TW_RETURN_IF_ERROR(ReadLinear({source_.prefix + names_.k, kv_rows, hidden, qkv_bias}, kv_heads,
                                  hidden_attention, QuantSite::kQkvIn, out.qkv.emplace_back()));
    TW_RETURN_IF_ERROR(ReadLinear({source_.prefix + names_.v, kv_rows, hidden, qkv_bias}, v_heads,
                                  hidden_attention, QuantSite::kQkvIn, out.qkv.emplace_back()));
    TW_ASSIGN_OR_RETURN(out.q, MakeSiteCoding(Codes(QuantSite::kQ), HeadChannels(plan_.heads()),
                                              /*by_channel=*/true));
    TW_RETURN_IF_ERROR(ReadKv(v_heads, out));

    TW_ASSIGN_OR_RETURN(out.out_in, MakeSiteCoding(Codes(QuantSite::kOutIn), heads.range,
                                                   /*by_channel=*/false));
    const bool residual_bias = plan_.adds_residual_bias();
    TW_RETURN_IF_ERROR(ReadLinear(
        {source_.prefix + names_.out, hidden, q_rows, residual_bias && config_.attention_out_bias},
        residual, out_heads, QuantSite::kOutIn, out.out.emplace_back()));

    TW_RETURN_IF_ERROR(
        ReadNormSite(names_.mlp_norm, QuantSite::kMlpIn, hidden_mlp, out.mlp_norm, out.mlp_in));
    for (const std::string& name : {names_.gate, names_.up}) {
      if (name.empty()) continue;
      TW_RETURN_IF_ERROR(ReadLinear({source_.prefix + name, config_.ffn, hidden, config_.mlp_bias},
                                    ffn, hidden_mlp, QuantSite::kMlpIn, out.up.emplace_back()));
    }
    TW_ASSIGN_OR_RETURN(out.down_in, MakeSiteCoding(Codes(QuantSite::kDownIn), ffn.range,
                                                    /*by_channel=*/false));
    return ReadLinear(
        {source_.prefix + names_.down, hidden, config_.ffn, residual_bias && config_.mlp_bias},
        residual, down_ffn, QuantSite::kDownIn, out.down.emplace_back());
  }

  absl::Status ReadKv(const Features& v_heads, LayerWeights& out) const {
    if (!Codes(QuantSite::kK).coded()) return absl::OkStatus();
    TW_ASSIGN_OR_RETURN(out.k_codes,
                        MakeKvCodes(Codes(QuantSite::kK), plan_.kv_heads(), head_dim_, {}));
    TW_ASSIGN_OR_RETURN(out.v_codes, MakeKvCodes(Codes(QuantSite::kV), plan_.kv_heads(), head_dim_,
                                                 v_heads.channels));
    return absl::OkStatus();
  }

  Range HeadChannels(Range heads) const { return {heads.begin * head_dim_, heads.end * head_dim_}; }

  const SiteCodes& Codes(QuantSite site) const {
    return source_.codes == nullptr ? none_ : source_.codes->at(site);
  }

  static Features InSequence(Range range) { return {range, ChannelsOf(SiteCodes(), range)}; }

 private:
  Features InOrder(QuantSite site, Range range) const {
    return {range, ChannelsOf(Codes(site), range)};
  }

  // v_proj's rows: those of a KV head in the order that o_proj's columns have in the query heads
  // which read it.
  absl::StatusOr<Features> ValueChannels(const Features& heads) const {
    Features v = InSequence(HeadChannels(plan_.kv_heads()));
    const int64_t group = config_.num_heads / config_.num_kv_heads;
    std::vector<bool> seen(plan_.kv_heads().size(), false);
    for (int64_t h = plan_.heads().begin; h < plan_.heads().end; ++h) {
      const int64_t kv = h / group;
      const int64_t from = (h - plan_.heads().begin) * head_dim_;
      const int64_t to = (kv - plan_.kv_heads().begin) * head_dim_;
      const bool first = !seen[kv - plan_.kv_heads().begin];
      seen[kv - plan_.kv_heads().begin] = true;
      for (int64_t i = 0; i < head_dim_; ++i) {
        const auto channel =
            static_cast<int32_t>(heads.channels[from + i] - h * head_dim_ + kv * head_dim_);
        if (first) {
          v.channels[to + i] = channel;
        } else if (v.channels[to + i] != channel) {
          return absl::InvalidArgumentError(
              absl::StrCat(source_.reader->checkpoint().dir(), "/", kRptqFileName, ": ",
                           source_.prefix, "out_in.order: query heads ", kv * group, " and ", h,
                           " read the same values but order them differently at position ", i));
        }
      }
    }
    return v;
  }

  absl::Status ReadNormSite(const std::string& name, QuantSite site, const Features& order,
                            NormWeights& norm, SiteCoding& coding) const {
    const WeightReader& reader = *source_.reader;
    TW_RETURN_IF_ERROR(reader.ReadNorm(source_.prefix + name, config_.norm_affine,
                                       source_.spec->norm_has_bias, norm));
    const SiteCodes& codes = Codes(site);
    if (codes.empty()) return absl::OkStatus();
    if (!config_.norm_before) {
      return absl::UnimplementedError(absl::StrCat(
          reader.checkpoint().dir(), ": ", source_.prefix, SiteName(site),
          " is reordered, which models that add the residual before the norm have no place for"));
    }
    TW_ASSIGN_OR_RETURN(coding, MakeSiteCoding(codes, order.range, /*by_channel=*/false));
    const int64_t width = order.size();
    TW_ASSIGN_OR_RETURN(coding.order, Tensor::Allocate(DType::kI32, {width}, Device::Cpu()));
    std::copy(order.channels.begin(), order.channels.end(),
              coding.order.mutable_view().mutable_data<int32_t>());
    // weight / step and bias / step + zero, in order.
    TW_ASSIGN_OR_RETURN(Tensor weight, Tensor::Allocate(DType::kF32, {width}, Device::Cpu()));
    TW_ASSIGN_OR_RETURN(Tensor bias, Tensor::Allocate(DType::kF32, {width}, Device::Cpu()));
    auto* weights = weight.mutable_view().mutable_data<float>();
    auto* biases = bias.mutable_view().mutable_data<float>();
    bool any_bias = false;
    for (int64_t j = 0; j < width; ++j) {
      const int32_t channel = order.channels[j];
      weights[j] = norm.weight.empty() ? 1.0f : norm.weight.view().data<float>()[channel];
      biases[j] = norm.bias.empty() ? 0.0f : norm.bias.view().data<float>()[channel];
      if (codes.coded()) {
        weights[j] *= 1.0f / codes.step[j];
        biases[j] = biases[j] * (1.0f / codes.step[j]) + codes.zero[j];
      }
      any_bias = any_bias || biases[j] != 0.0f;
    }
    norm.weight = std::move(weight);
    norm.bias = any_bias ? std::move(bias) : Tensor();
    return absl::OkStatus();
  }

  absl::Status ReadLinear(const Projection& projection, const Features& rows, Features columns,
                          QuantSite site, LinearWeights& out) const {
    const WeightReader& reader = *source_.reader;
    TW_ASSIGN_OR_RETURN(
        const GptqLinear linear,
        GptqLinear::Open(&reader.checkpoint(), projection.name, projection.out_features,
                         projection.in_features, *config_.gptq));
    ColumnGroups groups = GroupColumns(linear.g_idx(), columns.channels);
    if (Codes(site).empty() && !std::is_sorted(groups.ids.begin(), groups.ids.end())) {
      // Nobody upstream writes this order: activations are gathered.
      std::stable_sort(columns.channels.begin(), columns.channels.end(),
                       [&](int32_t a, int32_t b) { return linear.g_idx()[a] < linear.g_idx()[b]; });
      groups = GroupColumns(linear.g_idx(), columns.channels);
      TW_ASSIGN_OR_RETURN(out.input_order,
                          Tensor::Allocate(DType::kI32, {columns.size()}, Device::Cpu()));
      auto* order = out.input_order.mutable_view().mutable_data<int32_t>();
      for (int64_t j = 0; j < columns.size(); ++j) {
        order[j] = static_cast<int32_t>(columns.channels[j] - columns.range.begin);
      }
    }
    // Codes of 2 bits take 3.
    TW_ASSIGN_OR_RETURN(
        out.codes, CodedWeights::Allocate(rows.size(), columns.size(), std::max(3, linear.bits()),
                                          groups.offsets, Device::Cpu()));
    TW_RETURN_IF_ERROR(FillRows(linear, rows, columns, groups, *out.codes));
    if (projection.bias) {
      TW_ASSIGN_OR_RETURN(out.bias, VectorInOrder(reader, projection.name + ".bias",
                                                  projection.out_features, rows));
    }
    return ReadSegments(Codes(site), columns.range, out);
  }

  // Calls body(begin, end) for blocks of kRowBlock of `num_rows` rows, on all threads.
  absl::Status ForRowBlocks(
      int64_t num_rows, absl::FunctionRef<absl::Status(int64_t begin, int64_t end)> body) const {
    const int64_t num_blocks = (num_rows + kRowBlock - 1) / kRowBlock;
    std::vector<absl::Status> statuses(num_blocks);
    const auto run = [&](int64_t block) {
      const int64_t begin = block * kRowBlock;
      statuses[block] = body(begin, std::min(begin + kRowBlock, num_rows));
    };
    if (source_.pool != nullptr) {
      source_.pool->ParallelForDynamic(num_blocks, run);
    } else {
      for (int64_t block = 0; block < num_blocks; ++block) run(block);
    }
    for (const absl::Status& status : statuses) TW_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  // Copies a rank's block of codes, scales and zeros into run-time order.
  absl::Status FillRows(const GptqLinear& linear, const Features& rows, const Features& columns,
                        const ColumnGroups& groups, CodedWeights& out) const {
    const int64_t num_rows = rows.size();
    const int64_t width = columns.size();
    const auto num_runs = static_cast<int64_t>(groups.ids.size());
    const int64_t num_groups = linear.num_groups();
    // Rows in another order than the file's are unpacked all at once.
    const int64_t threads = source_.pool == nullptr ? 1 : source_.pool->num_threads();
    const int64_t chunk =
        rows.in_sequence() ? std::min(kRowBlock * kBlocksPerThread * threads, num_rows) : num_rows;
    std::vector<uint8_t> raw(chunk * width), raw_zeros(chunk * num_groups);
    std::vector<float> raw_scales(chunk * num_groups);
    for (int64_t first = 0; first < num_rows; first += chunk) {
      const int64_t file_row = rows.range.begin + first;
      const int64_t count = std::min(chunk, num_rows - first);
      TW_RETURN_IF_ERROR(ForRowBlocks(count, [&](int64_t begin, int64_t end) -> absl::Status {
        const Range block = {file_row + begin, file_row + end};
        TW_RETURN_IF_ERROR(linear.ReadCodes(
            block, columns.range,
            TensorView(raw.data() + begin * width, DType::kU8, {end - begin, width})));
        return linear.ReadScales(block,
                                 TensorView(raw_scales.data() + begin * num_groups, DType::kF32,
                                            {end - begin, num_groups}),
                                 TensorView(raw_zeros.data() + begin * num_groups, DType::kU8,
                                            {end - begin, num_groups}));
      }));
      TW_RETURN_IF_ERROR(ForRowBlocks(count, [&](int64_t begin, int64_t end) -> absl::Status {
        const int64_t n = end - begin;
        std::vector<uint8_t> codes(n * width), zeros(n * num_runs);
        std::vector<float> scales(n * num_runs);
        for (int64_t r = 0; r < n; ++r) {
          const int64_t from = rows.channels[first + begin + r] - file_row;
          for (int64_t j = 0; j < width; ++j) {
            codes[r * width + j] = raw[from * width + columns.channels[j] - columns.range.begin];
          }
          for (int64_t g = 0; g < num_runs; ++g) {
            scales[r * num_runs + g] = raw_scales[from * num_groups + groups.ids[g]];
            zeros[r * num_runs + g] = raw_zeros[from * num_groups + groups.ids[g]];
          }
        }
        return out.SetRows(first + begin, TensorView(codes.data(), DType::kU8, {n, width}),
                           TensorView(scales.data(), DType::kF32, {n, num_runs}),
                           TensorView(zeros.data(), DType::kU8, {n, num_runs}));
      }));
    }
    return absl::OkStatus();
  }

  // What IntegerLinear needs of a coded input: columns that share a step and a group, and W times
  // the zeros.
  static absl::Status ReadSegments(const SiteCodes& codes, Range columns, LinearWeights& out) {
    if (!codes.coded()) return absl::OkStatus();
    const int64_t width = columns.size();
    const float* step = codes.step.data() + columns.begin;
    const float* zero = codes.zero.data() + columns.begin;
    out.segment_offsets = {0};
    size_t group = 1;
    for (int64_t j = 1; j <= width; ++j) {
      const bool group_ends = out.codes->group_offsets()[group] == j;
      if (group_ends) ++group;
      if (j == width || group_ends || step[j] != step[j - 1]) {
        out.segment_offsets.push_back(static_cast<int32_t>(j));
        out.segment_step.push_back(step[j - 1]);
      }
    }
    std::vector<double> offsets(width), products(out.codes->out_features());
    for (int64_t j = 0; j < width; ++j) offsets[j] = double{step[j]} * double{zero[j]};
    TW_RETURN_IF_ERROR(out.codes->Multiply(offsets, absl::MakeSpan(products)));
    TW_ASSIGN_OR_RETURN(out.offset,
                        Tensor::Allocate(DType::kF32, {out.codes->out_features()}, Device::Cpu()));
    std::copy(products.begin(), products.end(), out.offset.mutable_view().mutable_data<float>());
    return absl::OkStatus();
  }

  const LayerSource& source_;
  const ModelConfig& config_;
  const ShardPlan& plan_;
  const LayerTensorNames& names_;
  const int64_t head_dim_;
  const SiteCodes none_;
};

}  // namespace

absl::Status ReadCodedLayer(const LayerSource& source, LayerWeights& out) {
  return CodedLayerReader(source).Read(out);
}

absl::Status ReadSitesOfDenseLayer(const LayerSource& source, LayerWeights& out) {
  if (source.codes == nullptr) return absl::OkStatus();
  const CodedLayerReader layer(source);
  const auto read = [&](QuantSite site, Range part, SiteCoding& coding) -> absl::Status {
    const SiteCodes& codes = layer.Codes(site);
    if (!codes.gain.empty() || !codes.levels.empty()) {
      return absl::UnimplementedError(absl::StrCat(
          source.reader->checkpoint().dir(), "/", kRptqFileName, ": ", source.prefix,
          SiteName(site), " has a gain or levels, which need quantised weights behind it"));
    }
    TW_ASSIGN_OR_RETURN(coding, MakeSiteCoding(codes, part, /*by_channel=*/true));
    coding.round_only = true;
    return absl::OkStatus();
  };
  const Range hidden = {0, source.config->hidden};
  const Range heads = layer.HeadChannels(source.plan->heads());
  TW_RETURN_IF_ERROR(read(QuantSite::kQkvIn, hidden, out.qkv_in));
  TW_RETURN_IF_ERROR(read(QuantSite::kQ, heads, out.q));
  TW_RETURN_IF_ERROR(read(QuantSite::kOutIn, heads, out.out_in));
  TW_RETURN_IF_ERROR(read(QuantSite::kMlpIn, hidden, out.mlp_in));
  TW_RETURN_IF_ERROR(read(QuantSite::kDownIn, source.plan->ffn(), out.down_in));
  return layer.ReadKv({}, out);
}

}  // namespace thinwire
