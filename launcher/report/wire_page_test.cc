#include "launcher/report/wire_page.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/plot/gnuplot.h"
#include "launcher/report/inline_svg.h"
#include "launcher/report/quantity.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kEmptySvg[] = "<?xml version=\"1.0\"?>\n<svg\n viewBox=\"0 0 9 9\"\n>\n</svg>\n";

RunRecord RunOf(const std::string& wire, int64_t sent) {
  RunRecord run;
  run.file = wire + ".json";
  run.model = "models/opt-nano";
  run.dtype = "fp16";
  run.wire = wire;
  run.tp = 2;
  run.num_layers = 4;
  run.prompt_tokens = 20;
  run.generated_tokens = 80;
  run.tokens_per_second = 1234.5;
  run.step_us = 1e6;
  run.sites = {{.site = "attention_out",
                .logical_bytes = 45600000,
                .payload_bytes = sent - 1000,
                .metadata_bytes = 1000,
                .calls = 12345,
                .transfer_us = 5e5,
                .codec_us = 1e5}};
  return run;
}

// The page, and the scripts of its pictures.
struct Drawn {
  explicit Drawn(const Recordings& recordings) {
    page = WirePage(recordings, "1.2.3", [this](absl::string_view script) {
             scripts.emplace_back(script);
             return absl::StatusOr<std::string>(kEmptySvg);
           }).value();
  }

  std::string page;
  std::vector<std::string> scripts;
};

TEST(WirePageTest, TheHeadlineComparesWithFp16) {
  const Drawn drawn({.files = {"a.json"}, .runs = {RunOf("one-shot-q4", 12312000)}});
  EXPECT_THAT(drawn.page, HasSubstr("<strong>one-shot-q4</strong> sent 27 % of fp16's bytes: "
                                    "12.3 MB instead of 45.6 MB"));
  EXPECT_THAT(drawn.page, AllOf(HasSubstr("12\u202f345"),     // calls
                                HasSubstr("<td>25 %</td>"),   // of 2 s in transfer
                                HasSubstr("<td>5.0 %</td>"),  // and in codecs
                                HasSubstr("<dt>metadata</dt>"), HasSubstr("thinwire 1.2.3")));
  // 12311 kB over 100 tokens and 4 layers.
  ASSERT_EQ(drawn.scripts.size(), 2u);  // one run has none beside it
  EXPECT_THAT(drawn.scripts[0], AllOf(HasSubstr("'kB a token, in each decoder layer'"),
                                      HasSubstr(" 0 30.78\n"), HasSubstr(" 0 114\n")));
}

TEST(WirePageTest, LayersCountTogetherWhereTheirNumberIsNotKnown) {
  Recordings recordings = {.runs = {RunOf("exact", 40000000), RunOf("fp16", 45600000)}};
  recordings.runs[1].num_layers.reset();
  const Drawn drawn(recordings);
  ASSERT_EQ(drawn.scripts.size(), 3u);
  EXPECT_THAT(drawn.scripts[0],
              AllOf(HasSubstr("'kB a token, in all decoder layers'"), HasSubstr(" 0 400\n")));
  EXPECT_THAT(drawn.page, HasSubstr("instead of 45.6 MB"));
}

TEST(WirePageTest, OneRankHasNothingToDraw) {
  RunRecord run = RunOf("native", 1000);
  run.tp = 1;
  run.sites.clear();
  const Drawn drawn({.runs = {run}});
  EXPECT_TRUE(drawn.scripts.empty());
  EXPECT_THAT(drawn.page, AllOf(HasSubstr("</strong>: one rank, nothing sent"),
                                Not(HasSubstr("<figure>")), Not(HasSubstr(">nan"))));
}

TEST(WirePageTest, StringsOfRecordingsAreText) {
  const std::string nasty = "<script>alert(\"1\")</script>&'\x01";
  RunRecord run = RunOf(nasty, 5000);
  run.model = run.scheme = run.dtype = run.file = run.sites[0].site = nasty;
  CommRecord comm = {.strategy = nasty, .ranks = 2, .logical_bytes = 64, .p50_us = 3.0};
  comm.error = nasty;
  const Drawn drawn({.files = {nasty}, .runs = {run, run}, .comm = {comm}});
  EXPECT_THAT(drawn.page,
              AllOf(HasSubstr("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;' "),
                    Not(HasSubstr("<script")), Not(HasSubstr("alert(\""))));
}

TEST(WirePageTest, NothingComesFromElsewhere) {
  const Drawn drawn({.files = {"a.json"}, .runs = {RunOf("exact", 12311000)}});
  EXPECT_THAT(drawn.page, AllOf(HasSubstr("default-src 'none'"), HasSubstr("prefers-color-scheme"),
                                Not(HasSubstr("://")), Not(HasSubstr("src=\"")),
                                Not(HasSubstr("<link")), Not(HasSubstr("@import"))));
}

TEST(WirePageTest, CollectivesAreDrawnBySize) {
  Recordings recordings;
  for (const char* strategy : {"fp16", "one-shot-q4"}) {
    for (const int64_t size : {4096, 1 << 20}) {
      recordings.comm.push_back({.strategy = strategy,
                                 .ranks = 2,
                                 .logical_bytes = size,
                                 .p50_us = 30.0 + size / 1e5,
                                 .p99_us = 99.0,
                                 .wire_bytes = size / 4});
    }
  }
  recordings.comm.push_back(
      {.strategy = "exact", .ranks = 2, .logical_bytes = 4096, .error = "refused"});
  const Drawn drawn(recordings);
  ASSERT_EQ(drawn.scripts.size(), 1u);
  EXPECT_THAT(drawn.scripts[0],
              AllOf(HasSubstr("set logscale xy"), HasSubstr("'4 KiB' 4096"),
                    HasSubstr("'1 MiB' 1048576"), HasSubstr("$line1"), Not(HasSubstr("$line2"))));
  EXPECT_THAT(drawn.page, AllOf(HasSubstr("1.02 kB"), HasSubstr("<td>refused</td>")));
  recordings.comm = {recordings.comm.back()};
  EXPECT_TRUE(Drawn(recordings).scripts.empty());
}

TEST(WirePageTest, PicturesKeepTheirTextAndTheirColours) {
  const RunRecord other = RunOf("<b>'; `x` {", 20000000);
  Recordings recordings = {.runs = {RunOf("exact", 12311000), other}};
  recordings.comm = {{.strategy = "fp16", .ranks = 2, .logical_bytes = 64, .p50_us = 3.0}};
  const absl::StatusOr<std::string> page = WirePage(recordings, "1", RunGnuplot);
  if (page.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << page.status();
  ASSERT_TRUE(page.ok()) << page.status();
  size_t pictures = 0;
  for (size_t at = page->find("<svg"); at != page->npos; at = page->find("<svg", at + 1)) {
    ++pictures;
  }
  EXPECT_EQ(pictures, 4u);
  EXPECT_THAT(*page, AllOf(HasSubstr("<text>attention_out</text>"),
                           HasSubstr("<text>2\u2002&lt;b>'; `x` {</text>"), HasSubstr("var(--s1)"),
                           HasSubstr("var(--ink)"), HasSubstr("<title id=\"sites-title\">"),
                           HasSubstr("role=\"img\"")));
  EXPECT_THAT(*page, AllOf(Not(HasSubstr("rgb(")), Not(HasSubstr("xlink")), Not(HasSubstr("#gp")),
                           Not(HasSubstr("://"))));
}

TEST(InlineSvgTest, WhatIsNoSvgIsRefused) {
  EXPECT_EQ(InlineSvg("", "a", "b").status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(InlineSvg("<svg></svg>", "a", "b").status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(InlineSvg(kEmptySvg, "a", "x<y").value(),
              AllOf(HasSubstr("<svg viewBox=\"0 0 9 9\""), HasSubstr("x&lt;y</title>")));
}

TEST(QuantityTest, NumbersHaveThreeDigits) {
  EXPECT_EQ(FormatBytes(17), "17 B");
  EXPECT_EQ(FormatBytes(1.5), "1.50 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(999600), "1.00 MB");
  EXPECT_EQ(FormatBytes(45.6e6), "45.6 MB");
  EXPECT_EQ(FormatPercent(0.27), "27 %");
  EXPECT_EQ(FormatPercent(0.027), "2.7 %");
  EXPECT_EQ(FormatPercent(0.00027), "0.03 %");
  EXPECT_EQ(FormatPercent(0.00001), "< 0.01 %");
  EXPECT_EQ(FormatPercent(1.99), "199 %");
  EXPECT_EQ(FormatMessageSize(65536), "64 KiB");
  EXPECT_EQ(FormatMessageSize(65537), "65.5 kB");
  EXPECT_EQ(FormatCount(1234567), "1\u202f234\u202f567");
  EXPECT_EQ(FormatCount(123), "123");
}

TEST(QuantityTest, ColumnsShareTheirDecimals) {
  EXPECT_EQ(CommonDecimals({}), 0);
  EXPECT_EQ(CommonDecimals({12.3, 0.656}), 2);
  EXPECT_EQ(CommonDecimals({123.0, 45.0, 0.0}), 0);
  EXPECT_EQ(CommonDecimals({1e-9}), 4);
}

}  // namespace
}  // namespace thinwire
