#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/buffer.h"
#include "kernels/core/dtype.h"
#include "kernels/core/float16.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

std::string TempPath(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (name + "." + std::to_string(getpid())))
      .string();
}

TEST(DTypeTest, PackedRowsRoundUpToWholeBytes) {
  EXPECT_EQ(DTypeBytes(DType::kU3, 1), 1);
  EXPECT_EQ(DTypeBytes(DType::kU3, 8), 3);
  EXPECT_EQ(DTypeBytes(DType::kU3, 9), 4);
  EXPECT_EQ(DTypeBytes(DType::kU4, 3), 2);
  EXPECT_EQ(DTypeBytes(DType::kF16, 3), 6);
}

TEST(DTypeTest, NamesRoundTripAndUnknownNamesListTheKnown) {
  for (int i = 0; i <= static_cast<int>(DType::kU3); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(ParseDType(DTypeName(dtype)).value(), dtype);
  }
  const absl::Status status = ParseDType("float").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("fp16"), absl::string_view::npos);
}

TEST(Float16Test, EveryHalfSurvivesTheTripThroughFloat) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const float value = ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToHalf(value))));
    } else {
      EXPECT_EQ(ToHalf(value).bits, bits);
    }
  }
}

TEST(Float16Test, HalfRoundsToNearestEven) {
  EXPECT_EQ(ToFloat(ToHalf(1.0f + 0x1p-11f)), 1.0f);                // tie, even below
  EXPECT_EQ(ToFloat(ToHalf(1.0f + 3 * 0x1p-11f)), 1.0f + 0x1p-9f);  // tie, even above
  EXPECT_EQ(ToFloat(ToHalf(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(ToFloat(ToHalf(65520.0f))));
  EXPECT_EQ(ToFloat(ToHalf(0x1p-25f)), 0.0f);  // tie with zero
  EXPECT_EQ(ToFloat(ToHalf(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(ToHalf(-0.0f).bits, 0x8000);
}

TEST(Float16Test, BFloat16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(ToFloat(ToBFloat16(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(ToFloat(ToBFloat16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(TensorViewTest, RowsAndColumnsShareMemory) {
  std::vector<float> data(12);
  std::iota(data.begin(), data.end(), 0.0f);
  const TensorView matrix(data.data(), DType::kF32, {3, 4});
  EXPECT_EQ(matrix.num_elements(), 12);
  EXPECT_EQ(matrix.Rows(1, 2).data<float>()[0], 4.0f);
  const TensorView columns = matrix.Columns(2, 2);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(columns.row_stride(), 4);
  EXPECT_EQ(columns.Rows(2, 1).data<float>()[1], 11.0f);
  EXPECT_EQ(matrix.DebugString(), "fp32[3, 4]");
  EXPECT_TRUE(ConstTensorView().empty());
}

TEST(BufferTest, IsAlignedAndMoves) {
  Buffer a = Buffer::Allocate(100, Device::Cpu()).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
  std::byte* data = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.size_bytes(), 100);
  EXPECT_EQ(Buffer::Allocate(0, Device::Cpu())->size_bytes(), 0);
}

TEST(BufferTest, LargeOnesCostMemoryOnlyAsTheyFill) {
  constexpr size_t kSize = size_t{64} << 20;
  constexpr size_t kHugePage = size_t{2} << 20;
  const Buffer buffer = Buffer::Allocate(kSize, Device::Cpu()).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kHugePage, 0u);
  buffer.data()[kSize / 2] = std::byte{1};
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident(kSize / page);
  ASSERT_EQ(mincore(buffer.data(), kSize, resident.data()), 0);
  const auto num_resident = std::count_if(resident.begin(), resident.end(),
                                          [](unsigned char flags) { return (flags & 1) != 0; });
  // The page written to; a memory checker may mark the start.
  EXPECT_LE(num_resident * page, 2 * kHugePage);
  EXPECT_GE(num_resident, 1);
}

TEST(BufferTest, SizesBeyondAllMemoryAreRefused) {
  const auto buffer = Buffer::Allocate(std::numeric_limits<int64_t>::max(), Device::Cpu());
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(BufferTest, CudaIsRefusedWithAReasonWhereThereIsNone) {
  if (NumCudaDevices() > 0) return;
  const absl::Status status = CheckDeviceUsable(Device::Cuda(0));
  if (BuiltWithCuda()) {
    EXPECT_TRUE(absl::IsNotFound(status) || absl::IsFailedPrecondition(status)) << status;
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  }
}

TEST(ThreadPoolTest, EveryItemRunsOnceWhateverTheSizes) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t num_items : {0, 1, 2, 7, 64, 1001}) {
      for (const int64_t grain : {1, 3, 100}) {
        std::vector<int> hits(num_items, 0);
        pool.ParallelFor(num_items, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        EXPECT_EQ(hits, std::vector<int>(num_items, 1));
      }
      std::vector<int> hits(num_items, 0);
      pool.ParallelForDynamic(num_items, [&](int64_t item) { ++hits[item]; });
      EXPECT_EQ(hits, std::vector<int>(num_items, 1));
    }
  }
}

TEST(ThreadPoolTest, WakesWorkersThatWentToSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    usleep(20000);  // far longer than workers spin
    std::atomic<int64_t> sum{0};
    pool.ParallelForDynamic(100, [&](int64_t item) { sum += item; });
    EXPECT_EQ(sum.load(), 4950);
  }
}

TEST(StreamTest, ScratchGrowsAndStaysAligned) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (const int64_t bytes : {10, 1000, 100000}) {
    std::byte* scratch = stream.Scratch(bytes).value();
    std::memset(scratch, 1, bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(scratch) % 64, 0u);
  }
}

TEST(MappedFileTest, ReadsBytesAndNamesMissingFiles) {
  const std::string path = TempPath("mapped");
  std::ofstream(path) << "hello";
  {
    const MappedFile file = MappedFile::Open(path).value();
    ASSERT_EQ(file.bytes().size(), 5u);
    EXPECT_EQ(static_cast<char>(file.bytes()[4]), 'o');
    file.DropPages(0, 5);
    EXPECT_EQ(static_cast<char>(file.bytes()[0]), 'h');
  }
  std::filesystem::remove(path);
  const absl::Status status = MappedFile::Open(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find(path), absl::string_view::npos);
  EXPECT_EQ(MappedFile::Open("/tmp").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(MappedFileTest, AnEmptyFileHasNoBytes) {
  const std::string path = TempPath("empty");
  std::ofstream(path).close();
  EXPECT_TRUE(MappedFile::Open(path)->bytes().empty());
  std::filesystem::remove(path);
}

TEST(AtomicFileTest, NothingAppearsBeforeCommit) {
  const std::string path = TempPath("atomic");
  {
    AtomicFile file = AtomicFile::Create(path).value();
    ASSERT_TRUE(file.Write("abandoned").ok());
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_TRUE(WriteFileAtomically(path, "whole").ok());
  EXPECT_EQ(std::filesystem::file_size(path), 5u);
  std::filesystem::remove(path);
  EXPECT_EQ(AtomicFile::Create("/no/such/folder/x").status().code(), absl::StatusCode::kNotFound);
}

TEST(AtomicFileTest, CheckingLeavesNothingBehind) {
  const std::string path = TempPath("checked");
  EXPECT_TRUE(AtomicFile::CheckCreatable(path).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(AtomicFile::CheckCreatable(TempPath("no") + "/x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(AtomicFile::CheckCreatable("/").code(), absl::StatusCode::kFailedPrecondition);
}

TEST(AtomicFileTest, APipeIsWrittenNotReplaced) {
  const std::string path = TempPath("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  EXPECT_TRUE(AtomicFile::CheckCreatable(path).ok());
  EXPECT_TRUE(WriteFileAtomically(path, "whole").ok());
  char text[6] = {};
  EXPECT_EQ(read(reader, text, sizeof(text)), 5);
  EXPECT_STREQ(text, "whole");
  EXPECT_TRUE(std::filesystem::is_fifo(path));
  close(reader);
  std::filesystem::remove(path);
}

TEST(StatusTest, AnnotatePutsContextInFront) {
  const absl::Status status = Annotate(absl::NotFoundError("no tensor"), "a.safetensors");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "a.safetensors: no tensor");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

}  // namespace
}  // namespace thinwire
