// How much memory reading a GPTQ layer block by block needs.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/gptq_tensors.h"
#include "tests/support/peak_memory.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

constexpr int64_t kOut = 8192;
constexpr int64_t kIn = 16384;
constexpr int64_t kRowsOfBlock = 256;
constexpr int64_t kFileBytes = kOut * kIn / 2;
constexpr GptqConfig kConfig = {.bits = 4, .group_size = -1};

// A layer of 64 MB whose data is a hole in the file, so every tensor is 0.
void WriteSparseLayer(const TestFolder& folder) {
  std::string header;
  int64_t offset = 0;
  for (const TensorSpec& spec : GptqTensorSpecs("m", kOut, kIn, 1, kConfig.bits)) {
    const int64_t end = offset + TensorBytes(spec);
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"", spec.name, "\":{\"dtype\":\"",
                    StoredDTypeName(spec.dtype), "\",\"shape\":", ShapeString(spec.shape),
                    ",\"data_offsets\":[", offset, ",", end, "]}");
    offset = end;
  }
  const std::string bytes = SafetensorsBytes(header + "}", "");
  std::filesystem::resize_file(folder.Write("model.safetensors", bytes), bytes.size() + offset);
}

// Reads the whole layer by blocks of outputs, as a rank that repacks it does. The sum of the codes,
// or -1.
int64_t ReadByBlocks(const std::string& dir) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir);
  if (!checkpoint.ok()) return -1;
  const absl::StatusOr<GptqLinear> linear = GptqLinear::Open(&*checkpoint, "m", kOut, kIn, kConfig);
  if (!linear.ok()) return -1;
  std::vector<uint8_t> codes(kRowsOfBlock * kIn);
  int64_t sum = 0;
  for (int64_t row = 0; row < kOut; row += kRowsOfBlock) {
    const TensorView block(codes.data(), DType::kU8, {kRowsOfBlock, kIn});
    if (!linear->ReadCodes({row, row + kRowsOfBlock}, {0, kIn}, block).ok()) return -1;
    for (const uint8_t code : codes) sum += code;
  }
  return sum;
}

TEST(GptqMemoryTest, BlocksNeedLittleBesidesTheirCodes) {
  const TestFolder folder;
  WriteSparseLayer(folder);
  const PeakMemory measured = MeasurePeakMemory([&] { return ReadByBlocks(folder.path()); });
  ASSERT_EQ(measured.result, 0);
  if (WhyMemoryIsNotMeasurable() != nullptr) GTEST_SKIP() << WhyMemoryIsNotMeasurable();
  if (measured.growth_bytes < 0) GTEST_SKIP() << "the system does not say";
  // The block, 4 MiB, and its words, 2 MiB; 4 MiB of the file a step and what the system maps
  // around it; nothing that grows with the layer.
  EXPECT_GE(measured.growth_bytes, kRowsOfBlock * kIn);  // else the measurement is blind
  EXPECT_LE(measured.growth_bytes, kFileBytes / 2);
}

}  // namespace
}  // namespace thinwire
