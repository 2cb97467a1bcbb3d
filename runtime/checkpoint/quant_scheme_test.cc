#include "runtime/checkpoint/quant_scheme.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

QuantScheme Scheme(int weight_bits, int act_bits, int kv_bits) {
  return {.weight_bits = weight_bits, .act_bits = act_bits, .kv_bits = kv_bits};
}

TEST(QuantSchemeTest, KnowsTheNamesOfThePaper) {
  const std::pair<const char*, QuantScheme> names[] = {
      {"w16a16", Scheme(16, 16, 16)}, {"w4a16", Scheme(4, 16, 16)}, {"w4a8", Scheme(4, 8, 8)},
      {"w4a4", Scheme(4, 4, 4)},      {"w4a4kv", Scheme(4, 16, 4)}, {"w4a3kv", Scheme(4, 16, 3)},
      {"w3a3kv", Scheme(3, 16, 3)},
  };
  for (const auto& [name, scheme] : names) {
    EXPECT_EQ(ParseScheme(name).value(), scheme) << name;
    EXPECT_EQ(SchemeName(scheme), name);
  }
}

TEST(QuantSchemeTest, EveryMixHasANameThatReadsBack) {
  std::set<std::string> names;
  for (const int weight_bits : {16, 4, 3, 2}) {
    for (const int act_bits : {16, 8, 4}) {
      for (const int kv_bits : {16, 8, 4, 3}) {
        const QuantScheme scheme = Scheme(weight_bits, act_bits, kv_bits);
        const std::string name = SchemeName(scheme);
        EXPECT_EQ(ParseScheme(name).value(), scheme) << name;
        names.insert(name);
      }
    }
  }
  EXPECT_EQ(names.size(), 4u * 3 * 4);
  EXPECT_EQ(SchemeName(Scheme(4, 8, 4)), "w4a8kv4");
  EXPECT_EQ(ParseScheme("w4a16kv4").value(), Scheme(4, 16, 4));
  EXPECT_EQ(ParseScheme("w16a8kv").value(), Scheme(16, 16, 8));
  EXPECT_EQ(ParseScheme("w3a4").value(), Scheme(3, 4, 4));
}

TEST(QuantSchemeTest, RefusesOtherNames) {
  for (const char* name : {"", "w", "w4", "w4a", "w5a16", "w4a3", "w4a16kv", "w4a3kv4", "w4a4kv5",
                           "w4a4kvv", "w4a4kv44", "w4a4kv4 ", "W4A4", "w4a1", "a4w4", "w1a16"}) {
    const absl::Status status = ParseScheme(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("found \"") + name + "\""));
  }
}

TEST(QuantSchemeTest, SitesHaveTheWidthsOfThePaper) {
  const auto bits = [](const char* name) {
    std::vector<int> widths;
    for (const QuantSite site : kQuantSites) {
      widths.push_back(SiteBits(ParseScheme(name).value(), site));
    }
    return widths;
  };
  using ::testing::ElementsAre;
  // qkv_in, q, k, v, out_in, mlp_in, down_in.
  EXPECT_THAT(bits("w4a16"), ElementsAre(16, 16, 16, 16, 16, 16, 16));
  EXPECT_THAT(bits("w4a8"), ElementsAre(8, 8, 8, 8, 8, 8, 8));
  EXPECT_THAT(bits("w4a4"), ElementsAre(8, 4, 4, 4, 4, 8, 4));
  EXPECT_THAT(bits("w4a4kv"), ElementsAre(16, 16, 4, 4, 16, 16, 16));
  EXPECT_THAT(bits("w3a3kv"), ElementsAre(16, 16, 3, 3, 16, 16, 16));
  EXPECT_THAT(bits("w4a8kv4"), ElementsAre(8, 8, 4, 4, 8, 8, 8));
}

TEST(QuantSchemeTest, SitesHaveDistinctNames) {
  std::set<absl::string_view> names;
  for (const QuantSite site : kQuantSites) names.insert(SiteName(site));
  EXPECT_EQ(names.size(), kQuantSites.size());
  EXPECT_EQ(SiteName(QuantSite::kDownIn), "down_in");
}

TEST(QuantSchemeTest, NamesOfVectorsAreReadBack) {
  const QuantScheme weights = {
      .vptq = {.length = 8, .index_bits = 12, .residual = true, .residual_bits = 8}};
  EXPECT_EQ(SchemeName(weights), "vptq-v8-k4096-r256");
  EXPECT_EQ(ParseScheme("vptq-v8-k4096-r256").value(), weights);
  EXPECT_EQ(weights.weight_format(), WeightFormat::kVptq);
  const QuantScheme all = {.act_bits = 8, .kv_bits = 4, .vptq = {.length = 6, .index_bits = 16}};
  EXPECT_EQ(SchemeName(all), "vptq-v6-k65536-a8kv4");
  EXPECT_EQ(ParseScheme(SchemeName(all)).value(), all);
  const QuantScheme mixed = {.vptq = {.length = 6,
                                      .index_bits = 8,
                                      .num_groups = 4,
                                      .outlier_percent = 2,
                                      .outlier_length = 4,
                                      .outlier_bits = 9,
                                      .norm = false}};
  EXPECT_EQ(SchemeName(mixed), "vptq-v6-k256-g4-o2v4k512-raw");
  EXPECT_EQ(ParseScheme(SchemeName(mixed)).value(), mixed);
  const QuantScheme raw = {.vptq = {.length = 3, .index_bits = 6, .norm = false}};
  EXPECT_EQ(SchemeName(raw), "vptq-v3-k64-raw");
  EXPECT_EQ(ParseScheme(SchemeName(raw)).value(), raw);
  const QuantScheme bytes = {
      .kv_bits = 4,
      .vptq = {.length = 8, .index_bits = 12, .num_groups = 2, .byte_books = true, .norm = false}};
  EXPECT_EQ(SchemeName(bytes), "vptq-v8-k4096-g2-c8-raw-a16kv4");
  EXPECT_EQ(ParseScheme(SchemeName(bytes)).value(), bytes);
  const QuantScheme few = {.vptq = {.byte_books = true, .centibits = 210}};
  EXPECT_EQ(SchemeName(few), "vptq-b2.10-c8");
  EXPECT_EQ(ParseScheme(SchemeName(few)).value(), few);
  const QuantScheme budget = {.kv_bits = 4, .vptq = {.centibits = 205}};
  EXPECT_EQ(SchemeName(budget), "vptq-b2.05-a16kv4");
  EXPECT_EQ(ParseScheme(SchemeName(budget)).value(), budget);
  EXPECT_EQ(budget.weight_format(), WeightFormat::kVptq);
  for (const char* wrong :
       {"vptq-b2",         "vptq-b2.1",          "vptq-b0.99",        "vptq-b8.01",
        "vptq-v8-k16-c4",  "vptq-v8-k16-raw-c8", "vptq-b2-c8",        "vptq-v8-k16-c8-c8",
        "vptq-b2.100",     "vptq-b2.-1",         "vptq-v8-k16-g1",    "vptq-v8-k16-o0v2k4",
        "vptq-v8-k16-o1",  "vptq-v8-k16-o1v2k3", "vptq-v8-k16-g2-r4", "vptq-v8-k16-r",
        "vptq-v8",         "vptq-v8-k100",       "vptq-v0-k16",       "vptq-v17-k16",
        "vptq-v8-k1",      "vptq-v8-k16-r3",     "vptq-v8-k016",      "vptq-v8-k16-r4-r4",
        "vptq-v8-k131072", "vptq-v8-k16-a5",     "vptq-v8-k16-"}) {
    EXPECT_EQ(ParseScheme(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace thinwire
