#include "runtime/batch/stop_text.h"

#include <random>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

// Pushes `text` in pieces of the given sizes (the rest as one) and returns all that comes out.
std::string PushAll(const std::vector<std::string>& stops, const std::string& text,
                    const std::vector<size_t>& sizes) {
  StopText stop(stops);
  std::string out;
  size_t begin = 0;
  for (const size_t size : sizes) {
    if (begin >= text.size()) break;
    out += stop.Push(text.substr(begin, size));
    begin += size;
  }
  if (begin < text.size()) out += stop.Push(text.substr(begin));
  return out + stop.Flush();
}

TEST(StopTextTest, HoldsBackWhatMayBecomeAStop) {
  StopText stop({"###"});
  EXPECT_EQ(stop.Push("a#"), "a");
  EXPECT_EQ(stop.Push("#b"), "##b");
  EXPECT_EQ(stop.Push("c##"), "c");
  EXPECT_FALSE(stop.stopped());
  EXPECT_EQ(stop.Push("#d"), "");
  EXPECT_TRUE(stop.stopped());
  EXPECT_EQ(stop.Push("more"), "");
  EXPECT_EQ(stop.Flush(), "");
}

TEST(StopTextTest, WithoutStopsEverythingPasses) {
  StopText stop({});
  EXPECT_EQ(stop.Push("abc"), "abc");
  EXPECT_EQ(stop.Flush(), "");
}

TEST(StopTextTest, AnUnfinishedStopIsTextInTheEnd) {
  StopText stop({"END"});
  EXPECT_EQ(stop.Push("xEN"), "x");
  EXPECT_EQ(stop.Flush(), "EN");
}

TEST(StopTextTest, TheFirstCompleteStopDecidesHoweverTheTextIsCut) {
  EXPECT_EQ(PushAll({"abcd", "bc"}, "xabcdy", {}), "xa");
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    const auto draw = [&](int high) { return static_cast<int>(random() % high); };
    const auto word = [&](int length) {
      std::string word;
      for (int i = 0; i < length; ++i) word += static_cast<char>('a' + draw(2));
      return word;
    };
    const std::vector<std::string> stops = {word(1 + draw(5)), word(1 + draw(5))};
    const std::string text = word(draw(30));
    std::vector<size_t> sizes;
    for (int i = 0; i < 30; ++i) sizes.push_back(1 + draw(4));
    EXPECT_EQ(PushAll(stops, text, sizes), PushAll(stops, text, std::vector<size_t>(30, 1)))
        << text << " " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace thinwire
