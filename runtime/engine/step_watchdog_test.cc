#include "runtime/engine/step_watchdog.h"

#include <future>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(StepWatchdogTest, AStepThatHangsIsReportedOnce) {
  std::promise<std::string> told;
  StepWatchdog watchdog(absl::Milliseconds(20),
                        [&](const absl::Status& why) { told.set_value(why.ToString()); });
  watchdog.Begin(7);
  EXPECT_THAT(told.get_future().get(),
              testing::HasSubstr("DEADLINE_EXCEEDED: step 7 has hung for 20ms"));
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
