// Megabytes of text per second. THINWIRE_BENCH_TOKENIZER: a folder with a tokenizer;
// THINWIRE_BENCH_TEXT: a file.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "runtime/tokenizer/stream_decoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {
namespace {

struct Input {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string text;
  std::vector<int32_t> ids;
};

// False, with the benchmark marked as skipped, when the variables do not lead to files.
bool Load(benchmark::State& state, Input* input) {
  const char* folder = std::getenv("THINWIRE_BENCH_TOKENIZER");
  const char* path = std::getenv("THINWIRE_BENCH_TEXT");
  if (folder == nullptr || path == nullptr) {
    state.SkipWithError("set THINWIRE_BENCH_TOKENIZER and THINWIRE_BENCH_TEXT");
    return false;
  }
  auto tokenizer = LoadTokenizer(folder);
  if (!tokenizer.ok()) {
    state.SkipWithError(tokenizer.status().ToString().c_str());
    return false;
  }
  input->tokenizer = *std::move(tokenizer);
  std::ifstream file(path, std::ios::binary);
  input->text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  input->ids = input->tokenizer->Encode(input->text, false).value();
  return true;
}

void BM_Encode(benchmark::State& state) {
  Input input;
  if (!Load(state, &input)) return;
  for (auto _ : state) benchmark::DoNotOptimize(input.tokenizer->Encode(input.text, false));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(input.text.size()));
}
BENCHMARK(BM_Encode)->Unit(benchmark::kMillisecond);

void BM_Decode(benchmark::State& state) {
  Input input;
  if (!Load(state, &input)) return;
  for (auto _ : state) benchmark::DoNotOptimize(input.tokenizer->Decode(input.ids, true));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(input.text.size()));
}
BENCHMARK(BM_Decode)->Unit(benchmark::kMillisecond);

void BM_Stream(benchmark::State& state) {
  Input input;
  if (!Load(state, &input)) return;
  for (auto _ : state) {
    StreamDecoder decoder(*input.tokenizer, true);
    for (const int32_t id : input.ids) benchmark::DoNotOptimize(decoder.Push(id));
    benchmark::DoNotOptimize(decoder.Flush());
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(input.ids.size()));
}
BENCHMARK(BM_Stream)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thinwire
