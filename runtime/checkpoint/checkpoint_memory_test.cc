// How much memory a rank needs to read its shard. A program of its own, because it is skipped as a
// whole where memory cannot be measured.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr int kNumMatrices = 8;
constexpr int64_t kRows = 4096;
constexpr int64_t kColumns = 4096;
constexpr int64_t kMatrixBytes = kRows * kColumns * 2;

std::string MatrixName(int i) { return absl::StrCat("m", i); }

// A checkpoint of 256 MB whose data is a hole in the file.
void WriteSparseCheckpoint(const TestFolder& folder) {
  std::string header = "{";
  for (int i = 0; i < kNumMatrices; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", MatrixName(i),
                    "\":{\"dtype\":\"F16\",\"shape\":[", kRows, ",", kColumns,
                    "],\"data_offsets\":[", i * kMatrixBytes, ",", (i + 1) * kMatrixBytes, "]}");
  }
  const std::string bytes = SafetensorsBytes(absl::StrCat(header, "}"), "");
  const std::string path = folder.Write("model.safetensors", bytes);
  std::filesystem::resize_file(path, bytes.size() + kNumMatrices * kMatrixBytes);
}

// The most memory that this process ever had resident, since the last reset; 0 if the system does
// not say.
int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

// Rank 0 of 2: half the rows of some matrices, half the columns of the others.
absl::StatusOr<std::vector<Tensor>> ReadShard(const std::string& dir) {
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  std::vector<Tensor> shard;
  for (int i = 0; i < kNumMatrices; ++i) {
    const bool by_rows = i % 2 == 0;
    const int64_t rows = by_rows ? kRows / 2 : kRows;
    const int64_t columns = by_rows ? kColumns : kColumns / 2;
    TW_ASSIGN_OR_RETURN(Tensor tensor,
                        Tensor::Allocate(DType::kF16, {rows, columns}, Device::Cpu()));
    TW_RETURN_IF_ERROR(checkpoint.Read(MatrixName(i), {kRows, kColumns},
                                       {.rows = Range{0, rows}, .columns = Range{0, columns}},
                                       tensor.mutable_view()));
    shard.push_back(std::move(tensor));
  }
  return shard;
}

struct Measurement {
  bool ok = false;
  int64_t shard_bytes = 0;
  int64_t peak_growth = 0;  // negative: not measured
};

Measurement Measure(const std::string& dir) {
  Measurement result;
  std::ofstream("/proc/self/clear_refs") << "5";  // sets the peak to what is resident now
  const int64_t before = PeakResidentBytes();
  const absl::StatusOr<std::vector<Tensor>> shard = ReadShard(dir);
  result.peak_growth = before == 0 ? -1 : PeakResidentBytes() - before;
  result.ok = shard.ok();
  if (!shard.ok()) std::fprintf(stderr, "%s\n", shard.status().ToString().c_str());
  if (shard.ok()) {
    for (const Tensor& tensor : *shard) result.shard_bytes += tensor.size_bytes();
  }
  return result;
}

// In a child process, whose peak starts at what it shares with this one.
Measurement MeasureInChild(const std::string& dir) {
  int ends[2];
  Measurement result;
  if (pipe(ends) != 0) return result;
  const pid_t child = fork();
  if (child == 0) {
    const Measurement measured = Measure(dir);
    _exit(write(ends[1], &measured, sizeof(measured)) == sizeof(measured) ? 0 : 1);
  }
  close(ends[1]);
  if (child < 0 || read(ends[0], &result, sizeof(result)) != sizeof(result)) result = {};
  close(ends[0]);
  if (child > 0) waitpid(child, nullptr, 0);
  return result;
}

TEST(CheckpointMemoryTest, ARankNeedsLittleMoreThanItsShard) {
  const TestFolder folder;
  WriteSparseCheckpoint(folder);
  const Measurement measured = MeasureInChild(folder.path());
  ASSERT_TRUE(measured.ok);
  ASSERT_EQ(measured.shard_bytes, kNumMatrices * kMatrixBytes / 2);
  if (kSanitized) GTEST_SKIP() << "shadow memory of the sanitizer counts as resident";
  if (measured.peak_growth < 0) GTEST_SKIP() << "/proc/self/status has no VmHWM";
  const double ratio =
      static_cast<double>(measured.peak_growth) / static_cast<double>(measured.shard_bytes);
  std::printf("shard %.1f MB, peak growth %.1f MB, ratio %.3f\n", measured.shard_bytes / 1e6,
              measured.peak_growth / 1e6, ratio);
  EXPECT_GE(ratio, 0.99);  // else the measurement is blind
  EXPECT_LE(ratio, 1.10);
}

}  // namespace
}  // namespace thinwire
