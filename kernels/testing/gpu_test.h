// For tests of CUDA code: a stream on the first GPU, or a skipped test.
#pragma once

#include <memory>

#include "gtest/gtest.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// Skips the test where no GPU is.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU here";
    stream_ = std::make_unique<Stream>(Stream::Cuda(Device::Cuda(0), &pool_).value());
  }

  Stream& stream() { return *stream_; }  // of the GPU
  Stream& host() { return host_; }       // of the CPU, for comparison

 private:
  ThreadPool pool_{2};
  Stream host_ = Stream::Cpu(&pool_);
  std::unique_ptr<Stream> stream_;
};

}  // namespace thinwire
