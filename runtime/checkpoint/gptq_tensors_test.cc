#include "runtime/checkpoint/gptq_tensors.h"

#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/packed_codes.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr char kName[] = "model.layers.0.mlp.up_proj";

// A layer in plain arrays: codes [out, in], scales and zeros [out, groups].
struct Layer {
  int64_t out = 0;
  int64_t in = 0;
  int64_t groups = 1;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  std::vector<int32_t> g_idx;
};

Layer RandomLayer(int64_t out, int64_t in, int64_t groups, int bits, std::mt19937& random) {
  Layer layer = {.out = out, .in = in, .groups = groups};
  const int levels = 1 << bits;
  for (int64_t i = 0; i < out * in; ++i) layer.codes.push_back(random() % levels);
  for (int64_t i = 0; i < out * groups; ++i) {
    layer.zeros.push_back(random() % levels);
    layer.scales.push_back(ToFloat(Half{static_cast<uint16_t>(1 + random() % 0x7bff)}));
  }
  for (int64_t i = 0; i < in; ++i) layer.g_idx.push_back(static_cast<int32_t>(random() % groups));
  return layer;
}

absl::Status Write(const TestFolder& folder, const Layer& layer, const GptqConfig& config) {
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(
      folder.Path("model.safetensors"),
      GptqTensorSpecs(kName, layer.out, layer.in, layer.groups, config.bits));
  TW_RETURN_IF_ERROR(writer.status());
  TW_RETURN_IF_ERROR(AppendGptqLinear(
      *writer, kName, config,
      ConstTensorView(layer.codes.data(), DType::kU8, {layer.out, layer.in}),
      ConstTensorView(layer.scales.data(), DType::kF32, {layer.out, layer.groups}),
      ConstTensorView(layer.zeros.data(), DType::kU8, {layer.out, layer.groups}), layer.g_idx));
  return writer->Commit();
}

// The codes of a block.
std::vector<uint8_t> ReadCodes(const GptqLinear& linear, Range rows, Range columns) {
  std::vector<uint8_t> codes(rows.size() * columns.size());
  EXPECT_TRUE(linear
                  .ReadCodes(rows, columns,
                             TensorView(codes.data(), DType::kU8, {rows.size(), columns.size()}))
                  .ok());
  return codes;
}

absl::Status ReadScales(const GptqLinear& linear, Range rows, std::vector<float>* scales,
                        std::vector<uint8_t>* zeros) {
  const int64_t groups = linear.num_groups();
  scales->resize(rows.size() * groups);
  zeros->resize(rows.size() * groups);
  return linear.ReadScales(rows, TensorView(scales->data(), DType::kF32, {rows.size(), groups}),
                           TensorView(zeros->data(), DType::kU8, {rows.size(), groups}));
}

template <typename T>
std::vector<T> Block(const std::vector<T>& matrix, int64_t width, Range rows, Range columns) {
  std::vector<T> block;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t c = columns.begin; c < columns.end; ++c) block.push_back(matrix[r * width + c]);
  }
  return block;
}

TEST(PackedCodesTest, SpreadingIsTheInverseOfGathering) {
  std::mt19937_64 random(1);
  for (const int bits : {2, 3, 4, 8}) {
    for (int round = 0; round < 100; ++round) {
      uint64_t codes = 0;
      uint64_t packed = 0;
      for (int j = 0; j < kCodesPerRun; ++j) {
        const uint64_t code = random() % (1u << bits);
        codes |= code << (8 * j);
        packed |= code << (bits * j);
      }
      EXPECT_EQ(SpreadCodes(packed, bits), codes);
      EXPECT_EQ(GatherCodes(codes, bits), packed);
    }
  }
}

TEST(PackedCodesTest, AUnitIsAStringOfBits) {
  std::mt19937 random(2);
  for (const int bits : {2, 3, 4, 8}) {
    std::array<uint8_t, kCodesPerUnit> codes;
    std::array<uint32_t, kMaxCodeBits> expected = {};
    for (int j = 0; j < kCodesPerUnit; ++j) {
      codes[j] = static_cast<uint8_t>(random() % (1u << bits));
      for (int b = 0; b < bits; ++b) {
        const int at = j * bits + b;
        expected[at / 32] |= (uint32_t{codes[j]} >> b & 1) << at % 32;
      }
    }
    std::array<uint32_t, kMaxCodeBits> words = {};
    std::array<uint8_t, kCodesPerUnit> back;
    WithBits(bits, [&]<int kBits>() {
      PackUnit<kBits>(codes.data(), words.data());
      UnpackUnit<kBits>(words.data(), back.data());
    });
    EXPECT_EQ(words, expected);
    EXPECT_EQ(back, codes);
  }
}

// 8 inputs, 8 outputs, 2 groups; output o's codes are o + i modulo 16.
Layer FourBitExample() {
  Layer layer = {.out = 8, .in = 8, .groups = 2};
  for (int o = 0; o < 8; ++o) {
    for (int i = 0; i < 8; ++i) layer.codes.push_back((o + i) % 16);
    layer.scales.insert(layer.scales.end(), {0.5f, 1.0f});
    layer.zeros.insert(layer.zeros.end(), {static_cast<uint8_t>(o + 1), 8});
  }
  layer.g_idx = {0, 0, 1, 0, 1, 1, 0, 1};
  return layer;
}

std::string TensorBytesOf(const TestFolder& folder, const std::string& part) {
  const SafetensorsFile file = SafetensorsFile::Open(folder.Path("model.safetensors")).value();
  for (const TensorInfo& tensor : file.tensors()) {
    if (tensor.name != absl::StrCat(kName, ".", part)) continue;
    const auto* begin = reinterpret_cast<const char*>(file.file().bytes().data()) + tensor.offset;
    return {begin, static_cast<size_t>(tensor.size_bytes)};
  }
  return "none";
}

TEST(GptqTensorsTest, BytesOfFourBitCodesArePinned) {
  const TestFolder folder;
  ASSERT_TRUE(Write(folder, FourBitExample(), {.bits = 4, .desc_act = true}).ok());
  // Input 0 is in the lowest nibble.
  EXPECT_EQ(TensorBytesOf(folder, "qweight"),
            BytesOf<uint32_t>({0x76543210, 0x87654321, 0x98765432, 0xa9876543, 0xba987654,
                               0xcba98765, 0xdcba9876, 0xedcba987}));
  // Output 0 is in the lowest nibble; zeros 1 to 8, then 8, less one.
  EXPECT_EQ(TensorBytesOf(folder, "qzeros"), BytesOf<uint32_t>({0x76543210, 0x77777777}));
  std::string scales;
  for (int i = 0; i < 8; ++i) scales += std::string("\x00\x38", 2);
  for (int i = 0; i < 8; ++i) scales += std::string("\x00\x3c", 2);
  EXPECT_EQ(TensorBytesOf(folder, "scales"), scales);
  EXPECT_EQ(TensorBytesOf(folder, "g_idx"), BytesOf<int32_t>({0, 0, 1, 0, 1, 1, 0, 1}));
}

TEST(GptqTensorsTest, VersionTwoStoresZerosAsTheyAre) {
  const TestFolder folder;
  const GptqConfig config = {.bits = 4, .desc_act = true, .zeros_as_they_are = true};
  ASSERT_TRUE(Write(folder, FourBitExample(), config).ok());
  EXPECT_EQ(TensorBytesOf(folder, "qzeros"), BytesOf<uint32_t>({0x87654321, 0x88888888}));
}

TEST(GptqTensorsTest, BytesOfThreeBitCodesArePinned) {
  // 32 inputs with codes 0 to 7, four times: 24 bits 0xfac688 repeated over 3 words, so codes 10
  // and 21 lie in two of them.
  Layer layer = {.out = 1, .in = 32, .groups = 1};
  for (int i = 0; i < 32; ++i) layer.codes.push_back(i % 8);
  layer.scales = {1.0f};
  layer.zeros = {0};
  layer.g_idx.resize(32);
  const TestFolder folder;
  ASSERT_TRUE(Write(folder, layer, {.bits = 3, .desc_act = true}).ok());
  EXPECT_EQ(TensorBytesOf(folder, "qweight"),
            BytesOf<uint32_t>({0x88fac688, 0xc688fac6, 0xfac688fa}));
  // A zero of 0 is stored as -1 modulo 8, and does not touch the bits behind it.
  EXPECT_EQ(TensorBytesOf(folder, "qzeros"), BytesOf<uint32_t>({7}));
}

TEST(GptqTensorsTest, EveryBlockReadsBackWhatWasWritten) {
  std::mt19937 random(5);
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{40, 96}, {7, 33}, {1, 1}, {64, 5}}) {
      for (const bool as_they_are : {false, true}) {
        const int64_t groups = 1 + static_cast<int64_t>(random() % 5);
        const Layer layer = RandomLayer(out, in, groups, bits, random);
        const GptqConfig config = {
            .bits = bits, .desc_act = true, .zeros_as_they_are = as_they_are};
        const TestFolder folder;
        ASSERT_TRUE(Write(folder, layer, config).ok());
        const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
        EXPECT_TRUE(HasGptqLinear(checkpoint, kName));
        EXPECT_FALSE(HasGptqLinear(checkpoint, "model"));
        const GptqLinear linear = GptqLinear::Open(&checkpoint, kName, out, in, config).value();
        EXPECT_EQ(linear.num_groups(), groups);
        EXPECT_THAT(linear.g_idx(), ElementsAreArray(layer.g_idx));
        for (int round = 0; round < 20; ++round) {
          const auto range = [&](int64_t size) {
            const auto a = static_cast<int64_t>(random() % (size + 1));
            const auto b = static_cast<int64_t>(random() % (size + 1));
            return round == 0 ? Range{0, size} : Range{std::min(a, b), std::max(a, b)};
          };
          const Range rows = range(out);
          const Range columns = range(in);
          EXPECT_EQ(ReadCodes(linear, rows, columns), Block(layer.codes, in, rows, columns));
          std::vector<float> scales;
          std::vector<uint8_t> zeros;
          ASSERT_TRUE(ReadScales(linear, rows, &scales, &zeros).ok());
          EXPECT_EQ(scales, Block(layer.scales, groups, rows, {0, groups}));
          EXPECT_EQ(zeros, Block(layer.zeros, groups, rows, {0, groups}));
        }
      }
    }
  }
}

TEST(GptqTensorsTest, BlocksLargerThanTheScratchAreReadInSteps) {
  // 16 MB of words, four steps of each side; every value depends on where it is.
  Layer layer = {.out = 8192, .in = 4096, .groups = 1};
  layer.codes.resize(layer.out * layer.in);
  for (size_t i = 0; i < layer.codes.size(); ++i) layer.codes[i] = (i * 2654435761u >> 20) % 16;
  layer.scales.assign(layer.out, 1.0f);
  layer.zeros.assign(layer.out, 8);
  layer.g_idx.assign(layer.in, 0);
  const TestFolder folder;
  const GptqConfig config = {.bits = 4, .group_size = -1, .sym = true};
  ASSERT_TRUE(Write(folder, layer, config).ok());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const GptqLinear linear =
      GptqLinear::Open(&checkpoint, kName, layer.out, layer.in, config).value();
  EXPECT_TRUE(ReadCodes(linear, {0, layer.out}, {0, layer.in}) == layer.codes);
  EXPECT_TRUE(ReadCodes(linear, {5, layer.out}, {1001, 4001}) ==
              Block(layer.codes, layer.in, {5, layer.out}, {1001, 4001}));
}

TEST(GptqTensorsTest, RowsOfTheOutputMayBeStrided) {
  const TestFolder folder;
  const Layer layer = FourBitExample();
  const GptqConfig config = {.bits = 4, .desc_act = true};
  ASSERT_TRUE(Write(folder, layer, config).ok());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const GptqLinear linear = GptqLinear::Open(&checkpoint, kName, 8, 8, config).value();
  std::vector<uint8_t> wide(8 * 20, 99);
  const TensorView view(wide.data(), DType::kU8, {8, 20});
  ASSERT_TRUE(linear.ReadCodes({0, 8}, {0, 8}, view.Columns(3, 8)).ok());
  EXPECT_EQ(Block(wide, 20, {0, 8}, {3, 11}), layer.codes);
  EXPECT_THAT(Block(wide, 20, {0, 8}, {0, 3}), Each(99));
  EXPECT_THAT(Block(wide, 20, {0, 8}, {11, 20}), Each(99));
}

// The tensors of a good layer of 32 inputs and 8 outputs in 2 groups of 16.
std::vector<TestTensor> GoodTensors() {
  std::vector<int32_t> g_idx(32);
  for (int i = 0; i < 32; ++i) g_idx[i] = i / 16;
  const std::vector<uint32_t> zeros(2, 0x77777777);
  return {{absl::StrCat(kName, ".qweight"), "I32", {4, 8}, BytesOf(std::vector<uint32_t>(32))},
          {absl::StrCat(kName, ".qzeros"), "I32", {2, 1}, BytesOf(zeros)},
          {absl::StrCat(kName, ".scales"), "F16", {2, 8}, BytesOf(std::vector<uint16_t>(16))},
          {absl::StrCat(kName, ".g_idx"), "I32", {32}, BytesOf(g_idx)}};
}

constexpr GptqConfig kGood = {.bits = 4, .group_size = 16, .sym = true};

absl::Status OpenAndRead(const std::vector<TestTensor>& tensors, const GptqConfig& config = kGood) {
  const TestFolder folder;
  folder.Write("model.safetensors", SafetensorsBytes(tensors));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(folder.path()));
  TW_ASSIGN_OR_RETURN(const GptqLinear linear, GptqLinear::Open(&checkpoint, kName, 8, 32, config));
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  return ReadScales(linear, {0, 8}, &scales, &zeros);
}

void ExpectRefused(const std::vector<TestTensor>& tensors, const GptqConfig& config,
                   const std::string& part, const std::string& text,
                   absl::StatusCode code = kInvalid) {
  const absl::Status status = OpenAndRead(tensors, config);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(code == kInvalid ? "model.safetensors: tensor" : "expected tensor"),
                    HasSubstr(absl::StrCat("\"", kName, ".", part, "\"")), HasSubstr(text)));
}

TEST(GptqTensorsTest, MissingAndMalformedTensorsAreNamed) {
  ASSERT_TRUE(OpenAndRead(GoodTensors()).ok());
  const char* parts[] = {"qweight", "qzeros", "scales"};
  for (int i = 0; i < 3; ++i) {
    std::vector<TestTensor> tensors = GoodTensors();
    tensors.erase(tensors.begin() + i);
    ExpectRefused(tensors, kGood, parts[i], "found none", absl::StatusCode::kNotFound);
    tensors = GoodTensors();
    tensors[i].shape.push_back(1);
    ExpectRefused(tensors, kGood, parts[i], "found ");
    tensors = GoodTensors();
    tensors[i].dtype = tensors[i].dtype == "F16" ? "I16" : "U32";
    ExpectRefused(tensors, kGood, parts[i], "found " + tensors[i].dtype);
  }
  GptqConfig config = kGood;
  config.bits = 3;
  ExpectRefused(GoodTensors(), config, "qweight", "expected I32 [3, 8], found I32 [4, 8]");
  config = kGood;
  config.group_size = 8;
  ExpectRefused(GoodTensors(), config, "scales", "expected F16 [4, 8], found F16 [2, 8]");
  config.desc_act = true;
  std::vector<TestTensor> tensors = GoodTensors();
  tensors[2].shape = {16};
  ExpectRefused(tensors, config, "scales", "expected F16 [any, 8], found F16 [16]");
}

TEST(GptqTensorsTest, GroupsMustBeKnownAndThoseOfTheConfig) {
  std::vector<TestTensor> tensors = GoodTensors();
  std::vector<int32_t> g_idx(32);
  g_idx[5] = 2;
  tensors[3].bytes = BytesOf(g_idx);
  GptqConfig act_order = kGood;
  act_order.desc_act = true;
  ExpectRefused(tensors, act_order, "g_idx", "expected groups within [0, 2), found 2 of input 5");
  g_idx[5] = -1;
  tensors[3].bytes = BytesOf(g_idx);
  ExpectRefused(tensors, act_order, "g_idx", "found -1 of input 5");
  g_idx[5] = 0;
  tensors[3].bytes = BytesOf(g_idx);
  EXPECT_TRUE(OpenAndRead(tensors, act_order).ok());
  ExpectRefused(tensors, kGood, "g_idx",
                "expected group 1 of input 16, as \"group_size\" 16 without \"desc_act\" says, "
                "found 0");
  tensors.pop_back();
  EXPECT_TRUE(OpenAndRead(tensors, kGood).ok());
  ExpectRefused(tensors, act_order, "g_idx", "found none", absl::StatusCode::kNotFound);
}

TEST(GptqTensorsTest, ScalesMustBeFiniteAndSymmetricZerosInTheMiddle) {
  std::vector<TestTensor> tensors = GoodTensors();
  std::vector<uint16_t> scales(16);
  scales[11] = 0x7c00;
  tensors[2].bytes = BytesOf(scales);
  ExpectRefused(tensors, kGood, "scales", "expected finite scales, found inf of output 3, group 1");
  tensors = GoodTensors();
  tensors[1].bytes = BytesOf(std::vector<uint32_t>(2, 0x88888888));
  ExpectRefused(tensors, kGood, "qzeros",
                "expected zeros of 8, as \"sym\" says, found 9 of output 0, group 0");
  GptqConfig config = kGood;
  config.zeros_as_they_are = true;
  EXPECT_TRUE(OpenAndRead(tensors, config).ok());
  config.sym = false;
  config.zeros_as_they_are = false;
  EXPECT_TRUE(OpenAndRead(tensors, config).ok());
}

TEST(GptqTensorsTest, ScalesOfOtherFloatsAreRead) {
  std::vector<TestTensor> tensors = GoodTensors();
  tensors[2].dtype = "BF16";
  EXPECT_TRUE(OpenAndRead(tensors).ok());
  tensors[2].dtype = "F32";
  tensors[2].bytes = BytesOf(std::vector<float>(16, 3.0f));
  EXPECT_TRUE(OpenAndRead(tensors).ok());
}

TEST(GptqTensorsTest, ScalesThatOverflowFp16AreNotWritten) {
  const TestFolder folder;
  Layer layer = FourBitExample();
  layer.scales[5] = 65520.0f;
  const absl::Status status = Write(folder, layer, {.bits = 4, .desc_act = true});
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(".scales\""), HasSubstr("found 65520 of output 2, group 1")));
  layer.scales[5] = std::nanf("");
  EXPECT_FALSE(Write(folder, layer, {.bits = 4, .desc_act = true}).ok());
}

TEST(GptqTensorsDeathTest, CodesAndZerosMustFitTheirBits) {
  const TestFolder folder;
  const GptqConfig config = {.bits = 4, .desc_act = true};
  Layer layer = FourBitExample();
  layer.codes[63] = 16;
  EXPECT_DEATH((void)Write(folder, layer, config), "check failed");
  layer = FourBitExample();
  layer.zeros[15] = 16;
  EXPECT_DEATH((void)Write(folder, layer, config), "check failed");
  layer = FourBitExample();
  layer.g_idx[7] = 2;
  EXPECT_DEATH((void)Write(folder, layer, config), "check failed");
}

}  // namespace
}  // namespace thinwire
