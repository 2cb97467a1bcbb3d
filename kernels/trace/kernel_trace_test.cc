#include "kernels/trace/kernel_trace.h"

#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(KernelTraceTest, RunsOfOneNameAddUpAndOverlapsCountOnce) {
  const std::vector<KernelRun> runs = {
      // void thinwire::(anonymous namespace)::Fused<4>(float const*)
      {"_ZN8thinwire12_GLOBAL__N_15FusedILi4EEEvPKf", 1000, 3000},
      {"_ZN8thinwire12_GLOBAL__N_15FusedILi8EEEvPKf", 6000, 7000},
      {"ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 2000, 4000},
      {"[copy]", 6500, 6600},
  };
  const KernelTimes times = SumKernelRuns(runs);
  ASSERT_EQ(times.kernels.size(), 3u);
  EXPECT_EQ(times.kernels[0].name, "Fused");
  EXPECT_EQ(times.kernels[0].calls, 2);
  EXPECT_DOUBLE_EQ(times.kernels[0].seconds, 3e-6);
  EXPECT_EQ(times.kernels[1].name, "ncclDevKernel_AllReduce_Sum_f16_RING_LL");
  EXPECT_EQ(times.kernels[2].name, "[copy]");
  EXPECT_DOUBLE_EQ(times.busy_seconds, 4e-6);
  EXPECT_DOUBLE_EQ(times.span_seconds, 6e-6);
}

TEST(KernelTraceTest, NothingIsNothing) {
  const KernelTimes times = SumKernelRuns({});
  EXPECT_TRUE(times.kernels.empty());
  EXPECT_EQ(times.span_seconds, 0.0);
}

}  // namespace
}  // namespace thinwire
