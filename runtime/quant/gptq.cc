#include "runtime/quant/gptq.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/gpu_gptq.h"
#include "kernels/quantize/hessian_products.h"
#include "runtime/quant/scale_refit.h"
#include "runtime/quant/weight_grid.h"

namespace thinwire {
namespace {

// Rows that one thread takes at a time. Products have these shapes whatever the number of threads.
constexpr int64_t kRows = 64;
// Numbers in the rows' systems of scales that a GPU makes at a time: 256 MiB.
constexpr int64_t kMostSystems = int64_t{1} << 25;
// Columns after which feedback reaches the columns beyond them, as one product.
constexpr int64_t kColumns = 128;

struct ColumnBlock {
  int64_t begin, end;
};

// Blocks of at most kColumns: several whole groups, or a part of one. So at a group's begin all its
// columns have received the feedback of all columns before.
std::vector<ColumnBlock> PlanBlocks(absl::Span<const int32_t> group_offsets) {
  std::vector<ColumnBlock> blocks;
  for (size_t g = 0; g + 1 < group_offsets.size(); ++g) {
    const int64_t begin = group_offsets[g];
    const int64_t end = group_offsets[g + 1];
    if (!blocks.empty() && end - blocks.back().begin <= kColumns) {
      blocks.back().end = end;
      continue;
    }
    for (int64_t at = begin; at < end; at += kColumns) {
      blocks.push_back({at, std::min(at + kColumns, end)});
    }
  }
  return blocks;
}

void LowerTo(std::atomic<int64_t>& smallest, int64_t value) {
  int64_t seen = smallest.load();
  while (value < seen && !smallest.compare_exchange_weak(seen, value)) {
  }
}

class Quantizer {
 public:
  Quantizer(const GptqProblem& problem, const GptqOptions& options, ThreadPool& pool)
      : problem_(problem),
        options_(options),
        pool_(pool),
        out_(problem.out_features),
        in_(problem.in_features),
        max_code_(static_cast<float>((1 << options.bits) - 1)),
        grid_options_{.bits = options.bits,
                      .shrink_steps = options.shrink_steps,
                      .smallest_shrink = options.smallest_shrink,
                      .error_power = options.error_power,
                      .local_search = options.local_search},
        blocks_(PlanBlocks(problem.group_offsets)) {
    codes_.out_features = out_;
    codes_.in_features = in_;
    codes_.bits = options.bits;
    codes_.group_offsets.assign(problem.group_offsets.begin(), problem.group_offsets.end());
    codes_.codes.resize(static_cast<size_t>(out_ * in_));
    codes_.scales.resize(static_cast<size_t>(out_ * codes_.num_groups()));
    codes_.zeros.resize(codes_.scales.size());
    group_of_.resize(static_cast<size_t>(in_));
    for (int64_t g = 0; g < codes_.num_groups(); ++g) {
      std::fill(group_of_.begin() + codes_.group_offsets[g],
                group_of_.begin() + codes_.group_offsets[g + 1], static_cast<int32_t>(g));
    }
    const SearchWeights search = options.search_weights;
    const bool conditional = search == SearchWeights::kConditional && !problem.factor.empty();
    if (!conditional && search != SearchWeights::kHessianDiagonal) return;
    importance_.resize(static_cast<size_t>(in_));
    for (int64_t i = 0; i < in_; ++i) {
      const double value =
          conditional ? problem.factor[i * (in_ + 1)] : problem.hessian[i * (in_ + 1)];
      importance_[i] = static_cast<float>(conditional ? 1.0 / (value * value) : value);
    }
  }

  absl::Status FeedForward();
  void Improve();
  // Both.
  absl::Status RunOnGpu(Stream& gpu);

  GptqCodes codes_;

 private:
  // Calls body(first row, rows) for tiles of kRows.
  void ForRows(absl::FunctionRef<void(int64_t row, int64_t rows)> body) {
    pool_.ParallelForDynamic((out_ + kRows - 1) / kRows, [&](int64_t tile) {
      body(tile * kRows, std::min(kRows, out_ - tile * kRows));
    });
  }

  WeightGrid GridAt(int64_t row, int64_t column) const {
    const int64_t at = row * codes_.num_groups() + group_of_[column];
    return {.scale = codes_.scales[at], .zero = static_cast<float>(codes_.zeros[at])};
  }

  absl::Status BeyondRange(int64_t bad) const {
    return absl::InvalidArgumentError(absl::StrCat(
        "weight row ", bad / in_, ", column ", bad % in_,
        ": beyond the range of fp16 scales, also after the errors of the columns before"));
  }
  void FitGroup(int64_t row, int64_t group, const float* weights);
  void QuantizeBlock(const ColumnBlock& block, int64_t row);
  void ComputeSlopes();
  void Sweep();
  void SweepBlock(const ColumnBlock& block, int64_t row);

  const GptqProblem& problem_;
  const GptqOptions& options_;
  ThreadPool& pool_;
  const int64_t out_;
  const int64_t in_;
  const float max_code_;
  const WeightGridOptions grid_options_;
  const std::vector<ColumnBlock> blocks_;
  std::vector<int32_t> group_of_;  // [in]
  std::vector<float> importance_;  // [in] of errors in the search; empty: all alike

  // FeedForward: weights as feedback has moved them [out, in]. Sweep: E H, E = Q - W.
  std::vector<float> state_;
  // FeedForward: the block's rows of U from the block's first column on. Sweep: H.
  std::vector<float> matrix_;
  // [out, kColumns]: what the block's columns owe to those beyond it.
  std::vector<float> owed_;
  std::atomic<int64_t> bad_{std::numeric_limits<int64_t>::max()};  // smallest row * in + column
};

void Quantizer::FitGroup(int64_t row, int64_t group, const float* weights) {
  const int64_t begin = codes_.group_offsets[group];
  const int64_t end = codes_.group_offsets[group + 1];
  const WeightGrid grid = FitWeightGrid(weights + row * in_ + begin,
                                        importance_.empty() ? nullptr : importance_.data() + begin,
                                        end - begin, grid_options_);
  if (std::isinf(grid.scale)) LowerTo(bad_, row * in_ + begin);
  codes_.scales[row * codes_.num_groups() + group] = grid.scale;
  codes_.zeros[row * codes_.num_groups() + group] = static_cast<uint8_t>(grid.zero);
}

void Quantizer::QuantizeBlock(const ColumnBlock& block, int64_t row) {
  float* w = state_.data() + row * in_;
  float* owed = owed_.data() + row * kColumns;
  const bool feedback = !problem_.factor.empty();
  for (int64_t j = block.begin; j < block.end; ++j) {
    const int64_t group = group_of_[j];
    if (!options_.static_groups && j == codes_.group_offsets[group]) {
      FitGroup(row, group, state_.data());
    }
    const WeightGrid grid = GridAt(row, j);
    const float code = NearestCode(grid, w[j], max_code_);
    codes_.codes[row * in_ + j] = static_cast<uint8_t>(code);
    if (!feedback) continue;
    const float* u = matrix_.data() + (j - block.begin) * (in_ - block.begin) - block.begin;
    const float error = (w[j] - grid.scale * (code - grid.zero)) / u[j];
    if (!std::isfinite(error)) LowerTo(bad_, row * in_ + j);
    owed[j - block.begin] = -error;
    for (int64_t k = j + 1; k < block.end; ++k) w[k] -= error * u[k];
  }
}

absl::Status Quantizer::FeedForward() {
  state_.assign(problem_.weights.begin(), problem_.weights.end());
  if (options_.static_groups) {
    pool_.ParallelForDynamic(out_, [&](int64_t row) {
      for (int64_t g = 0; g < codes_.num_groups(); ++g) {
        FitGroup(row, g, problem_.weights.data());
      }
    });
  }
  const bool feedback = !problem_.factor.empty();
  if (feedback) owed_.resize(static_cast<size_t>(out_ * kColumns));
  for (const ColumnBlock& block : blocks_) {
    const int64_t stride = in_ - block.begin;
    if (feedback) {
      matrix_.resize(static_cast<size_t>((block.end - block.begin) * stride));
      pool_.ParallelFor(block.end - block.begin, 4, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
          const double* u = problem_.factor.data() + (block.begin + j) * in_ + block.begin;
          for (int64_t k = 0; k < stride; ++k) matrix_[j * stride + k] = static_cast<float>(u[k]);
        }
      });
    }
    ForRows([&](int64_t first, int64_t rows) {
      for (int64_t row = first; row < first + rows; ++row) QuantizeBlock(block, row);
      if (feedback && block.end < in_) {
        SgemmNN(rows, in_ - block.end, block.end - block.begin, owed_.data() + first * kColumns,
                kColumns, matrix_.data() + (block.end - block.begin), stride, 1.0f,
                state_.data() + first * in_ + block.end, in_);
      }
    });
    if (const int64_t bad = bad_; bad != std::numeric_limits<int64_t>::max()) {
      return BeyondRange(bad);
    }
  }
  return absl::OkStatus();
}

void Quantizer::SweepBlock(const ColumnBlock& block, int64_t row) {
  float* slope = state_.data() + row * in_;  // E H
  float* owed = owed_.data() + row * kColumns;
  uint8_t* codes = codes_.codes.data() + row * in_;
  for (int64_t j = block.begin; j < block.end; ++j) {
    owed[j - block.begin] = 0.0f;
    const float* h = matrix_.data() + j * in_;
    if (!(h[j] > 0.0f)) continue;
    const WeightGrid grid = GridAt(row, j);
    const auto old_code = static_cast<float>(codes[j]);
    const float target = grid.scale * (old_code - grid.zero) - slope[j] / h[j];
    const float code = NearestCode(grid, target, max_code_);
    if (code == old_code) continue;
    const float change = grid.scale * (code - old_code);
    codes[j] = static_cast<uint8_t>(code);
    owed[j - block.begin] = change;
    for (int64_t k = block.begin; k < block.end; ++k) slope[k] += change * h[k];
  }
}

void Quantizer::ComputeSlopes() {
  state_.resize(static_cast<size_t>(out_ * in_));
  const std::vector<float> values = Dequantize(codes_);
  std::vector<float> errors(static_cast<size_t>(pool_.num_threads() * kRows * in_));
  ForRows([&](int64_t first, int64_t rows) {
    float* error = errors.data() + ThreadPool::CurrentThread() * kRows * in_;
    for (int64_t i = 0; i < rows * in_; ++i) {
      error[i] = values[first * in_ + i] - problem_.weights[first * in_ + i];
    }
    SgemmNN(rows, in_, in_, error, in_, matrix_.data(), in_, 0.0f, state_.data() + first * in_,
            in_);
  });
}

void Quantizer::Sweep() {
  for (const ColumnBlock& block : blocks_) {
    const int64_t size = block.end - block.begin;
    ForRows([&](int64_t first, int64_t rows) {
      for (int64_t row = first; row < first + rows; ++row) SweepBlock(block, row);
      const float* owed = owed_.data() + first * kColumns;
      const float* h = matrix_.data() + block.begin * in_;
      float* slope = state_.data() + first * in_;
      SgemmNN(rows, block.begin, size, owed, kColumns, h, in_, 1.0f, slope, in_);
      SgemmNN(rows, in_ - block.end, size, owed, kColumns, h + block.end, in_, 1.0f,
              slope + block.end, in_);
    });
  }
}

void Quantizer::Improve() {
  matrix_.resize(static_cast<size_t>(in_ * in_));
  pool_.ParallelFor(in_, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * in_; i < end * in_; ++i) {
      matrix_[i] = static_cast<float>(problem_.hessian[i]);
    }
  });
  owed_.resize(static_cast<size_t>(out_ * kColumns));
  for (int refit = 0; refit <= options_.refits; ++refit) {
    ComputeSlopes();
    if (refit > 0) {
      RefitScales(state_, matrix_, codes_, pool_);
      ComputeSlopes();
    }
    for (int sweep = 0; sweep < options_.sweeps; ++sweep) Sweep();
  }
}

absl::Status Quantizer::RunOnGpu(Stream& gpu) {
  if constexpr (kHasCuda) {
    TW_ASSIGN_OR_RETURN(GpuGptq work,
                        GpuGptq::Create(out_, in_, options_.bits, problem_.group_offsets,
                                        problem_.weights, importance_, gpu));
    std::vector<std::pair<int64_t, int64_t>> blocks;
    for (const ColumnBlock& block : blocks_) blocks.emplace_back(block.begin, block.end);
    const GpuGridOptions grids = {.shrink_steps = options_.shrink_steps,
                                  .smallest_shrink = options_.smallest_shrink,
                                  .error_power = options_.error_power,
                                  .local_search = options_.local_search};
    if (!problem_.factor.empty()) TW_RETURN_IF_ERROR(work.SetFactor(problem_.factor));
    if (options_.static_groups) TW_RETURN_IF_ERROR(work.FitAllGroups(grids));
    TW_ASSIGN_OR_RETURN(const int64_t bad,
                        work.FeedForward(blocks, !options_.static_groups, grids));
    if (bad >= 0) return BeyondRange(bad);
    const GpuGptqCodes codes = {absl::MakeSpan(codes_.codes), absl::MakeSpan(codes_.scales),
                                absl::MakeSpan(codes_.zeros)};
    if (options_.sweeps > 0 || options_.refits > 0) {
      TW_RETURN_IF_ERROR(work.SetHessian(problem_.hessian));
      for (int refit = 0; refit <= options_.refits; ++refit) {
        TW_RETURN_IF_ERROR(work.Slopes());
        if (refit > 0) {
          TW_RETURN_IF_ERROR(work.Get(codes));
          const int64_t groups = codes_.num_groups();
          const int64_t rows = std::max<int64_t>(1, kMostSystems / (groups * groups));
          std::vector<double> systems, slopes;
          for (int64_t first = 0; first < out_; first += rows) {
            TW_RETURN_IF_ERROR(work.Systems(first, std::min(rows, out_ - first), systems, slopes));
            RefitScalesOf(first, systems, slopes, codes_, pool_);
          }
          TW_RETURN_IF_ERROR(work.SetScales(codes_.scales));
          TW_RETURN_IF_ERROR(work.Slopes());
        }
        for (int sweep = 0; sweep < options_.sweeps; ++sweep) {
          TW_RETURN_IF_ERROR(work.Sweep(blocks));
        }
      }
    }
    return work.Get(codes);
  } else {
    return absl::UnimplementedError(
        absl::StrCat("GPTQ on ", DeviceName(gpu.device()), ": this build has no CUDA"));
  }
}

absl::Status CheckWeights(const GptqProblem& problem) {
  for (int64_t i = 0; i < static_cast<int64_t>(problem.weights.size()); ++i) {
    if (std::isfinite(problem.weights[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("weight row ", i / problem.in_features, ", column ", i % problem.in_features,
                     ": ", problem.weights[i], ", expected a finite number"));
  }
  return absl::OkStatus();
}

void CheckProblem(const GptqProblem& problem, const GptqOptions& options) {
  const int64_t in = problem.in_features;
  TW_CHECK(options.bits >= 1 && options.bits <= 8);
  TW_CHECK_EQ(static_cast<int64_t>(problem.weights.size()), problem.out_features * in);
  const bool needs_hessian = options.search_weights == SearchWeights::kHessianDiagonal ||
                             options.sweeps > 0 || options.refits > 0;
  TW_CHECK(!problem.hessian.empty() || !needs_hessian || in == 0);
  for (const auto& matrix : {problem.hessian, problem.factor}) {
    TW_CHECK(matrix.empty() || static_cast<int64_t>(matrix.size()) == in * in);
  }
  TW_CHECK(!problem.group_offsets.empty());
  TW_CHECK_EQ(problem.group_offsets.front(), 0);
  TW_CHECK_EQ(problem.group_offsets.back(), in);
  for (size_t g = 0; g + 1 < problem.group_offsets.size(); ++g) {
    TW_CHECK_LT(problem.group_offsets[g], problem.group_offsets[g + 1]);
  }
}

}  // namespace

absl::StatusOr<GptqResult> Gptq(const GptqProblem& problem, const GptqOptions& options,
                                ThreadPool& pool, Stream* gpu) {
  CheckProblem(problem, options);
  TW_RETURN_IF_ERROR(CheckWeights(problem));
  Quantizer quantizer(problem, options, pool);
  if (gpu != nullptr && !problem.weights.empty()) {
    TW_RETURN_IF_ERROR(quantizer.RunOnGpu(*gpu));
  } else {
    TW_RETURN_IF_ERROR(quantizer.FeedForward());
    if (options.sweeps > 0 || options.refits > 0) quantizer.Improve();
  }
  GptqResult result{.codes = std::move(quantizer.codes_)};
  if (options.measure_error && !problem.hessian.empty()) {
    if constexpr (kHasCuda) {
      if (gpu != nullptr) {
        TW_ASSIGN_OR_RETURN(
            result.relative_error,
            RelativeErrorOnGpu(problem.out_features, problem.in_features, problem.weights,
                               Dequantize(result.codes), problem.hessian, *gpu));
        return result;
      }
    }
    result.relative_error = RelativeError(problem.weights, result.codes, problem.hessian, pool);
  }
  return result;
}

}  // namespace thinwire
