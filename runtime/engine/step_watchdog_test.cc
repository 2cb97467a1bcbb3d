#include "runtime/engine/step_watchdog.h"

#include <future>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(StepWatchdogTest, AStepThatHangsIsReportedOnce) {
  std::promise<absl::Status> told;
  StepWatchdog watchdog(absl::Milliseconds(20),
                        [&](const absl::Status& why) { told.set_value(why); });
  watchdog.Begin(7);
  const absl::Status why = told.get_future().get();
  EXPECT_EQ(why.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(why.message()), testing::HasSubstr("step 7 has hung for 20ms"));
}

TEST(StepWatchdogTest, TimeBetweenStepsIsNoHang) {
  bool told = false;
  {
    StepWatchdog watchdog(absl::Seconds(60), [&](const absl::Status&) { told = true; });
    for (int step = 0; step < 3; ++step) {
      watchdog.Begin(step);
      watchdog.End();
    }
  }
  EXPECT_FALSE(told);
}

}  // namespace
}  // namespace thinwire
