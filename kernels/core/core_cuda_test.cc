#include <cstring>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/copy.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/event.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

class CoreCudaTest : public GpuTest {};

std::vector<int32_t> Counting(int64_t n) {
  std::vector<int32_t> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 1);
  return values;
}

TEST_F(CoreCudaTest, CopiesKeepValuesBothWaysAndWithin) {
  const std::vector<int32_t> values = Counting(3 * 5 * 7);
  const Tensor device = OnDevice(ConstTensorView(values.data(), DType::kI32, {3, 5, 7}), stream());
  Tensor second = TensorLike(device.view(), stream().device());
  ASSERT_TRUE(Copy(device.view(), second.mutable_view(), stream()).ok());
  EXPECT_EQ(Values<int32_t>(second.view(), stream()), values);
}

TEST_F(CoreCudaTest, CopiesOfColumnsLeaveTheOthersAlone) {
  const std::vector<int32_t> values = Counting(4 * 6);
  Tensor wide = OnDevice(ConstTensorView(values.data(), DType::kI32, {4, 6}), stream());
  const std::vector<int32_t> columns = {-1, -2, -3, -4, -5, -6, -7, -8};
  ASSERT_TRUE(Copy(ConstTensorView(columns.data(), DType::kI32, {4, 2}),
                   wide.mutable_view().Columns(3, 2), stream())
                  .ok());
  std::vector<int32_t> want = values;
  for (size_t i = 0; i < 4; ++i) {
    want[6 * i + 3] = columns[2 * i];
    want[6 * i + 4] = columns[2 * i + 1];
  }
  EXPECT_EQ(Values<int32_t>(wide.view(), stream()), want);
  EXPECT_EQ(Values<int32_t>(wide.view().Columns(3, 2), stream()), columns);
}

TEST_F(CoreCudaTest, PinnedMemoryGoesThereAndBack) {
  constexpr int64_t kBytes = 1 << 20;
  const PinnedBuffer from = PinnedBuffer::Allocate(kBytes, stream().device()).value();
  const PinnedBuffer to = PinnedBuffer::Allocate(kBytes, stream().device()).value();
  for (int64_t i = 0; i < kBytes; ++i) from.data()[i] = static_cast<std::byte>(i * i);
  Tensor device = Tensor::Allocate(DType::kU8, {kBytes}, stream().device()).value();
  ASSERT_TRUE(
      Copy(ConstTensorView(from.data(), DType::kU8, {kBytes}), device.mutable_view(), stream())
          .ok());
  ASSERT_TRUE(Copy(device.view(), TensorView(to.data(), DType::kU8, {kBytes}), stream()).ok());
  ASSERT_TRUE(stream().Synchronize().ok());
  EXPECT_EQ(std::memcmp(from.data(), to.data(), kBytes), 0);
}

TEST_F(CoreCudaTest, CopiesOfFewPinnedBytesGoThereAndBackAndNoFurther) {
  constexpr int64_t kRoom = 100'000;
  const Device device = stream().device();
  const PinnedBuffer from = PinnedBuffer::Allocate(kRoom, device).value();
  const PinnedBuffer to = PinnedBuffer::Allocate(kRoom, device).value();
  Tensor there = Tensor::Allocate(DType::kU8, {kRoom}, device).value();
  const auto bytes = [](const PinnedBuffer& buffer, int64_t begin, int64_t n) {
    return TensorView(buffer.data() + begin, DType::kU8, {n});
  };
  uint8_t salt = 0;
  for (const int64_t n : {1, 15, 16, 17, 129, 2064, 32 << 10, (32 << 10) + 1, 99'000}) {
    for (const int64_t begin : {0, 16, 5}) {  // 5: no multiple of what is copied at a time
      SCOPED_TRACE(testing::Message() << n << " bytes from " << begin << " on");
      ++salt;
      for (int64_t i = 0; i < kRoom; ++i) {
        from.data()[i] = static_cast<std::byte>(i * 7 + i / 251 + salt);
      }
      std::memset(to.data(), 0xee, kRoom);
      const TensorView middle = there.mutable_view().Rows(begin, n);
      ASSERT_TRUE(CopyPinned(bytes(from, begin, n), middle, stream()).ok());
      ASSERT_TRUE(CopyPinned(middle, bytes(to, begin, n), stream()).ok());
      ASSERT_TRUE(stream().Synchronize().ok());
      EXPECT_EQ(std::memcmp(from.data() + begin, to.data() + begin, static_cast<size_t>(n)), 0);
      EXPECT_EQ(to.data()[begin + n], std::byte{0xee});
      if (begin > 0) {
        EXPECT_EQ(to.data()[begin - 1], std::byte{0xee});
      }
    }
  }
  EXPECT_TRUE(CopyPinned(bytes(from, 0, 0), there.mutable_view().Rows(0, 0), stream()).ok());
  const TensorView wide(from.data(), DType::kU8, {4, 6});
  EXPECT_EQ(
      CopyPinned(wide.Columns(0, 2), TensorView(to.data(), DType::kU8, {4, 2}), stream()).code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(CoreCudaTest, EventsOrderStreamsAndMeasure) {
  const Device device = stream().device();
  Stream other = Stream::Cuda(device, &stream().pool()).value();
  constexpr int64_t kBytes = 64 << 20;
  Tensor a = Tensor::Allocate(DType::kU8, {kBytes}, device).value();
  Tensor b = Tensor::Allocate(DType::kU8, {kBytes}, device).value();
  Event start = Event::Create(device, Event::Kind::kTimed).value();
  Event end = Event::Create(device, Event::Kind::kTimed).value();
  ASSERT_TRUE(start.Record(stream()).ok());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Copy(a.view(), b.mutable_view(), stream()).ok());
  ASSERT_TRUE(end.Record(stream()).ok());
  ASSERT_TRUE(end.OrderBefore(other).ok());
  ASSERT_TRUE(other.Synchronize().ok());
  EXPECT_TRUE(end.Happened().value());
  EXPECT_GT(end.MillisecondsSince(start).value(), 0.0);
}

TEST_F(CoreCudaTest, OutOfMemorySaysHowMuchAndWhere) {
  const absl::Status status = Buffer::Allocate(int64_t{1} << 50, stream().device()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1125899906842624 bytes"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("cuda:0"));
  // The failure is over: the next call works.
  EXPECT_TRUE(Buffer::Allocate(256, stream().device()).ok());
}

TEST_F(CoreCudaTest, PropertiesArePlausible) {
  const DeviceProperties found = GetDeviceProperties(stream().device()).value();
  EXPECT_FALSE(found.name.empty());
  EXPECT_GE(found.compute_capability, 70);
  EXPECT_GT(found.num_multiprocessors, 0);
  EXPECT_GT(found.free_memory_bytes, 0);
  EXPECT_GE(found.memory_bytes, found.free_memory_bytes);
  EXPECT_GE(found.shared_memory_per_block_bytes, 48 << 10);
}

TEST_F(CoreCudaTest, AbsentGpusAreNotFound) {
  const Device absent = Device::Cuda(NumCudaDevices());
  EXPECT_EQ(Stream::Cuda(absent, &stream().pool()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GetDeviceProperties(absent).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace thinwire
