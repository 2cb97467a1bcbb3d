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
  EXPECT_EQ(times.kernels[0].name, "[copy]");  // with the gap ahead of it
  EXPECT_EQ(times.kernels[1].name, "Fused");
  EXPECT_EQ(times.kernels[1].calls, 2);
  EXPECT_DOUBLE_EQ(times.kernels[1].seconds, 3e-6);
  EXPECT_EQ(times.kernels[2].name, "ncclDevKernel_AllReduce_Sum_f16_RING_LL");
  EXPECT_DOUBLE_EQ(times.busy_seconds, 4e-6);
  EXPECT_DOUBLE_EQ(times.span_seconds, 6e-6);
}

TEST(KernelTraceTest, WhatKernelsAddIsTheSpanHoweverEarlyTheyBegan) {
  const std::vector<KernelRun> runs = {
      {"third", 1500, 6000, {2, 1, 1}},  // began while the first ran, waited for the second
      {"first", 1000, 3000, {4, 2, 1}}, {"second", 3000, 4500, {4, 2, 1}},
      {"first", 7000, 9000, {8, 1, 1}},  // after a gap, another size
      {"[copy]", 7500, 8000},
  };
  const KernelTimes times = SumKernelRuns(runs);
  ASSERT_EQ(times.kernels.size(), 5u);
  double added = 0.0;
  for (const KernelTimes::Kernel& kernel : times.kernels) {
    added += kernel.added_seconds;
    if (kernel.name == "second") {
      EXPECT_DOUBLE_EQ(kernel.added_seconds, 1.5e-6);
    } else if (kernel.name == "third") {
      EXPECT_DOUBLE_EQ(kernel.seconds, 4.5e-6);
      EXPECT_DOUBLE_EQ(kernel.added_seconds, 1.5e-6);
    } else if (kernel.name == "[copy]") {
      EXPECT_DOUBLE_EQ(kernel.added_seconds, 2e-6);
    } else if (kernel.grid[0] == 8) {
      EXPECT_DOUBLE_EQ(kernel.added_seconds, 1e-6);
    } else {
      EXPECT_EQ(kernel.grid[1], 2);
      EXPECT_DOUBLE_EQ(kernel.added_seconds, 2e-6);
    }
  }
  EXPECT_DOUBLE_EQ(added, times.span_seconds);
  EXPECT_DOUBLE_EQ(times.span_seconds, 8e-6);
  EXPECT_DOUBLE_EQ(times.busy_seconds, 7e-6);
}

TEST(KernelTraceTest, NothingIsNothing) {
  const KernelTimes times = SumKernelRuns({});
  EXPECT_TRUE(times.kernels.empty());
  EXPECT_EQ(times.span_seconds, 0.0);
}

}  // namespace
}  // namespace thinwire
