#include "runtime/server/rate_limits.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;

TEST(RateLimitsTest, ABurstThenTheRateForEachClientAlone) {
  RateLimits limits(/*rate=*/2.0, /*burst=*/3.0);
  const RateLimits::Clock::time_point start;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(limits.Take("a", start).ok());
  const absl::Status refused = limits.Take("a", start);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(RetryHint(refused), absl::Milliseconds(500));
  EXPECT_TRUE(limits.Take("b", start).ok());
  // Half a second earns one; what was refused cost nothing.
  EXPECT_TRUE(limits.Take("a", start + milliseconds(500)).ok());
  EXPECT_FALSE(limits.Take("a", start + milliseconds(501)).ok());
  // Not more than the burst is saved up.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(limits.Take("a", start + milliseconds(60000)).ok());
  EXPECT_FALSE(limits.Take("a", start + milliseconds(60000)).ok());
}

TEST(RateLimitsTest, ManyClientsAreForgottenOnceTheyMayDoAsThoseWhoNeverCame) {
  RateLimits limits(/*rate=*/1.0, /*burst=*/1.0);
  RateLimits::Clock::time_point now;
  EXPECT_TRUE(limits.Take("a", now).ok());
  for (int i = 0; i < 5000; ++i) EXPECT_TRUE(limits.Take(absl::StrCat(i), now).ok());
  EXPECT_FALSE(limits.Take("a", now + milliseconds(900)).ok());
  EXPECT_TRUE(limits.Take("a", now + milliseconds(1000)).ok());
}

TEST(RateLimitsTest, WithoutARateEverythingGoes) {
  RateLimits limits(0.0, 1.0);
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(limits.Take("a", {}).ok());
}

}  // namespace
}  // namespace thinwire
