// Linears whose blocks have whole rows against the same whose blocks share them: the same bits,
// which coded_linear_cuda_test compares with the definition.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation/activation.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/coded_linear/random_weights.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Case {
  int64_t num_tokens, out, in;
  int bits = 4;
  int64_t group_size = 128;
  DType dtype = DType::kF16;
  std::optional<ActivationKind> gate = std::nullopt;
  bool bias = false;
  int64_t x_gap = 0;
};

std::ostream& operator<<(std::ostream& to, const Case& c) {
  return to << c.num_tokens << " x " << c.out << " x " << c.in << ", " << c.bits << " bits, groups "
            << c.group_size << ", " << std::string(DTypeName(c.dtype))
            << (c.gate.has_value() ? ", gated" : "") << (c.bias ? ", bias" : "");
}

class WholeRowsLinearCudaTest : public GpuTest {
 protected:
  void ExpectSameBits(const Case& c) {
    SCOPED_TRACE(testing::Message() << c);
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.out * 31 + c.in));
    const Weights w(c.out, c.in, c.bits, Offsets(c.in, c.group_size, random), (1 << c.bits) - 1,
                    random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    const float deviation = 1.0f / std::sqrt(static_cast<float>(c.in << (2 * c.bits - 4)));
    std::normal_distribution<float> normal;
    const int64_t stride = c.in + c.x_gap;
    std::vector<float> values, bias;
    for (int64_t i = 0; i < c.num_tokens * stride; ++i)
      values.push_back(deviation * normal(random));
    for (int64_t i = 0; i < c.out; ++i) bias.push_back(normal(random));
    const Tensor x =
        OnDevice(RoundedTensor(values, c.dtype, c.num_tokens, stride).view(), stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    // Rows a little wider than what is written, of NaNs.
    constexpr int64_t kGap = 3;
    const int64_t width = c.gate.has_value() ? c.out / 2 : c.out;
    const auto run = [&](absl::Status (*way)(const CodedLinearArgs&, Stream&)) {
      const std::vector<float> nans(static_cast<size_t>(c.num_tokens * (width + kGap)),
                                    std::numeric_limits<float>::quiet_NaN());
      Tensor y =
          OnDevice(RoundedTensor(nans, c.dtype, c.num_tokens, width + kGap).view(), stream());
      CodedLinearArgs args;
      args.x = x.view().Columns(0, c.in);
      args.weights = &weights;
      if (c.bias) args.bias = device_bias.view();
      args.y = y.mutable_view().Columns(0, width);
      args.gate = c.gate;
      const absl::Status status = way(args, stream());
      EXPECT_TRUE(status.ok()) << status;
      return Floats(OnHost(y.view(), stream()));
    };
    const std::vector<float> want = run(CodedLinearSharedRowsCuda);
    const std::vector<float> have = run(CodedLinearWholeRowsCuda);
    ASSERT_EQ(have.size(), want.size());
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t o = 0; o < width + kGap; ++o) {
        const float expected = want[t * (width + kGap) + o], found = have[t * (width + kGap) + o];
        if (o < width) {
          ASSERT_EQ(found, expected) << "token " << t << ", row " << o;
        } else {
          ASSERT_TRUE(std::isnan(found)) << "gap of y overwritten";
        }
      }
    }
    ASSERT_TRUE(std::isfinite(want[0]));
  }
};

TEST_F(WholeRowsLinearCudaTest, HaveTheBitsOfSharedOnes) {
  for (const int bits : {3, 4, 8}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      // 2 to 7 turns, the last ones not full; an odd number of panels; all of a warp's tokens.
      for (const int64_t in : {2304, 4096, 4608, 8192, 9344, 14336}) {
        for (const int64_t num_tokens : {1, 3}) {
          if (num_tokens > 1 && bits == 8 && in == 14336) continue;  // too long
          ExpectSameBits({num_tokens, 40 + in % 7, in, bits, 128, dtype, {}, in % 3 == 0});
        }
      }
      ExpectSameBits({8, 515, 2304, bits, 128, dtype, {}, true, 8});
      ExpectSameBits({5, 96, 4096, bits, 512, dtype, {}, false, 24});
    }
  }
}

TEST_F(WholeRowsLinearCudaTest, GoThroughManyPairsOfPanels) {
  // More than there are multiprocessors, and an odd number of panels.
  ExpectSameBits({1, 9000, 2304});
  ExpectSameBits({4, 8720, 4096, 4, 256});
  ExpectSameBits({2, 6000, 8192, 3, 128, DType::kBF16});
}

TEST_F(WholeRowsLinearCudaTest, Gate) {
  for (const int64_t num_tokens : {1, 2, 7}) {
    ExpectSameBits({num_tokens, 64, 2304, 4, 128, DType::kF16, ActivationKind::kSilu});
    ExpectSameBits({num_tokens, 10240, 4096, 4, 128, DType::kF16, ActivationKind::kSilu, true});
    ExpectSameBits({num_tokens, 96, 2304, 8, 128, DType::kBF16, ActivationKind::kGelu, true});
  }
}

TEST_F(WholeRowsLinearCudaTest, AreOfUpToEightTokensThatFit) {
  std::mt19937 random(5);
  const auto way = [&](int64_t num_tokens, int64_t in, int64_t group_size, DType dtype) {
    const Weights w(32, in, 4, Offsets(in, group_size, random), 15, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    const Tensor x = OnDevice(NormalTensor(dtype, num_tokens, in).view(), stream());
    Tensor y = Tensor::Allocate(dtype, {num_tokens, 32}, stream().device()).value();
    return CodedLinearWholeRowsCuda({.x = x.view(), .weights = &weights, .y = y.mutable_view()},
                                    stream())
        .code();
  };
  EXPECT_EQ(way(8, 4096, 128, DType::kF16), absl::StatusCode::kOk);
  EXPECT_EQ(way(9, 4096, 128, DType::kF16), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(way(1, 2048, 128, DType::kF16), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(way(1, 4096, 64, DType::kF16), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(way(1, 4096, 128, DType::kF32), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(way(8, 14336, 128, DType::kF16), absl::StatusCode::kUnimplemented);  // too long
}

}  // namespace
}  // namespace thinwire
