#include "runtime/checkpoint/rptq_file.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// 3 heads of 4, one of them for K and V; ffn 8.
ModelConfig SmallConfig() {
  ModelConfig config;
  config.hidden = 6;
  config.num_layers = 2;
  config.num_heads = 3;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.ffn = 8;
  return config;
}

// Every position its own channel, shuffled inside blocks; two clusters a block.
SiteCodes Coded(const ModelConfig& config, QuantSite site, int tp, std::mt19937& random) {
  const int64_t width = SiteWidth(config, site);
  const int64_t block = SiteBlock(config, site, tp);
  SiteCodes codes;
  codes.order.resize(width);
  std::iota(codes.order.begin(), codes.order.end(), 0);
  for (int64_t begin = 0; begin < width; begin += block) {
    std::shuffle(codes.order.begin() + begin, codes.order.begin() + begin + block, random);
    for (const int64_t cluster : {begin, begin + block / 2}) {
      codes.offsets.push_back(static_cast<int32_t>(cluster));
      codes.bits.push_back(static_cast<uint8_t>(1 + random() % 8));
    }
  }
  codes.offsets.push_back(static_cast<int32_t>(width));
  for (int64_t j = 0; j < width; ++j) {
    codes.step.push_back(std::ldexp(1.0f, static_cast<int>(random() % 40) - 20));
    codes.zero.push_back(static_cast<float>(random() % 1000) / 7 - 60);
  }
  return codes;
}

RptqFile Sample(const ModelConfig& config) {
  std::mt19937 random(7);
  RptqFile file = {.tp = 2};
  file.layers.resize(config.num_layers);
  for (LayerCodes& layer : file.layers) {
    for (const QuantSite site : kQuantSites) layer.at(site) = Coded(config, site, 2, random);
  }
  LayerCodes& last = file.layers.back();
  last.at(QuantSite::kQ) = SiteCodes();
  last.at(QuantSite::kOutIn).gain = "rms";
  last.at(QuantSite::kDownIn).gain = "max";
  SiteCodes& reordered = last.at(QuantSite::kQkvIn);
  reordered.step.clear();
  reordered.zero.clear();
  reordered.offsets = {0, 6};
  reordered.bits = {16};
  SiteCodes& table = last.at(QuantSite::kMlpIn);
  std::fill(table.bits.begin(), table.bits.end(), 4);
  for (int i = 0; i < 16; ++i) table.levels.push_back(static_cast<uint8_t>(i * 17));
  SiteCodes& looked_at = last.at(QuantSite::kDownIn);
  for (int j = 0; j < 8; ++j) {
    looked_at.minimum.push_back(-1.5f * static_cast<float>(j));
    looked_at.maximum.push_back(static_cast<float>(j));
  }
  last.at(QuantSite::kV).original_minimum = {-4, -3, 0, 1};
  last.at(QuantSite::kV).original_maximum = {-4, 3, 0, 2};
  return file;
}

TEST(RptqFileTest, ReadsBackWhatItWroteWithEqualBytes) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  const RptqFile file = Sample(config);
  ASSERT_TRUE(WriteRptqFile(folder.path(), file, config).ok());
  const RptqFile read = ReadRptqFile(folder.path(), config).value();
  EXPECT_EQ(read.tp, 2);
  EXPECT_EQ(read.layers, file.layers);
  const std::string bytes = folder.Read(kRptqFileName);
  ASSERT_TRUE(WriteRptqFile(folder.path(), read, config).ok());
  EXPECT_EQ(folder.Read(kRptqFileName), bytes);
}

TEST(RptqFileTest, FormatOneIsPinned) {
  ModelConfig config = SmallConfig();
  config.num_layers = 1;
  RptqFile file = {.tp = 0, .layers = std::vector<LayerCodes>(1)};
  SiteCodes& k = file.layers[0].at(QuantSite::kK);
  k = {.order = {2, 0, 1, 3},
       .offsets = {0, 1, 4},
       .bits = {4, 4},
       .step = {1, 2, 4, 8},
       .zero = {0, -1, 0.5, 2},
       .gain = "max",
       .minimum = {-1, -2, -3, -4},
       .maximum = {1, 2, 3, 4},
       .original_minimum = {-5, -6, -7, -8},
       .original_maximum = {5, 6, 7, 8}};
  for (int i = 0; i < 16; ++i) k.levels.push_back(static_cast<uint8_t>(i + 3));
  const TestFolder folder;
  ASSERT_TRUE(WriteRptqFile(folder.path(), file, config).ok());
  std::string header = R"({"__metadata__":{"format":"thinwire-rptq-1","tp":"0"},)"
                       R"("layers.0.k.order":{"dtype":"I32","shape":[4],"data_offsets":[0,16]},)"
                       R"("layers.0.k.offsets":{"dtype":"I32","shape":[3],"data_offsets":[16,28]},)"
                       R"("layers.0.k.step":{"dtype":"F32","shape":[4],"data_offsets":[28,44]},)"
                       R"("layers.0.k.zero":{"dtype":"F32","shape":[4],"data_offsets":[44,60]},)"
                       R"("layers.0.k.range":{"dtype":"F32","shape":[2,4],)"
                       R"("data_offsets":[60,92]},)"
                       R"("layers.0.k.original_range":{"dtype":"F32","shape":[2,4],)"
                       R"("data_offsets":[92,124]},)"
                       R"("layers.0.k.bits":{"dtype":"U8","shape":[2],"data_offsets":[124,126]},)"
                       R"("layers.0.k.levels":{"dtype":"U8","shape":[16],)"
                       R"("data_offsets":[126,142]},)"
                       R"("layers.0.k.gain":{"dtype":"U8","shape":[1],"data_offsets":[142,143]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::string data =
      BytesOf<int32_t>({2, 0, 1, 3, 0, 1, 4}) + BytesOf<float>({1, 2, 4, 8, 0, -1, 0.5, 2}) +
      BytesOf<float>({-1, -2, -3, -4, 1, 2, 3, 4, -5, -6, -7, -8, 5, 6, 7, 8}) +
      BytesOf<uint8_t>({4, 4, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 2});
  EXPECT_EQ(folder.Read(kRptqFileName), SafetensorsBytes(header, data));
}

TEST(RptqFileTest, TensorsOfFourBytesAreAligned) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  ASSERT_TRUE(WriteRptqFile(folder.path(), Sample(config), config).ok());
  const SafetensorsFile file = SafetensorsFile::Open(folder.Path(kRptqFileName)).value();
  for (const TensorInfo& tensor : file.tensors()) {
    EXPECT_EQ(tensor.offset % DTypeBytes(tensor.dtype, 1), 0) << tensor.name;
  }
}

TEST(RptqFileTest, WidthsAndBlocksAreThoseOfTheModel) {
  const ModelConfig config = SmallConfig();
  EXPECT_EQ(SiteWidth(config, QuantSite::kQkvIn), 6);
  EXPECT_EQ(SiteWidth(config, QuantSite::kOutIn), 12);
  EXPECT_EQ(SiteWidth(config, QuantSite::kV), 4);
  EXPECT_EQ(SiteWidth(config, QuantSite::kDownIn), 8);
  EXPECT_EQ(SiteBlock(config, QuantSite::kMlpIn, 4), 6);
  EXPECT_EQ(SiteBlock(config, QuantSite::kOutIn, 4), 4);
  EXPECT_EQ(SiteBlock(config, QuantSite::kDownIn, 4), 2);
  EXPECT_EQ(SiteBlock(config, QuantSite::kDownIn, 0), 8);
  const SiteCodes codes = {.order = {0, 1, 2, 3}, .offsets = {0, 1, 4}, .bits = {8, 4}};
  EXPECT_EQ(MeanBits(codes), 5.0);
  EXPECT_EQ(MeanBits(SiteCodes()), 16.0);
}

// Changes one site of a good file, which must then be refused when it is checked, before it is
// written.
template <typename Change>
void ExpectRefused(QuantSite site, const Change& change, const std::string& part,
                   const std::string& text) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  RptqFile file = Sample(config);
  change(file.layers[0].at(site));
  const absl::Status status = WriteRptqFile(folder.path(), file, config);
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(std::string(status.message()),
              AllOf(StartsWith(absl::StrCat(folder.Path(kRptqFileName), ": tensor \"layers.0.",
                                            SiteName(site), ".", part, "\": ")),
                    HasSubstr(text), Not(HasSubstr("\n"))));
  EXPECT_FALSE(std::filesystem::exists(folder.Path(kRptqFileName)));
}

TEST(RptqFileTest, OrdersMustBePermutationsInsideBlocks) {
  ExpectRefused(
      QuantSite::kQkvIn, [](SiteCodes& codes) { codes.order[5] = codes.order[4]; }, "order",
      "expected each channel once, found");
  ExpectRefused(
      QuantSite::kQkvIn, [](SiteCodes& codes) { codes.order[0] = 6; }, "order",
      "expected channels within [0, 6) at positions of this range, found 6 at 0");
  ExpectRefused(
      QuantSite::kMlpIn, [](SiteCodes& codes) { codes.order[1] = -1; }, "order", "found -1 at 1");
  ExpectRefused(
      QuantSite::kQkvIn, [](SiteCodes& codes) { codes.order.pop_back(); }, "order",
      "expected 6 channels, found 5");
  // Across heads, and across the blocks of tp.
  ExpectRefused(
      QuantSite::kOutIn, [](SiteCodes& codes) { std::swap(codes.order[3], codes.order[4]); },
      "order", "expected channels within [0, 4) at positions of this range");
  ExpectRefused(
      QuantSite::kDownIn, [](SiteCodes& codes) { std::swap(codes.order[3], codes.order[4]); },
      "order", "expected channels within [0, 4) at positions of this range");
}

TEST(RptqFileTest, ClustersMustCoverTheSiteInsideBlocks) {
  const auto offsets = [](std::vector<int32_t> values) {
    return [values](SiteCodes& codes) { codes.offsets = values; };
  };
  ExpectRefused(QuantSite::kK, offsets({0, 2}), "offsets", "expected 3 positions for 2 clusters");
  ExpectRefused(QuantSite::kK, offsets({0, 2, 3}), "offsets",
                "expected to go from 0 to 4, found 0 to 3");
  ExpectRefused(QuantSite::kK, offsets({1, 2, 4}), "offsets", "found 1 to 4");
  ExpectRefused(QuantSite::kK, offsets({0, 4, 4}), "offsets",
                "expected ascending positions up to 4, found 4 before 4");
  ExpectRefused(QuantSite::kK, offsets({0, -3, 4}), "offsets", "found 0 before -3");
  ExpectRefused(QuantSite::kK, offsets({0, 9, 4}), "offsets", "found 0 before 9");
  ExpectRefused(QuantSite::kDownIn, offsets({0, 2, 5, 6, 8}), "offsets",
                "expected each cluster inside a block of 4 channels, found [2, 5)");
  ExpectRefused(
      QuantSite::kK, [](SiteCodes& codes) { codes.bits.clear(); }, "bits",
      "expected one or more clusters, found none");
}

TEST(RptqFileTest, BitsStepsAndZerosMustBeUsable) {
  const auto bits = [](uint8_t value) {
    return [value](SiteCodes& codes) { codes.bits[1] = value; };
  };
  ExpectRefused(QuantSite::kV, bits(0), "bits", "expected 1 to 8 beside a step, found 0");
  ExpectRefused(QuantSite::kV, bits(9), "bits", "found 9");
  ExpectRefused(QuantSite::kV, bits(16), "bits", "found 16");
  ExpectRefused(
      QuantSite::kV,
      [](SiteCodes& codes) {
        codes.step.clear();
        codes.zero.clear();
        codes.bits = {16, 4};
      },
      "bits", "expected 16 without a step, found 4");
  for (const float step : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    ExpectRefused(
        QuantSite::kK, [step](SiteCodes& codes) { codes.step[2] = step; }, "step",
        "expected finite numbers > 0, found");
  }
  ExpectRefused(
      QuantSite::kK, [](SiteCodes& codes) { codes.zero[3] = std::nanf(""); }, "zero",
      "expected finite numbers, found nan at position 3");
  ExpectRefused(
      QuantSite::kK, [](SiteCodes& codes) { codes.zero.pop_back(); }, "step",
      "expected 4 steps and zeros, found 4 and 3");
}

TEST(RptqFileTest, LevelsAndGainsMustBeKnown) {
  ExpectRefused(
      QuantSite::kDownIn,
      [](SiteCodes& codes) {
        codes.levels = {1, 2, 3};
      },
      "levels", "expected 16 levels, found 3");
  ExpectRefused(
      QuantSite::kDownIn,
      [](SiteCodes& codes) { codes.levels = {1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 11, 12, 13, 14, 15}; },
      "levels", "expected 16 levels, found 15");
  ExpectRefused(
      QuantSite::kDownIn, [](SiteCodes& codes) { codes.levels = std::vector<uint8_t>(16, 3); },
      "levels", "expected ascending levels, found 3 before 3");
  ExpectRefused(
      QuantSite::kDownIn,
      [](SiteCodes& codes) {
        codes.levels.resize(16);
        std::iota(codes.levels.begin(), codes.levels.end(), uint8_t{0});
        codes.bits = {4, 4, 8, 4};
      },
      "bits", "expected 4 beside levels, found 8");
  ExpectRefused(
      QuantSite::kDownIn, [](SiteCodes& codes) { codes.gain = "mean"; }, "gain",
      "expected \"\", \"rms\" or \"max\", found \"mean\"");
  ExpectRefused(
      QuantSite::kQ, [](SiteCodes& codes) { codes = {.gain = "rms"}; }, "order",
      "expected beside the other tensors of its site, found none");
}

TEST(RptqFileTest, RangesMustBeFiniteAndWhole) {
  const auto range = [](std::vector<float> minimum, std::vector<float> maximum) {
    return [=](SiteCodes& codes) {
      codes.minimum = minimum;
      codes.maximum = maximum;
    };
  };
  const float infinity = std::numeric_limits<float>::infinity();
  ExpectRefused(QuantSite::kK, range({0, 0, 0, 0}, {0, 0, 0}), "range",
                "expected 4 minima and maxima, found 4 and 3");
  ExpectRefused(QuantSite::kK, range({}, {0, 0, 0, 0}), "range", "found 0 and 4");
  ExpectRefused(QuantSite::kK, range({0, 2, 0, 0}, {0, 1, 0, 0}), "range",
                "expected finite minima up to their maxima, found 2 and 1 at 1");
  ExpectRefused(QuantSite::kK, range({0, 0, 0, 0}, {0, 0, 0, infinity}), "range", "inf at 3");
  ExpectRefused(QuantSite::kK, range({0, std::nanf(""), 0, 0}, {0, 0, 0, 0}), "range", "nan");
  ExpectRefused(
      QuantSite::kDownIn, [](SiteCodes& codes) { codes.original_minimum = {1}; }, "original_range",
      "expected 8 minima and maxima, found 1 and 0");
  ExpectRefused(
      QuantSite::kQ,
      [](SiteCodes& codes) {
        codes = {.original_minimum = std::vector<float>(12),
                 .original_maximum = std::vector<float>(12)};
      },
      "order", "expected beside the other tensors of its site, found none");
}

TEST(RptqFileTest, LayersAndBlocksMustBeThoseOfTheModel) {
  const ModelConfig config = SmallConfig();
  RptqFile file = Sample(config);
  file.tp = 3;
  EXPECT_THAT(
      std::string(CheckRptq(file, config, "f").message()),
      HasSubstr("f: \"tp\": expected 0 or a divisor of the 8 channels of down_in, found 3"));
  file.tp = -1;
  EXPECT_EQ(CheckRptq(file, config, "f").code(), kInvalid);
  file.tp = 1;
  EXPECT_TRUE(CheckRptq(file, config, "f").ok());
  file.tp = 8;
  EXPECT_THAT(std::string(CheckRptq(file, config, "f").message()),
              HasSubstr("\"layers.0.down_in.order\": expected channels within"));
  file.tp = 2;
  file.layers.pop_back();
  EXPECT_THAT(std::string(CheckRptq(file, config, "f").message()),
              HasSubstr("f: expected 2 layers, found 1"));
}

// Files that no writer of ours makes.
void ExpectUnreadable(const std::string& metadata, const std::vector<TestTensor>& tensors,
                      absl::StatusCode code, const std::string& text) {
  const TestFolder folder;
  std::string header = absl::StrCat("{\"__metadata__\":{", metadata, "}");
  std::string data;
  for (const TestTensor& tensor : tensors) {
    absl::StrAppend(&header, ",\"", tensor.name, "\":{\"dtype\":\"", tensor.dtype,
                    "\",\"shape\":", ShapeString(tensor.shape), ",\"data_offsets\":[", data.size(),
                    ",", data.size() + tensor.bytes.size(), "]}");
    data += tensor.bytes;
  }
  const std::string path = folder.Write(kRptqFileName, SafetensorsBytes(header + "}", data));
  const absl::Status status = ReadRptqFile(folder.path(), SmallConfig()).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(StartsWith(path + ": "), HasSubstr(text)));
}

constexpr char kMetadata[] = R"("format":"thinwire-rptq-1","tp":"0")";

TEST(RptqFileTest, OtherFormatsAreRefused) {
  ExpectUnreadable("", {}, kInvalid, "expected \"format\", found none");
  ExpectUnreadable(R"("format":"pt")", {}, kInvalid,
                   "expected \"format\" \"thinwire-rptq-1\", found \"pt\"");
  ExpectUnreadable(R"("format":"thinwire-rptq-x")", {}, kInvalid, "found \"thinwire-rptq-x\"");
  ExpectUnreadable(R"("format":"thinwire-rptq-2")", {}, absl::StatusCode::kUnimplemented,
                   "expected format thinwire-rptq-1, found \"thinwire-rptq-2\"");
  ExpectUnreadable(R"("format":"thinwire-rptq-1")", {}, kInvalid, "expected \"tp\", found none");
  ExpectUnreadable(R"("format":"thinwire-rptq-1","tp":"x")", {}, kInvalid,
                   "\"tp\": expected a number, found \"x\"");
  ExpectUnreadable(R"("format":"thinwire-rptq-1","tp":"5")", {}, kInvalid,
                   "a divisor of the 8 channels of down_in, found 5");
}

TEST(RptqFileTest, TensorsOfOtherTypesOrNamesAreRefused) {
  const TestTensor order = {"layers.1.k.order", "I32", {4}, BytesOf<int32_t>({0, 1, 2, 3})};
  const TestTensor offsets = {"layers.1.k.offsets", "I32", {2}, BytesOf<int32_t>({0, 4})};
  const TestTensor bits = {"layers.1.k.bits", "U8", {1}, BytesOf<uint8_t>({16})};
  const auto expect = [](const std::vector<TestTensor>& tensors, const std::string& text) {
    ExpectUnreadable(kMetadata, tensors, kInvalid, text);
  };
  expect({order, offsets}, "tensor \"layers.1.k.bits\": expected one or more clusters");
  expect({order, bits}, "tensor \"layers.1.k.offsets\": expected 2 positions for 1 clusters");
  expect({offsets, bits}, "tensor \"layers.1.k.order\": expected beside the other tensors");
  expect({{"layers.1.k.order", "F32", {4}, order.bytes}},
         "expected a vector of I32, found F32 [4]");
  expect({{"layers.1.k.order", "I32", {2, 2}, order.bytes}}, "found I32 [2, 2]");
  expect({{"layers.2.k.order", "I32", {4}, order.bytes}},
         "tensor \"layers.2.k.order\": expected only parts of sites of the model's layers");
  expect({{"layers.1.x.order", "I32", {4}, order.bytes}}, "tensor \"layers.1.x.order\"");
  expect({order, offsets, bits, {"layers.1.k.gain", "U8", {1}, BytesOf<uint8_t>({3})}},
         "tensor \"layers.1.k.gain\": expected one number from 1 to 2");
  const std::string eight = BytesOf(std::vector<float>(8));
  expect({{"layers.1.k.range", "F32", {8}, eight}},
         "tensor \"layers.1.k.range\": expected 2 rows of F32, found F32 [8]");
  expect({{"layers.1.k.original_range", "F32", {4, 2}, eight}}, "found F32 [4, 2]");
  expect({{"layers.1.k.range", "F32", {2, 4}, eight}},
         "tensor \"layers.1.k.order\": expected beside the other tensors");
}

// A good file with some bytes of a tensor replaced.
void ExpectDamageNamed(const std::string& tensor, int64_t at, const std::string& bytes,
                       const std::string& text) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  ASSERT_TRUE(WriteRptqFile(folder.path(), Sample(config), config).ok());
  std::string file = folder.Read(kRptqFileName);
  const SafetensorsFile opened = SafetensorsFile::Open(folder.Path(kRptqFileName)).value();
  const auto it = std::find_if(opened.tensors().begin(), opened.tensors().end(),
                               [&](const TensorInfo& info) { return info.name == tensor; });
  ASSERT_NE(it, opened.tensors().end()) << tensor;
  file.replace(static_cast<size_t>(it->offset + at), bytes.size(), bytes);
  folder.Write(kRptqFileName, file);
  const absl::Status status = ReadRptqFile(folder.path(), config).status();
  EXPECT_EQ(status.code(), kInvalid) << status;
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(StartsWith(absl::StrCat(folder.Path(kRptqFileName), ": tensor \"", tensor, "\": ")),
            HasSubstr(text)));
}

TEST(RptqFileTest, DamageOfAFileIsNamed) {
  ExpectDamageNamed("layers.1.k.step", 8, BytesOf<float>({0.0f}),
                    "expected finite numbers > 0, found 0 at position 2");
  ExpectDamageNamed("layers.0.qkv_in.step", 20, BytesOf<float>({std::nanf("")}),
                    "expected finite numbers > 0, found nan at position 5");
  ExpectDamageNamed("layers.0.v.zero", 0, BytesOf<float>({std::nanf("")}),
                    "expected finite numbers, found nan at position 0");
  ExpectDamageNamed("layers.0.down_in.order", 0, BytesOf<int32_t>({3, 3}),
                    "expected each channel once, found 3 again at position 1");
  ExpectDamageNamed("layers.1.out_in.order", 4, BytesOf<int32_t>({7}),
                    "expected channels within [0, 4) at positions of this range, found 7 at 1");
  ExpectDamageNamed("layers.1.down_in.range", 4, BytesOf<float>({9.0f}),
                    "expected finite minima up to their maxima, found 9 and 1 at 1");
}

TEST(RptqFileTest, ATruncatedFileIsNamed) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  ASSERT_TRUE(WriteRptqFile(folder.path(), Sample(config), config).ok());
  const std::string file = folder.Read(kRptqFileName);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, file.size() / 2, file.size() - 1}) {
    folder.Write(kRptqFileName, file.substr(0, size));
    const absl::Status status = ReadRptqFile(folder.path(), config).status();
    EXPECT_FALSE(status.ok()) << size;
    EXPECT_THAT(std::string(status.message()), StartsWith(folder.Path(kRptqFileName) + ": "));
  }
}

TEST(RptqFileTest, MissingFilesAndFoldersAreNamed) {
  const TestFolder folder;
  const ModelConfig config = SmallConfig();
  const absl::Status missing = ReadRptqFile(folder.path(), config).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(folder.Path(kRptqFileName)));
  const absl::Status status = WriteRptqFile(folder.Path("none"), Sample(config), config);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder.Path("none")));
}

}  // namespace
}  // namespace thinwire
