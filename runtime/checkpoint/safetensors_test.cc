#include "runtime/checkpoint/safetensors.h"

#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

// From a block of exactly the file's size, so that AddressSanitizer sees reads past the end.
absl::StatusOr<std::vector<TensorInfo>> Parse(const std::string& bytes) {
  const auto block = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(block.get(), bytes.data(), bytes.size());
  return ParseSafetensors(absl::MakeConstSpan(block.get(), bytes.size()), "a.safetensors");
}

void ExpectBytesRefused(const std::string& bytes, absl::StatusCode code, const std::string& text) {
  const absl::Status status = Parse(bytes).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(::testing::StartsWith("a.safetensors: "),
                                                   HasSubstr(text), Not(HasSubstr("\n"))));
}

void ExpectRefused(const std::string& header, size_t data_bytes, absl::StatusCode code,
                   const std::string& text) {
  ExpectBytesRefused(SafetensorsBytes(header, std::string(data_bytes, 'd')), code, text);
}

std::string Entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "\"F16\"") {
  return absl::StrCat("\"", name, "\":{\"dtype\":", dtype, ",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

TEST(SafetensorsTest, ListsTensorsByOffset) {
  const std::string header = absl::StrCat("{", Entry("b", "[2,3]", "[4,16]"), ",",
                                          Entry("a", "[1]", "[0,4]", "\"F32\""), "}");
  const std::vector<TensorInfo> tensors =
      Parse(SafetensorsBytes(header, "0123456789abcdef")).value();
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::kF32);
  EXPECT_EQ(tensors[0].offset, static_cast<int64_t>(8 + header.size()));
  EXPECT_EQ(tensors[0].size_bytes, 4);
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, DType::kF16);
  EXPECT_THAT(tensors[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(tensors[1].offset, tensors[0].offset + 4);
  EXPECT_EQ(tensors[1].DebugString(), "F16 [2, 3]");
}

TEST(SafetensorsTest, AcceptsMetadataPaddingScalarsEmptyTensorsAndNoTensors) {
  EXPECT_TRUE(Parse(SafetensorsBytes("{}", ""))->empty());
  EXPECT_TRUE(Parse(SafetensorsBytes("{\"__metadata__\":{\"format\":\"pt\"}}   ", ""))->empty());
  const std::vector<TensorInfo> tensors =
      Parse(SafetensorsBytes(absl::StrCat("{", Entry("s", "[]", "[0,2]"), ",",
                                          Entry("none", "[0,7]", "[2,2]"), "}"),
                             "xy"))
          .value();
  EXPECT_EQ(tensors[0].size_bytes, 2);
  EXPECT_TRUE(tensors[0].shape.empty());
  EXPECT_EQ(tensors[1].size_bytes, 0);
}

TEST(SafetensorsTest, ListsDtypesItCannotLoad) {
  for (const auto& [dtype, bytes] :
       {std::pair("F64", 8), {"U32", 4}, {"BOOL", 1}, {"F8_E4M3", 1}}) {
    const std::string header = absl::StrCat(
        "{", Entry("x", "[1]", absl::StrCat("[0,", bytes, "]"), absl::StrCat("\"", dtype, "\"")),
        "}");
    const std::vector<TensorInfo> tensors =
        Parse(SafetensorsBytes(header, std::string(bytes, 'd'))).value();
    EXPECT_FALSE(tensors[0].loadable);
    EXPECT_EQ(tensors[0].stored_dtype, dtype);
  }
  for (const char* dtype : {"F32", "F16", "BF16", "I8", "U8", "I16", "U16", "I32", "I64"}) {
    const std::string header =
        absl::StrCat("{", Entry("x", "[0]", "[0,0]", absl::StrCat("\"", dtype, "\"")), "}");
    EXPECT_TRUE(Parse(SafetensorsBytes(header, ""))->front().loadable);
  }
}

TEST(SafetensorsTest, RefusesFilesShorterOrLongerThanTheyClaim) {
  ExpectBytesRefused("", kDataLoss, "expected at least 8 bytes");
  ExpectBytesRefused("1234567", kDataLoss,
                     "expected at least 8 bytes, the header's length, found 7");
  ExpectBytesRefused(std::string(8, '\0'), kInvalid, "expected a header of 1 to 100000000 bytes");
  ExpectBytesRefused(std::string(16, '\xff'), kInvalid, "found 18446744073709551615");
  ExpectBytesRefused(SafetensorsBytes("{}", "").substr(0, 9), kDataLoss,
                     "expected a header of 2 bytes, found 1");
  ExpectBytesRefused(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), kInvalid, "found 100000001");
  const std::string header = absl::StrCat("{", Entry("x", "[2]", "[0,4]"), "}");
  ExpectRefused(
      header, 3, kDataLoss,
      "tensor \"x\": expected data_offsets within the 3 bytes after the header, found [0, 4]");
  ExpectRefused(header, 5, kDataLoss, "expected the file to end after");
}

TEST(SafetensorsTest, RefusesHeadersThatAreNotJsonObjectsOfTensors) {
  ExpectRefused("{\"x\":", 0, kInvalid, "not valid JSON at its byte");
  ExpectRefused("{} {}", 0, kInvalid, "not valid JSON at its byte");
  ExpectRefused("[]", 0, kInvalid, "begins with '{', found \"[\"");
  ExpectRefused(" {}", 0, kInvalid, "begins with '{', found \" \"");
  ExpectRefused(std::string("{}\0", 3), 0, kInvalid, "found a null byte");
  ExpectRefused("{\"\xff\": 1}", 0, kInvalid, "not valid JSON");
  ExpectRefused("{\"x\": 1}", 0, kInvalid, "tensor \"x\": expected an object, found 1");
  ExpectRefused("{\"x\": [1]}", 0, kInvalid, "tensor \"x\": expected an object, found an array");
  ExpectRefused("{\"a\\nb\": null}", 0, kInvalid,
                "tensor \"a\\nb\": expected an object, found null");
  ExpectRefused("{\"x\": {}}", 0, kInvalid, "tensor \"x\": expected \"dtype\", found none");
  ExpectRefused("{\"x\": {\"dtype\":\"F16\",\"shape\":[0]}}", 0, kInvalid,
                "expected \"data_offsets\", found none");
  ExpectRefused("{\"x\": {\"color\": 1}}", 0, kInvalid,
                "expected \"dtype\", \"shape\" and \"data_offsets\", found \"color\"");
  ExpectRefused("{\"__metadata__\": 1}", 0, kInvalid, "expected an object of strings, found 1");
  ExpectRefused("{\"__metadata__\": {\"a\": {}}}", 0, kInvalid, "of strings, found an object");
}

TEST(SafetensorsTest, RefusesUnknownDtypesAndMalformedShapes) {
  const auto expect = [](const std::string& shape, const std::string& dtype,
                         const std::string& text) {
    ExpectRefused(absl::StrCat("{", Entry("x", shape, "[0,4]", dtype), "}"), 4, kInvalid,
                  "tensor \"x\": " + text);
  };
  expect("[2]", "\"F17\"", "\"dtype\": expected one of F32, F16, BF16");
  expect("[2]", "16", "\"dtype\": expected a string, found 16");
  expect("[-2]", "\"F16\"", "\"shape\": expected an array of integers >= 0, found -2");
  expect("[2.0]", "\"F16\"", "\"shape\": expected an array of integers >= 0, found 2.0");
  expect("[\"2\"]", "\"F16\"", "\"shape\": expected an array of integers >= 0, found \"2\"");
  expect("[[2]]", "\"F16\"", "\"shape\": expected an array of integers >= 0, found an array");
  expect("2", "\"F16\"", "\"shape\": expected an array of integers >= 0, found 2");
  expect("[18446744073709551615]", "\"F16\"", "\"shape\": expected");
  expect("[99999999999999999999]", "\"F16\"", "\"shape\": expected");
  // 2^62 elements of 16 bits, and 2^64 elements, wrap to 0.
  expect("[4611686018427387904]", "\"F16\"", "expected a shape of whole bytes that fit an int64");
  expect("[4294967296,4294967296]", "\"I8\"", "expected a shape of whole bytes that fit an int64");
  expect("[3]", "\"F4\"", "expected a shape of whole bytes that fit an int64, found F4 [3]");
  expect("[3]", "\"F16\"", "expected 6 bytes for F16 [3], found data_offsets [0, 4]");
}

TEST(SafetensorsTest, RefusesMalformedOffsets) {
  const auto expect = [](const std::string& offsets, const std::string& text) {
    ExpectRefused(absl::StrCat("{", Entry("x", "[2]", offsets), "}"), 4, kInvalid,
                  "tensor \"x\": " + text);
  };
  expect("[4,0]", "\"data_offsets\": expected begin <= end, found [4, 0]");
  expect("[0]", "\"data_offsets\": expected an array of two integers >= 0, found 1 of them");
  expect("[0,4,8]", "\"data_offsets\": expected an array of two integers >= 0, found 8");
  expect("[-1,3]", "\"data_offsets\": expected an array of two integers >= 0, found -1");
  expect("null", "\"data_offsets\": expected an array of two integers >= 0, found null");
  expect("[18446744073709551612,18446744073709551615]", "\"data_offsets\": expected");
  ExpectRefused(
      absl::StrCat("{", Entry("x", "[2]", "[9223372036854775803,9223372036854775807]"), "}"), 4,
      kDataLoss, "expected data_offsets within");
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  ExpectRefused(absl::StrCat("{", Entry("x", "[2]", "[0,4]"), ",", Entry("y", "[2]", "[2,6]"), "}"),
                6, kInvalid,
                "tensor \"y\": expected to begin at offset 4, where \"x\" ends, found 2 (overlap)");
  ExpectRefused(absl::StrCat("{", Entry("x", "[2]", "[0,4]"), ",", Entry("y", "[2]", "[0,4]"), "}"),
                4, kInvalid, "found 0 (overlap)");
  ExpectRefused(absl::StrCat("{", Entry("x", "[2]", "[0,4]"), ",", Entry("y", "[1]", "[6,8]"), "}"),
                8, kInvalid,
                "tensor \"y\": expected to begin at offset 4, where \"x\" ends, found 6 (gap)");
  ExpectRefused(absl::StrCat("{", Entry("x", "[1]", "[2,4]"), "}"), 4, kInvalid,
                "tensor \"x\": expected to begin at offset 0, found 2 (gap)");
}

TEST(SafetensorsTest, RefusesDuplicateKeysAtEveryLevel) {
  ExpectRefused(absl::StrCat("{", Entry("x", "[2]", "[0,4]"), ",", Entry("x", "[2]", "[4,8]"), "}"),
                8, kInvalid, "tensor \"x\": expected once in the header, found twice");
  ExpectRefused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, kInvalid, "found twice");
  ExpectRefused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, kInvalid, "found \"a\" twice");
  ExpectRefused("{\"x\":{\"dtype\":\"F16\",\"dtype\":\"F32\"}}", 0, kInvalid,
                "tensor \"x\": expected one \"dtype\", found two");
}

TEST(SafetensorsTest, DeepNestingIsNoStackOverflow) {
  ExpectRefused("{\"x\":{\"shape\":" + std::string(1000000, '['), 0, kInvalid, "found an array");
}

TEST(SafetensorsTest, OpensFilesAndNamesThem) {
  const TestFolder folder;
  const std::vector<TestTensor> tensors = {{"w", "I32", {2}, BytesOf<int32_t>({5, 6})}};
  const std::string path = folder.Write("m.safetensors", SafetensorsBytes(tensors));
  const SafetensorsFile file = SafetensorsFile::Open(path).value();
  EXPECT_EQ(file.path(), path);
  ASSERT_EQ(file.tensors().size(), 1u);
  int32_t value = 0;
  std::memcpy(&value, file.file().bytes().data() + file.tensors()[0].offset + 4, 4);
  EXPECT_EQ(value, 6);
  EXPECT_EQ(SafetensorsFile::Open(folder.Path("none")).status().code(),
            absl::StatusCode::kNotFound);
  folder.Write("m.safetensors", "short");
  const absl::Status status = SafetensorsFile::Open(path).status();
  EXPECT_EQ(status.code(), kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

// Applies one to four random changes: flips, truncations, insertions, repeats, JSON tokens.
std::string Mutate(std::string bytes, std::mt19937& random) {
  static constexpr const char* kTokens[] = {
      "{",    "}",      "[",   "]",    ",",     ":",
      "\"",   "-",      "0",   "1e9",  "null",  "9223372036854775807",
      "true", "\"F4\"", "\\u", "\xf0", "1e999", "18446744073709551615"};
  const auto below = [&random](size_t n) { return n == 0 ? 0 : random() % n; };
  const size_t num_changes = 1 + below(4);
  for (size_t change = 0; change < num_changes; ++change) {
    const size_t at = below(bytes.size());
    switch (below(6)) {
      case 0:
        if (!bytes.empty()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        if (!bytes.empty()) bytes[at] = static_cast<char>(below(256));
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      case 4:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
        break;
      case 5:
        bytes.erase(at, below(8));
        break;
    }
  }
  return bytes;
}

// What ParseSafetensors promises of the tensors it lists.
void ExpectConsistent(const std::vector<TensorInfo>& tensors, size_t file_size) {
  int64_t previous_end = 0;
  for (const TensorInfo& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    if (tensor.loadable) {
      EXPECT_EQ(tensor.size_bytes, DTypeBytes(tensor.dtype, elements));
    }
    EXPECT_GE(tensor.offset, previous_end);
    previous_end = tensor.offset + tensor.size_bytes;
    EXPECT_LE(previous_end, static_cast<int64_t>(file_size));
  }
}

TEST(SafetensorsTest, NoMutationOfAFileCrashesTheReader) {
  const std::string header = absl::StrCat(
      "{\"__metadata__\":{\"format\":\"pt\"},", Entry("a.weight", "[2,3]", "[0,12]"), ",",
      Entry("a.bias", "[3]", "[12,24]", "\"F32\""), ",", Entry("n", "[0]", "[24,24]"), "}");
  const std::string data(24, 'd');
  std::mt19937 random(20240501);
  int accepted = 0;
  constexpr int kRounds = 20000;
  for (int round = 0; round < kRounds; ++round) {
    // Half of the rounds change the header under a right length, to get past the first checks.
    const std::string bytes = round % 2 == 0 ? SafetensorsBytes(Mutate(header, random), data)
                                             : Mutate(SafetensorsBytes(header, data), random);
    const absl::StatusOr<std::vector<TensorInfo>> tensors = Parse(bytes);
    if (tensors.ok()) {
      ++accepted;
      ExpectConsistent(*tensors, bytes.size());
    } else {
      EXPECT_TRUE(tensors.status().code() == kInvalid || tensors.status().code() == kDataLoss);
      EXPECT_THAT(std::string(tensors.status().message()), Not(HasSubstr("\n")));
    }
  }
  // Changes inside names and data are harmless, most others are not.
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_LT(accepted, kRounds / 2);
}

}  // namespace
}  // namespace thinwire
