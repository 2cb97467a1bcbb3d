#include "runtime/tokenizer/regex.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/tokenizer/split.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Matches(absl::string_view pattern, absl::string_view text) {
  std::vector<ByteRange> ranges;
  EXPECT_TRUE(Regex::Compile(pattern)->FindAll(text, &ranges).ok());
  std::vector<std::string> matches;
  for (const ByteRange& range : ranges) {
    matches.emplace_back(text.substr(range.begin, range.end - range.begin));
  }
  return matches;
}

TEST(RegexTest, WhitespaceIsUnicodeWhiteSpaceInsideAndOutsideOfClasses) {
  const std::string text = "a\u00A0\u3000\u0085b\u180E\u200B";
  EXPECT_THAT(Matches(R"(\s+)", text), ElementsAre("\u00A0\u3000\u0085"));
  EXPECT_THAT(Matches(R"([\s]+)", text), ElementsAre("\u00A0\u3000\u0085"));
  EXPECT_THAT(Matches(R"([^\s]+)", text), ElementsAre("a", "b\u180E\u200B"));
  EXPECT_THAT(Matches(R"(\S+)", text), ElementsAre("a", "b\u180E\u200B"));
  EXPECT_THAT(Matches(R"([\S]+)", text), ElementsAre("a", "b\u180E\u200B"));
  EXPECT_THAT(Matches(R"([\s\S]+)", "a \n"), ElementsAre("a \n"));
}

TEST(RegexTest, OtherShorthandsGoByUnicodeProperty) {
  EXPECT_THAT(Matches(R"(\w+)", "e\u0301_1²½-x"), ElementsAre("e\u0301_1²½", "x"));
  EXPECT_THAT(Matches(R"(\d+)", "1٣²a"), ElementsAre("1٣"));
  EXPECT_THAT(Matches(R"(\h+)", "12fg"), ElementsAre("12f"));
  EXPECT_THAT(Matches(R"(\bé)", "aé é"), ElementsAre("é"));
  EXPECT_THAT(Matches(R"(\p{L}{2,}|\P{L})", "ab1c"), ElementsAre("ab", "1"));
  EXPECT_THAT(Matches(R"((?i:'s|'ll))", "'S'LL'ſ"), ElementsAre("'S", "'LL", "'ſ"));
}

TEST(RegexTest, LinesAreThoseOfOniguruma) {
  EXPECT_THAT(Matches("^a$", "a\na\r\na"), ElementsAre("a", "a"));
  EXPECT_THAT(Matches("a.b", "a\nb"), ElementsAre());
  EXPECT_THAT(Matches("(?m:a.b)", "a\nb"), ElementsAre("a\nb"));
  EXPECT_THAT(Matches("a{,2}", "aaa"), ElementsAre("aa", "a"));
}

TEST(RegexTest, EmptyMatchesCountUnlessTheyTouchTheMatchBefore) {
  EXPECT_THAT(Matches("x*", "axxb"), ElementsAre("", "xx", ""));
  EXPECT_THAT(Matches("x*", ""), ElementsAre(""));
  EXPECT_THAT(Matches("é*", "中éé"), ElementsAre("", "éé"));
}

TEST(RegexTest, LongTextsNeedNoStack) {
  const std::string text(300000, 'a');
  EXPECT_EQ(Matches("(?:a|b)+", text).size(), 1u);
  EXPECT_EQ(Matches(R"(\s+(?!\S)|\s+)", std::string(300000, ' ') + "x").size(), 2u);
}

TEST(RegexTest, WhatIsNotSupportedIsSaid) {
  for (const char* pattern : {"[a[b]]", "[a&&b]", "[\\W]", "a{1,2}+"}) {
    const absl::Status status = Regex::Compile(pattern).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << pattern;
    EXPECT_THAT(std::string(status.message()), HasSubstr(pattern));
  }
  const absl::Status status = Regex::Compile("(abc").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"(abc\""));
  EXPECT_FALSE(Regex::Compile("\\").ok());
  EXPECT_FALSE(Regex::Compile("[").ok());
  EXPECT_FALSE(Regex::Compile("\\p{").ok());
}

std::vector<std::string> Split(absl::string_view text, SplitBehavior behavior, bool invert) {
  const Regex regex = Regex::Compile("-").value();
  PieceList list;
  list.text = std::string(text);
  list.pieces = {{{0, text.size()}, true}};
  const auto find = [&](absl::string_view piece, std::vector<ByteRange>* matches) {
    return regex.FindAll(piece, matches);
  };
  EXPECT_TRUE(SplitPieces(find, behavior, invert, &list).ok());
  std::vector<std::string> pieces;
  for (const PieceList::Piece& piece : list.pieces) {
    pieces.emplace_back(list.Text(piece));
    EXPECT_EQ(piece.at_start, piece.range.begin == 0);
  }
  return pieces;
}

TEST(SplitTest, BehavioursDifferInWhatTheyDoWithMatches) {
  const std::string text = "the-final--countdown";
  EXPECT_THAT(Split(text, SplitBehavior::kRemoved, false),
              ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Split(text, SplitBehavior::kIsolated, false),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Split(text, SplitBehavior::kMergedWithPrevious, false),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(Split(text, SplitBehavior::kMergedWithNext, false),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(Split(text, SplitBehavior::kContiguous, false),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(Split(text, SplitBehavior::kRemoved, true), ElementsAre("-", "-", "-"));
}

}  // namespace
}  // namespace thinwire
