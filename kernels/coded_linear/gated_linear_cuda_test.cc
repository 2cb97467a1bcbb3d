// Linears with a gate against the same ones without, and GatedActivation of those: the same bits.
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation/activation.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/integer_linear_in_order.h"
#include "kernels/coded_linear/random_weights.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Case {
  int64_t num_tokens, half, in;  // half: rows of the gate
  int bits;
  int64_t group_size;  // 0: ragged
  DType dtype = DType::kF16;
  ActivationKind kind = ActivationKind::kSilu;
  bool bias = false;
};

class GatedLinearCudaTest : public GpuTest {
 protected:
  // run(y, gate): writes to y.
  template <typename Run>
  void ExpectSameBits(const Case& c, Run&& run) {
    SCOPED_TRACE(testing::Message()
                 << c.num_tokens << " x 2 x " << c.half << " x " << c.in << ", " << c.bits
                 << " bits, groups " << c.group_size << ", " << std::string(DTypeName(c.dtype)));
    const auto allocate = [&](int64_t width) {
      return Tensor::Allocate(c.dtype, {c.num_tokens, width}, stream().device()).value();
    };
    // Rows a little wider than what is written.
    Tensor both = allocate(2 * c.half), expected = allocate(c.half), found = allocate(c.half + 3);
    absl::Status status = run(both.mutable_view(), std::nullopt);
    ASSERT_TRUE(status.ok()) << status;
    status = GatedActivation({.kind = c.kind,
                              .gate = both.view().Columns(0, c.half),
                              .up = both.view().Columns(c.half, c.half),
                              .out = expected.mutable_view()},
                             stream());
    ASSERT_TRUE(status.ok()) << status;
    status = run(found.mutable_view().Columns(0, c.half), c.kind);
    ASSERT_TRUE(status.ok()) << status;
    const std::vector<float> want = Floats(OnHost(expected.view(), stream()));
    const std::vector<float> have = Floats(OnHost(found.view().Columns(0, c.half), stream()));
    ASSERT_EQ(have, want);
    ASSERT_TRUE(std::isfinite(want[0]));
  }

  void ExpectFloats(const Case& c) {
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.half * 31 + c.in));
    const Weights w(2 * c.half, c.in, c.bits, Offsets(c.in, c.group_size, random),
                    (1 << c.bits) - 1, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    std::normal_distribution<float> normal;
    // So that both gates nearly shut and wide open occur.
    const float deviation = 1.0f / std::sqrt(static_cast<float>(c.in << (2 * c.bits - 4)));
    std::vector<float> values, bias;
    for (int64_t i = 0; i < c.num_tokens * c.in; ++i) values.push_back(deviation * normal(random));
    for (int64_t i = 0; i < 2 * c.half; ++i) bias.push_back(normal(random));
    const Tensor x = OnDevice(RoundedTensor(values, c.dtype, c.num_tokens, c.in).view(), stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    ExpectSameBits(c, [&](TensorView y, std::optional<ActivationKind> gate) {
      return CodedLinear({.x = x.view(),
                          .weights = &weights,
                          .bias = c.bias ? device_bias.view() : ConstTensorView(),
                          .y = y,
                          .gate = gate},
                         stream());
    });
  }

  void ExpectIntegers(const Case& c, int64_t segment_size, bool in_order) {
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.half * 31 + c.in));
    const Weights w(2 * c.half, c.in, c.bits, Offsets(c.in, c.group_size, random),
                    (1 << c.bits) - 1, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    const std::vector<int32_t> segments = Subdivided(w.offsets, segment_size, random);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    const float scale = 0x1p-6f / std::sqrt(static_cast<float>(c.in << (2 * c.bits - 4)));
    std::vector<float> steps, gains, offsets, bias;
    for (size_t s = 1; s < segments.size(); ++s) steps.push_back(uniform(random) * scale);
    for (int64_t t = 0; t < c.num_tokens; ++t) gains.push_back(uniform(random));
    for (int64_t o = 0; o < 2 * c.half; ++o) {
      offsets.push_back(uniform(random));
      bias.push_back(uniform(random));
    }
    std::vector<uint8_t> codes(static_cast<size_t>(c.num_tokens * c.in));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
    const Tensor x =
        OnDevice(ConstTensorView(codes.data(), DType::kU8, {c.num_tokens, c.in}), stream());
    const Tensor device_gains = VectorOnDevice(gains, stream());
    const Tensor device_offsets = VectorOnDevice(offsets, stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    ExpectSameBits(c, [&](TensorView y, std::optional<ActivationKind> gate) {
      return (in_order ? IntegerLinearInOrder : IntegerLinear)(
          {.codes = x.view(),
           .gains = device_gains.view(),
           .segment_offsets = segments,
           .segment_step = steps,
           .weights = &weights,
           .offset = device_offsets.view(),
           .bias = c.bias ? device_bias.view() : ConstTensorView(),
           .y = y,
           .gate = gate},
          stream());
    });
  }
};

constexpr ActivationKind kKinds[] = {ActivationKind::kRelu, ActivationKind::kSilu,
                                     ActivationKind::kGelu, ActivationKind::kGeluTanh};

TEST_F(GatedLinearCudaTest, FloatsHaveTheBitsOfBothOperators) {
  // One block a row, clusters of 2 and 4, and partial results of 3, 4 and 7.
  for (const int64_t in : {128, 1024, 2304, 4096, 4608, 8192, 14336}) {
    for (const int64_t num_tokens : {1, 3, 8, 9, 16, 17, 64}) {
      ExpectFloats({num_tokens, 16 * (1 + in / 256), in, 4, 128});
    }
  }
  int i = 0;
  for (const int bits : {3, 4, 8}) {
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t num_tokens : {1, 5, 13, 33}) {
        ExpectFloats({num_tokens, 48, 640, bits, 128, dtype, kKinds[i++ % 4], i % 3 == 0});
        ExpectFloats({num_tokens, 16, 517, bits, 0, dtype, kKinds[i++ % 4], i % 3 == 0});
        ExpectFloats({num_tokens, 80, 4300, bits, 64, dtype, kKinds[i++ % 4], i % 3 == 0});
      }
    }
  }
  // More pairs of panels than blocks, and than a cluster keeps.
  ExpectFloats({2, 4800, 256, 4, 128});
  ExpectFloats({16, 4800, 2304, 4, 128});
}

TEST_F(GatedLinearCudaTest, CodesHaveTheBitsOfBothOperators) {
  int i = 0;
  for (const int64_t in : {300, 1024, 4096, 8192, 9344}) {
    for (const int bits : {3, 4, 8}) {
      for (const int64_t num_tokens : {1, 8, 11, 40}) {
        const bool ragged = i % 5 == 0;
        ExpectIntegers({num_tokens, 16 * (1 + i % 7), in, bits, ragged ? 0 : 128,
                        kFloatDTypes[i % 3], kKinds[i / 2 % 4], i % 3 == 0},
                       i % 2 == 0 ? 128 : 48, i % 4 == 0);
        ++i;
      }
    }
  }
}

TEST_F(GatedLinearCudaTest, OthersAreUnimplemented) {
  std::mt19937 random(3);
  const auto run = [&](int64_t num_tokens, int64_t rows, int64_t width) {
    const Weights w(rows, 128, 4, {0, 128}, 15, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    EXPECT_EQ(HasGates(weights, num_tokens), rows % 32 == 0 && num_tokens <= 64);
    EXPECT_FALSE(HasGates(w.coded, num_tokens));
    const Tensor x = OnDevice(NormalTensor(DType::kF16, num_tokens, 128).view(), stream());
    Tensor y = Tensor::Allocate(DType::kF16, {num_tokens, width}, stream().device()).value();
    return CodedLinear({.x = x.view(),
                        .weights = &weights,
                        .y = y.mutable_view(),
                        .gate = ActivationKind::kSilu},
                       stream())
        .code();
  };
  EXPECT_EQ(run(64, 64, 32), absl::StatusCode::kOk);
  EXPECT_EQ(run(65, 64, 32), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(run(1, 48, 24), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(run(1, 64, 64), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace thinwire
