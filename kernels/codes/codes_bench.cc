// Rounding activations to codes beside a plain copy of as many bytes: x is read, codes of a quarter
// (fp32) or half (16 bits) the size are written. A gain reads x twice, the second time from a
// cache. Arguments: gain, dtype, num_tokens, snap, threads; 4096 channels.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/codes/codes.h"
#include "kernels/testing/benchmark_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kWidth = 4096;

struct Problem {
  Problem(DType dtype, int64_t num_tokens)
      : x(RoundedTensor(std::vector<float>(static_cast<size_t>(num_tokens * kWidth), 0.7f), dtype,
                        num_tokens, kWidth)),
        step(kWidth, 0.03f),
        inverse_step(kWidth, 1.0f / 0.03f),
        zero(kWidth, 128.0f),
        max_code(kWidth, 255),
        codes(static_cast<size_t>(num_tokens * kWidth)),
        gains(static_cast<size_t>(num_tokens)) {
    for (int i = 0; i < 256; ++i) snap.push_back(static_cast<uint8_t>(i / 16 * 17));
  }

  static ConstTensorView Vector(const std::vector<float>& values) {
    return ConstTensorView(values.data(), DType::kF32, {kWidth});
  }

  Tensor x;
  std::vector<float> step, inverse_step, zero;
  std::vector<uint8_t> max_code, codes, snap;
  std::vector<float> gains;
};

void BM_Quantize(benchmark::State& state) {
  const auto gain = static_cast<GainKind>(state.range(0));
  const auto dtype = static_cast<DType>(state.range(1));
  const int64_t num_tokens = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(4)));
  Stream stream = Stream::Cpu(&pool);
  Problem problem(dtype, num_tokens);
  QuantizeArgs args;
  args.x = problem.x.view();
  args.inverse_step = Problem::Vector(problem.inverse_step);
  args.zero = Problem::Vector(problem.zero);
  args.max_code = ConstTensorView(problem.max_code.data(), DType::kU8, {kWidth});
  if (state.range(3) != 0) args.snap = ConstTensorView(problem.snap.data(), DType::kU8, {256});
  args.gain = gain;
  args.codes = TensorView(problem.codes.data(), DType::kU8, {num_tokens, kWidth});
  args.gains = TensorView(problem.gains.data(), DType::kF32, {num_tokens});
  RunBesideCopy(state, problem.x.size_bytes() + num_tokens * kWidth, pool,
                [&] { benchmark::DoNotOptimize(Quantize(args, stream).ok()); });
  state.SetLabel(std::string(DTypeName(dtype)));
}
BENCHMARK(BM_Quantize)
    ->ArgsProduct({{static_cast<int64_t>(GainKind::kNone), static_cast<int64_t>(GainKind::kRms)},
                   {static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16)},
                   {1, 512},
                   {0},
                   {1, 2}})
    ->Args({static_cast<int64_t>(GainKind::kRms), static_cast<int64_t>(DType::kF32), 512, 1, 1});

void BM_RoundToCodes(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1);
  ThreadPool pool(static_cast<int>(state.range(2)));
  Stream stream = Stream::Cpu(&pool);
  Problem problem(dtype, num_tokens);
  RoundToCodesArgs args;
  args.x = problem.x.mutable_view();
  args.step = Problem::Vector(problem.step);
  args.inverse_step = Problem::Vector(problem.inverse_step);
  args.zero = Problem::Vector(problem.zero);
  args.max_code = ConstTensorView(problem.max_code.data(), DType::kU8, {kWidth});
  RunBesideCopy(state, 2 * problem.x.size_bytes(), pool,
                [&] { benchmark::DoNotOptimize(RoundToCodes(args, stream).ok()); });
  state.SetLabel(std::string(DTypeName(dtype)));
}
BENCHMARK(BM_RoundToCodes)
    ->ArgsProduct({{static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16)},
                   {1, 512},
                   {1, 2}});

}  // namespace
}  // namespace thinwire
