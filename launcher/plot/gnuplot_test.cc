#include "launcher/plot/gnuplot.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(GnuplotTest, StringsAreOneQuotedLine) {
  EXPECT_EQ(GnuplotString("it's"), "'it''s'");
  EXPECT_EQ(GnuplotString("a\nb\x01\\n"), "'a b \\n'");
  EXPECT_EQ(GnuplotString(""), "''");
  EXPECT_EQ(GnuplotString("'a'"), "' ''a'''");
}

TEST(GnuplotTest, NothingInAStringIsExpanded) {
  const std::string text = "'; system 'x' `echo run` @GPVAL_VERSION {{ \\";
  const absl::StatusOr<std::string> svg = RunGnuplot("set terminal svg noenhanced\nplot x title " +
                                                     GnuplotString(text) + "\nunset key\n");
  if (svg.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << svg.status();
  ASSERT_TRUE(svg.ok()) << svg.status();
  EXPECT_THAT(*svg, HasSubstr("<text> " + text + "</text>"));
}

TEST(GnuplotTest, AnErrorIsTheFirstThatGnuplotSays) {
  const absl::Status status = RunGnuplot("set terminal svg\nplot nothing\n").status();
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("gnuplot-nox"));
    GTEST_SKIP() << status;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("undefined variable: nothing"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
}

}  // namespace
}  // namespace thinwire
