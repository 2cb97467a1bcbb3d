#include "runtime/checkpoint/checkpoint.h"

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TestTensor Ints(const std::string& name, std::vector<int64_t> shape, std::vector<int32_t> values) {
  return {name, "I32", std::move(shape), BytesOf(values)};
}

// A matrix of fp16 whose element (r, c) has the bits r * 31 + c, modulo 2^15.
TestTensor Pattern(const std::string& name, int64_t rows, int64_t columns) {
  TestTensor tensor = {name, "F16", {rows, columns}, std::string(rows * columns * 2, '\0')};
  for (int64_t r = 0, i = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c, i += 2) {
      const int64_t bits = (r * 31 + c) & 0x7fff;
      tensor.bytes[i] = static_cast<char>(bits & 0xff);
      tensor.bytes[i + 1] = static_cast<char>(bits >> 8);
    }
  }
  return tensor;
}

int64_t CountWrong(ConstTensorView block, int64_t first_row, int64_t first_column) {
  int64_t wrong = 0;
  for (int64_t r = 0; r < block.dim(0); ++r) {
    const Half* row = block.data<Half>() + r * block.row_stride();
    for (int64_t c = 0; c < block.dim(1); ++c) {
      wrong += row[c].bits != (((first_row + r) * 31 + first_column + c) & 0x7fff);
    }
  }
  return wrong;
}

Checkpoint OpenSingle(const TestFolder& folder, const std::vector<TestTensor>& tensors) {
  folder.Write("model.safetensors", SafetensorsBytes(tensors));
  return Checkpoint::Open(folder.path()).value();
}

void ExpectError(const absl::Status& status, absl::StatusCode code,
                 const std::vector<std::string>& texts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& text : texts) EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  EXPECT_THAT(std::string(status.message()), ::testing::Not(HasSubstr("\n")));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(CheckpointTest, ReadsWholeTensorsRowsColumnsAndBlocks) {
  const TestFolder folder;
  const Checkpoint checkpoint =
      OpenSingle(folder, {Ints("m", {3, 4}, {0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23}),
                          Ints("v", {5}, {1, 2, 3, 4, 5})});
  std::vector<int32_t> out(12);
  ASSERT_TRUE(checkpoint.Read("m", {3, 4}, {}, TensorView(out.data(), DType::kI32, {3, 4})).ok());
  EXPECT_THAT(out, ElementsAre(0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23));
  out.assign(8, 0);
  ASSERT_TRUE(
      checkpoint
          .Read("m", {3, 4}, {.rows = Range{1, 3}}, TensorView(out.data(), DType::kI32, {2, 4}))
          .ok());
  EXPECT_THAT(out, ElementsAre(10, 11, 12, 13, 20, 21, 22, 23));
  out.assign(6, 0);
  ASSERT_TRUE(
      checkpoint
          .Read("m", {3, 4}, {.columns = Range{2, 4}}, TensorView(out.data(), DType::kI32, {3, 2}))
          .ok());
  EXPECT_THAT(out, ElementsAre(2, 3, 12, 13, 22, 23));
  out.assign(2, 0);
  ASSERT_TRUE(checkpoint
                  .Read("m", {3, 4}, {.rows = Range{0, 2}, .columns = Range{3, 4}},
                        TensorView(out.data(), DType::kI32, {2, 1}))
                  .ok());
  EXPECT_THAT(out, ElementsAre(3, 13));
  out.assign(3, 0);
  ASSERT_TRUE(
      checkpoint.Read("v", {5}, {.rows = Range{1, 4}}, TensorView(out.data(), DType::kI32, {3}))
          .ok());
  EXPECT_THAT(out, ElementsAre(2, 3, 4));
  int32_t nothing = 7;
  ASSERT_TRUE(
      checkpoint.Read("v", {5}, {.rows = Range{5, 5}}, TensorView(&nothing, DType::kI32, {0}))
          .ok());
  EXPECT_EQ(nothing, 7);
}

TEST(CheckpointTest, WritesIntoStridedRowsAndNowhereElse) {
  const TestFolder folder;
  const Checkpoint checkpoint = OpenSingle(folder, {Ints("m", {2, 2}, {1, 2, 3, 4})});
  std::vector<int32_t> out(8, -1);
  const TensorView wide(out.data(), DType::kI32, {2, 4});
  ASSERT_TRUE(checkpoint.Read("m", {2, 2}, {}, wide.Columns(1, 2)).ok());
  EXPECT_THAT(out, ElementsAre(-1, 1, 2, -1, -1, 3, 4, -1));
}

TEST(CheckpointTest, FindsNamesAndCountsBytes) {
  const TestFolder folder;
  Checkpoint opened = OpenSingle(folder, {Ints("b", {2}, {1, 2}), Ints("a", {1}, {3})});
  const TensorInfo* before = opened.Find("a");
  const Checkpoint checkpoint = std::move(opened);
  EXPECT_EQ(checkpoint.Find("a"), before);
  EXPECT_EQ(checkpoint.Find("a")->name, "a");
  EXPECT_EQ(checkpoint.Find("c"), nullptr);
  EXPECT_THAT(checkpoint.Names(), ElementsAre("a", "b"));
  EXPECT_EQ(checkpoint.total_bytes(), 12);
  EXPECT_EQ(checkpoint.dir(), folder.path());
}

// Each dtype into each other, against the scalar definitions, through a chunk boundary and
// unaligned.
TEST(CheckpointTest, ConvertsBetweenFloatDtypes) {
  constexpr int64_t kCount = 1500;
  std::vector<float> floats(kCount);
  std::vector<Half> halves(kCount);
  std::vector<BFloat16> bfloats(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    floats[i] = std::ldexp(1.0f + static_cast<float>(i) / 1024.0f, static_cast<int>(i % 24) - 12);
    halves[i] = ToHalf(-floats[i]);
    bfloats[i] = ToBFloat16(floats[i] * 3.0f);
  }
  for (const char* first_name : {"x", "xx"}) {  // two header lengths: one leaves the data unaligned
    const TestFolder folder;
    const Checkpoint checkpoint = OpenSingle(folder, {{first_name, "U8", {1}, "u"},
                                                      {"f", "F32", {2, 750}, BytesOf(floats)},
                                                      {"h", "F16", {2, 750}, BytesOf(halves)},
                                                      {"b", "BF16", {2, 750}, BytesOf(bfloats)}});
    const auto read = [&](absl::string_view name, DType dtype) {
      Tensor out = Tensor::Allocate(dtype, {2, 750}, Device::Cpu()).value();
      EXPECT_TRUE(checkpoint.Read(name, {2, 750}, {}, out.mutable_view()).ok());
      return out;
    };
    for (const auto& name : {"f", "h", "b"}) {
      const Tensor as_float = read(name, DType::kF32);
      const Tensor as_half = read(name, DType::kF16);
      const Tensor as_bfloat = read(name, DType::kBF16);
      for (int64_t i = 0; i < kCount; ++i) {
        const float expected = *name == 'f'   ? floats[i]
                               : *name == 'h' ? ToFloat(halves[i])
                                              : ToFloat(bfloats[i]);
        ASSERT_EQ(as_float.view().data<float>()[i], expected);
        ASSERT_EQ(as_half.view().data<Half>()[i].bits, ToHalf(expected).bits);
        ASSERT_EQ(as_bfloat.view().data<BFloat16>()[i].bits, ToBFloat16(expected).bits);
      }
    }
  }
}

// Rows far shorter and longer than the step between drops of pages; blocks that begin inside a
// step.
TEST(CheckpointTest, BlocksLargerThanOneStepAreWhole) {
  const TestFolder folder;
  const Checkpoint checkpoint =
      OpenSingle(folder, {Pattern("tall", 6001, 1024), Pattern("wide", 2, 5'000'001)});
  Tensor out = Tensor::Allocate(DType::kF16, {5000, 512}, Device::Cpu()).value();
  ASSERT_TRUE(checkpoint
                  .Read("tall", {6001, 1024}, {.rows = Range{7, 5007}, .columns = Range{512, 1024}},
                        out.mutable_view())
                  .ok());
  EXPECT_EQ(CountWrong(out.view(), 7, 512), 0);
  out = Tensor::Allocate(DType::kF16, {6000, 1024}, Device::Cpu()).value();
  ASSERT_TRUE(
      checkpoint.Read("tall", {6001, 1024}, {.rows = Range{1, 6001}}, out.mutable_view()).ok());
  EXPECT_EQ(CountWrong(out.view(), 1, 0), 0);
  out = Tensor::Allocate(DType::kF16, {2, 4'500'000}, Device::Cpu()).value();
  ASSERT_TRUE(
      checkpoint
          .Read("wide", {2, 5'000'001}, {.columns = Range{500'001, 5'000'001}}, out.mutable_view())
          .ok());
  EXPECT_EQ(CountWrong(out.view(), 0, 500'001), 0);
}

TEST(CheckpointTest, ThreadsMayReadAtOnce) {
  const TestFolder folder;
  const Checkpoint checkpoint = OpenSingle(folder, {Pattern("m", 2000, 1000)});
  std::vector<int64_t> wrong(3, -1);
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Tensor out = Tensor::Allocate(DType::kF16, {2000, 300}, Device::Cpu()).value();
      if (checkpoint
              .Read("m", {2000, 1000}, {.columns = Range{t * 300, t * 300 + 300}},
                    out.mutable_view())
              .ok()) {
        wrong[t] = CountWrong(out.view(), 0, t * 300);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0));
}

TEST(CheckpointTest, ReadErrorsNameFileTensorExpectedAndFound) {
  const TestFolder folder;
  const Checkpoint checkpoint = OpenSingle(folder, {{"d", "F64", {1}, std::string(8, 'd')},
                                                    {"cube", "F16", {1, 1, 1}, "ab"},
                                                    {"scalar", "F16", {}, "ab"},
                                                    {"i", "I8", {2, 3}, "abcdef"}});
  const std::string file = folder.Path("model.safetensors");
  std::vector<int8_t> memory(64);
  const auto read = [&](absl::string_view name, std::vector<int64_t> shape,
                        const TensorSlice& slice, DType dtype, std::initializer_list<int64_t> out) {
    return checkpoint.Read(name, shape, slice, TensorView(memory.data(), dtype, out));
  };
  ExpectError(read("none", {2}, {}, DType::kI8, {2}), kNotFound,
              {folder.path(), "expected tensor \"none\" [2], found none"});
  ExpectError(read("i", {3, 2}, {}, DType::kI8, {3, 2}), kInvalid,
              {file, "tensor \"i\": expected shape [3, 2], found I8 [2, 3]"});
  ExpectError(read("i", {6}, {}, DType::kI8, {6}), kInvalid, {"expected shape [6]"});
  ExpectError(read("d", {1}, {}, DType::kF32, {1}), kUnimplemented,
              {file, "tensor \"d\"", "F64 [1]"});
  ExpectError(read("cube", {1, 1, 1}, {}, DType::kF16, {1, 1, 1}), kUnimplemented,
              {"vector or matrix", "F16 [1, 1, 1]"});
  ExpectError(read("scalar", {}, {}, DType::kF16, {1}), kUnimplemented, {"F16 []"});
  ExpectError(read("i", {2, 3}, {}, DType::kF16, {2, 3}), kInvalid,
              {file, "expected a dtype that converts to fp16, found I8 [2, 3]"});
  ExpectError(read("i", {2, 3}, {.rows = Range{1, 3}}, DType::kI8, {2, 3}), kInvalid,
              {file, "expected rows within [0, 2), found [1, 3)"});
  ExpectError(read("i", {2, 3}, {.columns = Range{-1, 3}}, DType::kI8, {2, 3}), kInvalid,
              {"expected columns within [0, 3), found [-1, 3)"});
  ExpectError(read("i", {2, 3}, {.columns = Range{2, 1}}, DType::kI8, {2, 1}), kInvalid,
              {"found [2, 1)"});
  ExpectError(read("i", {2, 3}, {.rows = Range{0, 1}}, DType::kI8, {2, 3}), kInvalid,
              {file, "expected an output of shape [1, 3], found int8[2, 3]"});
}

const char kShard1[] = "model-00001-of-00002.safetensors";
const char kShard2[] = "model-00002-of-00002.safetensors";

void WriteShards(const TestFolder& folder) {
  folder.Write(kShard1, SafetensorsBytes(std::vector{Ints("a", {1}, {1}), Ints("b", {1}, {2})}));
  folder.Write(kShard2, SafetensorsBytes(std::vector{Ints("c", {1}, {3})}));
}

std::string IndexOf(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string map;
  for (const auto& [tensor, file] : entries) {
    absl::StrAppend(&map, map.empty() ? "" : ",", "\"", tensor, "\":", file);
  }
  return absl::StrCat("{\"metadata\":{\"total_size\":12},\"weight_map\":{", map, "}}");
}

absl::Status OpenIndexed(const TestFolder& folder, const std::string& index) {
  folder.Write("model.safetensors.index.json", index);
  return Checkpoint::Open(folder.path()).status();
}

const std::string kIn1 = absl::StrCat("\"", kShard1, "\"");
const std::string kIn2 = absl::StrCat("\"", kShard2, "\"");

TEST(CheckpointFilesTest, AnIndexNamesTheFiles) {
  const TestFolder folder;
  WriteShards(folder);
  folder.Write("other.safetensors", "not read");
  folder.Write("model.safetensors.index.json", IndexOf({{"a", kIn1}, {"b", kIn1}, {"c", kIn2}}));
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  EXPECT_THAT(checkpoint.Names(), ElementsAre("a", "b", "c"));
  int32_t value = 0;
  ASSERT_TRUE(checkpoint.Read("c", {1}, {}, TensorView(&value, DType::kI32, {1})).ok());
  EXPECT_EQ(value, 3);
}

TEST(CheckpointFilesTest, WithoutAnIndexTheSingleFileOrAllFilesCount) {
  const TestFolder folder;
  WriteShards(folder);
  EXPECT_THAT(Checkpoint::Open(folder.path())->Names(), ElementsAre("a", "b", "c"));
  // Which is no weights.
  folder.Write("rptq.safetensors", SafetensorsBytes(std::vector{Ints("order", {1}, {0})}));
  EXPECT_THAT(Checkpoint::Open(folder.path())->Names(), ElementsAre("a", "b", "c"));
  folder.Write("model.safetensors", SafetensorsBytes(std::vector{Ints("only", {1}, {1})}));
  EXPECT_THAT(Checkpoint::Open(folder.path())->Names(), ElementsAre("only"));
}

TEST(CheckpointFilesTest, AnIndexCannotLeadOutOfTheFolder) {
  const TestFolder folder;
  WriteShards(folder);
  for (const char* entry : {"\"/etc/passwd\"", "\"../x.safetensors\"", "\"sub/x.safetensors\"",
                            "\"..\"", "\".\"", "\"\"", "\"a\\u0000b\"", "7", "null"}) {
    ExpectError(OpenIndexed(folder, IndexOf({{"a", entry}})), kInvalid,
                {"model.safetensors.index.json",
                 "tensor \"a\": expected the name of a file in this folder, found "});
  }
}

TEST(CheckpointFilesTest, AnIndexMustAgreeWithItsFiles) {
  const TestFolder folder;
  WriteShards(folder);
  ExpectError(OpenIndexed(folder, IndexOf({{"a", kIn1}, {"z", "\"gone.safetensors\""}})), kNotFound,
              {"model.safetensors.index.json", "tensor \"z\"", "/gone.safetensors"});
  ExpectError(
      OpenIndexed(folder, IndexOf({{"a", kIn1}, {"z", kIn2}})), kDataLoss,
      {"model.safetensors.index.json", "tensor \"z\": expected in ", kShard2, "found in no file"});
  ExpectError(OpenIndexed(folder, IndexOf({{"a", kIn2}, {"b", kIn1}})), kDataLoss,
              {"tensor \"a\": expected in ", kShard2, "found in ", kShard1});
  ExpectError(OpenIndexed(folder, IndexOf({{"a", kIn1}, {"a", kIn2}})), kInvalid,
              {"found \"a\" twice"});
  ExpectError(OpenIndexed(folder, "{\"weight_map\": []}"), kInvalid,
              {"\"weight_map\": expected an object"});
  ExpectError(OpenIndexed(folder, "{\"weight_map\": {}}"), kInvalid, {"\"weight_map\""});
  ExpectError(OpenIndexed(folder, "{}"), kInvalid, {"\"weight_map\""});
  ExpectError(OpenIndexed(folder, "[]"), kInvalid, {"expected an object, found an array"});
  ExpectError(OpenIndexed(folder, "{"), kInvalid, {"not valid JSON"});
}

TEST(CheckpointFilesTest, ATensorInTwoFilesIsRefused) {
  const TestFolder folder;
  WriteShards(folder);
  folder.Write("z.safetensors", SafetensorsBytes(std::vector{Ints("b", {1}, {2})}));
  ExpectError(Checkpoint::Open(folder.path()).status(), kInvalid,
              {"tensor \"b\": expected in one file", kShard1, "z.safetensors"});
}

TEST(CheckpointFilesTest, MissingFoldersAndFilesAreNamed) {
  const TestFolder folder;
  ExpectError(Checkpoint::Open(folder.Path("none")).status(), kNotFound,
              {folder.Path("none"), "expected a model folder, found nothing"});
  ExpectError(Checkpoint::Open(folder.path()).status(), kNotFound,
              {folder.path(), "expected *.safetensors files, found none"});
  const std::string file = folder.Write("pytorch_model.bin", "pickle");
  ExpectError(Checkpoint::Open(folder.path()).status(), kNotFound,
              {"found pytorch_model.bin", "pickles are never read", "safe_serialization=True"});
  ExpectError(Checkpoint::Open(file).status(), absl::StatusCode::kFailedPrecondition,
              {file, "expected a folder"});
}

TEST(CheckpointFilesTest, ADamagedFileIsNamed) {
  const TestFolder folder;
  const std::string bytes = SafetensorsBytes(std::vector{Ints("a", {2}, {1, 2})});
  folder.Write("model.safetensors", bytes.substr(0, bytes.size() - 1));
  ExpectError(Checkpoint::Open(folder.path()).status(), kDataLoss,
              {folder.Path("model.safetensors"), "tensor \"a\""});
}

}  // namespace
}  // namespace thinwire
