#include "parallel/comm/stripes.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(StripesTest, PartsFollowEachOtherAndMakeUpTheMessage) {
  for (const int64_t bytes : {1, 15, 16, 17, 255, 256, 4097, 65536, 1000003}) {
    for (const int most : {1, 2, 3, 4, 8}) {
      for (const int64_t least : {1, 16, 100, 4096, 1 << 20}) {
        const std::vector<Stripe> stripes = CutIntoStripes(bytes, most, least);
        ASSERT_FALSE(stripes.empty());
        EXPECT_LE(stripes.size(), static_cast<size_t>(most));
        int64_t end = 0;
        for (const Stripe& stripe : stripes) {
          EXPECT_EQ(stripe.begin, end);
          EXPECT_EQ(stripe.begin % kStripeAlignment, 0);
          EXPECT_GT(stripe.size(), 0);
          if (stripes.size() > 1) {
            EXPECT_GT(stripe.size(), least - kStripeAlignment);
          }
          EXPECT_LE(stripe.size(), bytes / static_cast<int64_t>(stripes.size()) + kStripeAlignment);
          end = stripe.end;
        }
        EXPECT_EQ(end, bytes);
      }
    }
  }
}

TEST(StripesTest, SmallMessagesStayWhole) {
  EXPECT_EQ(CutIntoStripes(199, 4, 100), (std::vector<Stripe>{{0, 199}}));
  EXPECT_EQ(CutIntoStripes(200, 4, 100), (std::vector<Stripe>{{0, 96}, {96, 200}}));
  EXPECT_EQ(CutIntoStripes(1 << 20, 4, 100).size(), 4u);
}

}  // namespace
}  // namespace thinwire
