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

TEST(RateLimitsTest, ARequestThatHoldsManyIsPaidForAfterwards) {
  RateLimits limits(/*rate=*/1.0, /*burst=*/2.0);
  const RateLimits::Clock::time_point start;
  EXPECT_TRUE(limits.Take("a", start).ok());
  limits.Charge("a", 127, start);
  EXPECT_EQ(RetryHint(limits.Take("a", start)), absl::Seconds(127));
  EXPECT_FALSE(limits.Take("a", start + milliseconds(126999)).ok());
  EXPECT_TRUE(limits.Take("a", start + milliseconds(127000)).ok());
}

TEST(RateLimitsTest, AClientIsOneHoweverItsAddressIsWritten) {
  EXPECT_EQ(RateKey("1.2.3.4"), "1.2.3.4");
  for (const char* v4 : {"ipv4:1.2.3.4", "::ffff:1.2.3.4", "ipv6:[::ffff:1.2.3.4]"}) {
    EXPECT_EQ(RateKey(v4), "1.2.3.4") << v4;
  }
  const std::string v6 = RateKey("2001:db8:0:1::5");
  EXPECT_EQ(v6, "2001:db8:0:1::/64");
  for (const char* same :
       {"2001:db8:0:1:ffff::", "ipv6:[2001:db8:0:1::7]", "ipv6:%5B2001:db8:0:1::9%5D"}) {
    EXPECT_EQ(RateKey(same), v6) << same;
  }
  EXPECT_NE(RateKey("2001:db8:0:2::5"), v6);
  EXPECT_EQ(RateKey("a tenant"), "a tenant");
  const std::string name(60000, 'x');
  EXPECT_LT(RateKey(name).size(), 100u);
  EXPECT_NE(RateKey(name), RateKey(absl::StrCat(name, "y")));
}

TEST(RateLimitsTest, OfTooManyClientsThoseWhoUsedMostAreRemembered) {
  RateLimits limits(/*rate=*/1e-3, /*burst=*/2.0);
  const RateLimits::Clock::time_point now;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(limits.Take("greedy", now).ok());
  for (int i = 0; i < 200000; ++i) ASSERT_TRUE(limits.Take(absl::StrCat(i), now).ok());
  EXPECT_LE(limits.num_clients(), 65536u);
  EXPECT_FALSE(limits.Take("greedy", now).ok());
}

TEST(RateLimitsTest, WithoutARateEverythingGoes) {
  RateLimits limits(0.0, 1.0);
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(limits.Take("a", {}).ok());
}

}  // namespace
}  // namespace thinwire
