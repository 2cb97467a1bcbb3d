#include "kernels/kernel_bench/kernel_bench.h"

#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

TEST(KernelBenchTest, EveryKernelIsTimedAndCounted) {
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  std::map<std::string, std::vector<KernelTiming>> timings;
  for (const std::string& name : KernelNames()) {
    const absl::Status status =
        TimeKernel(name, {128, 1e-4, 1}, stream, [&](const KernelTiming& timing) {
          timings[name].push_back(timing);
          return absl::OkStatus();
        });
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_FALSE(timings[name].empty()) << name;
    for (const KernelTiming& timing : timings[name]) {
      EXPECT_EQ(timing.kernel, name);
      EXPECT_GT(timing.us, 0.0);
    }
  }
  // Read and written.
  EXPECT_EQ(timings["copy"][0].bytes, 2 * 2 * 128 * 128);
  // 16 tokens: weights, x and y.
  EXPECT_EQ(timings["linear"][1].shape, "16 x 128 x 128");
  EXPECT_EQ(timings["linear"][1].bytes, 2 * (128 * 128 + 2 * 16 * 128));
  EXPECT_EQ(timings["linear"][1].operations, 2 * 16 * 128 * 128);
  // Codes, a scale of 2 bytes and a zero of 1 for each of 128 rows.
  EXPECT_EQ(timings["coded-linear-4"][0].bytes, 128 * 128 / 2 + 128 * 3 + 2 * 2 * 128);
  EXPECT_EQ(timings["integer-linear-3"][0].bytes, 128 * 128 * 3 / 8 + 128 * 3 + 3 * 128);
  // 16 rows of vectors, 20 bits a column, two books, scales and offsets; x and y.
  EXPECT_EQ(timings["vptq-v8-k4096-r256"][0].bytes,
            16 * 128 * 20 / 8 + 8 + (4096 + 256) * 16 + 2 * 4 * 128 + 2 * 2 * 128);
  // 8 sequences of 2048 tokens, K and V of one head.
  EXPECT_EQ(timings["attention"][0].bytes, 2 * 8 * 2048 * 256);
  EXPECT_EQ(timings["attention-4"][0].bytes, 2 * 8 * 2048 * 64);
  EXPECT_EQ(timings["attention-mixed"][0].bytes, 2 * 8 * 2048 * 64);
  EXPECT_EQ(timings["attention-3"][0].operations, 4 * 8 * 2048 * 128);
}

TEST(KernelBenchTest, NamesWhatIsExpected) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto none = [](const KernelTiming&) { return absl::OkStatus(); };
  EXPECT_THAT(TimeKernel("gemm", {}, stream, none).ToString(),
              HasSubstr("kernel 'gemm': expected one of copy, norm, linear"));
  EXPECT_THAT(TimeKernel("copy", {100, 0.1}, stream, none).ToString(),
              HasSubstr("width 100: expected a multiple of 128"));
}

}  // namespace
}  // namespace thinwire
