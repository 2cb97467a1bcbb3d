// Coding and decoding of groups beside a plain copy of as many bytes. Arguments: bits, rows, width,
// parts (decoding), threads; fp32.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/group_codes/group_codes.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

struct Problem {
  explicit Problem(const benchmark::State& state)
      : format{static_cast<int>(state.range(0)), state.range(2)},
        num_rows(state.range(1)),
        values(static_cast<size_t>(num_rows * format.width)),
        codes(static_cast<size_t>(num_rows * format.row_bytes())),
        pool(static_cast<int>(state.range(4))),
        stream(Stream::Cpu(&pool)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(random);
    encode.format = format;
    encode.x = ConstTensorView(values.data(), DType::kF32, {num_rows, format.width});
    encode.codes = TensorView(codes.data(), DType::kU8, {num_rows, format.row_bytes()});
  }

  void SetRate(benchmark::State& state, int64_t bytes) {
    state.counters["Gelements/s"] = static_cast<double>(state.counters["GB/s"]) *
                                    static_cast<double>(values.size()) / static_cast<double>(bytes);
  }

  GroupCodesFormat format;
  int64_t num_rows;
  std::vector<float> values;
  std::vector<uint8_t> codes;
  ThreadPool pool;
  Stream stream;
  EncodeGroupsArgs encode;
};

void BM_EncodeGroups(benchmark::State& state) {
  Problem problem(state);
  const auto bytes =
      static_cast<int64_t>(problem.values.size() * sizeof(float) + problem.codes.size());
  RunBesideCopy(state, bytes, problem.pool, [&] {
    benchmark::DoNotOptimize(EncodeGroups(problem.encode, problem.stream).ok());
  });
  problem.SetRate(state, bytes);
}
BENCHMARK(BM_EncodeGroups)
    ->ArgsProduct({{8, 4}, {1, 16, 512}, {512, 4096}, {1}, {1, 2}})
    ->ArgsProduct({{6, 5}, {16}, {4096}, {1}, {1}});

void BM_DecodeGroups(benchmark::State& state) {
  Problem problem(state);
  benchmark::DoNotOptimize(EncodeGroups(problem.encode, problem.stream).ok());
  const std::vector<std::vector<uint8_t>> copies(static_cast<size_t>(state.range(3)),
                                                 problem.codes);
  std::vector<ConstTensorView> parts;
  for (const std::vector<uint8_t>& copy : copies) {
    parts.push_back(
        ConstTensorView(copy.data(), DType::kU8, {problem.num_rows, problem.format.row_bytes()}));
  }
  DecodeGroupsArgs args;
  args.format = problem.format;
  args.parts = parts;
  args.y = TensorView(problem.values.data(), DType::kF32, {problem.num_rows, problem.format.width});
  const auto bytes = static_cast<int64_t>(problem.values.size() * sizeof(float) +
                                          copies.size() * problem.codes.size());
  RunBesideCopy(state, bytes, problem.pool,
                [&] { benchmark::DoNotOptimize(DecodeGroups(args, problem.stream).ok()); });
  problem.SetRate(state, bytes);
}
BENCHMARK(BM_DecodeGroups)
    ->ArgsProduct({{8, 4}, {1, 16, 512}, {512, 4096}, {1, 2, 4}, {1, 2}})
    ->ArgsProduct({{6, 5}, {16}, {4096}, {1}, {1}});

}  // namespace
}  // namespace thinwire
