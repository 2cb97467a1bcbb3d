#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Case {
  int64_t num_tokens, out, in;
  DType x_dtype, weight_dtype;
  bool bias;
  int64_t x_gap, y_gap;
};

class LinearCudaTest : public GpuTest {
 protected:
  std::mt19937 random_{std::random_device{}()};

  // Rows `gap` elements apart; the gaps hold NaN.
  Tensor Random(DType dtype, int64_t rows, int64_t columns, int64_t gap) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<float> values;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns + gap; ++c) {
        values.push_back(c < columns ? uniform(random_) : std::numeric_limits<float>::quiet_NaN());
      }
    }
    return RoundedTensor(values, dtype, rows, columns + gap);
  }

  void ExpectMatchesReference(const Case& c, bool batch_invariant = false) {
    SCOPED_TRACE(absl::StrCat(c.num_tokens, " x ", c.out, " x ", c.in, ", ", DTypeName(c.x_dtype),
                              " by ", DTypeName(c.weight_dtype), " bias ", c.bias, " gaps ",
                              c.x_gap, " ", c.y_gap));
    const Tensor x = Random(c.x_dtype, c.num_tokens, c.in, c.x_gap);
    const Tensor weight = Random(c.weight_dtype, c.out, c.in, 0);
    const Tensor bias = Random(DType::kF32, 1, c.out, 0);
    const ConstTensorView bias_row(bias.view().raw(), DType::kF32, {c.out});
    const Tensor device_x = OnDevice(x.view(), stream());
    const Tensor device_weight = OnDevice(weight.view(), stream());
    const Tensor device_bias = OnDevice(bias_row, stream());
    Tensor y = OnDevice(Random(c.x_dtype, c.num_tokens, c.out, c.y_gap).view(), stream());
    LinearArgs args;
    args.x = device_x.view().Columns(0, c.in);
    args.weight = device_weight.view();
    if (c.bias) args.bias = device_bias.view();
    args.y = y.mutable_view().Columns(0, c.out);
    args.batch_invariant = batch_invariant;
    const absl::Status status = Linear(args, stream());
    ASSERT_TRUE(status.ok()) << status;
    const std::vector<float> found = Floats(OnHost(y.view(), stream()));
    const std::vector<float> xs = Floats(x), weights = Floats(weight), biases = Floats(bias);
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t o = 0; o < c.out + c.y_gap; ++o) {
        const float value = found[t * (c.out + c.y_gap) + o];
        if (o >= c.out) {
          ASSERT_TRUE(std::isnan(value)) << "gap of y overwritten at " << t << ", " << o;
          continue;
        }
        double sum = c.bias ? biases[o] : 0.0;
        double magnitude = std::fabs(sum);
        for (int64_t i = 0; i < c.in; ++i) {
          const double product =
              static_cast<double>(xs[t * (c.in + c.x_gap) + i]) * weights[o * c.in + i];
          sum += product;
          magnitude += std::fabs(product);
        }
        // A sum of `in` products and the bias in any order, within (in + 1) u of the absolute sum
        // to first order, u = 2^-24 where units that add 16-bit products truncate 2^-23; then the
        // rounding of y. TF32, with 2^-11 a product, would show from a few dozen products on.
        const double unit =
            c.x_dtype == DType::kF32 || c.x_dtype != c.weight_dtype ? 0x1p-24 : 0x1p-23;
        const double sum_error = 1.001 * static_cast<double>(c.in + 1) * unit * magnitude;
        const double bound = sum_error + UnitRoundoff(c.x_dtype) * (std::fabs(sum) + sum_error) +
                             (c.x_dtype == DType::kF16 ? 0x1p-25 : 0x1p-127);
        ASSERT_NEAR(static_cast<double>(value), sum, bound) << "token " << t << ", feature " << o;
      }
    }
  }
};

TEST_F(LinearCudaTest, AwkwardShapesOfAllTypesMatchTheReference) {
  int turn = 0;
  for (const int64_t num_tokens : {1, 3, 16, 65}) {
    for (const int64_t out : {1, 7, 64, 129}) {
      for (const int64_t in : {1, 31, 64, 97}) {
        for (const DType x_dtype : kFloatDTypes) {
          ++turn;
          const DType weight_dtype = turn % 5 == 0 ? kFloatDTypes[turn % 3] : x_dtype;
          ExpectMatchesReference({num_tokens, out, in, x_dtype, weight_dtype, turn % 2 == 0,
                                  turn % 3 == 0 ? 5 : 0, turn % 4 == 1 ? 3 : 0});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(LinearCudaTest, FewTokensInFp32ReadWeightsOfSixteenBitsAsTheyLie) {
  for (const DType weight_dtype : {DType::kF16, DType::kBF16}) {
    for (const int64_t num_tokens : {1, 3, 5, 8, 13, 33}) {
      for (const int64_t out : {1, 66, 517}) {
        for (const int64_t in : {8, 264, 2056, 31}) {
          ExpectMatchesReference({num_tokens, out, in, DType::kF32, weight_dtype, out == 66,
                                  in == 264 ? 4
                                  : in == 8 ? 1
                                            : 0,
                                  out == 517 ? 3 : 0});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(LinearCudaTest, BatchInvariantOfAnyShapeMatchesTheReference) {
  int turn = 0;
  for (const int64_t num_tokens : {1, 2, 8, 13, 17, 130}) {
    for (const int64_t out : {1, 33, 257}) {
      for (const int64_t in : {1, 31, 256, 264, 1000}) {
        const DType x_dtype = kFloatDTypes[++turn % 3];
        ExpectMatchesReference({num_tokens, out, in, x_dtype, kFloatDTypes[turn / 3 % 3],
                                turn % 2 == 0, turn % 4 == 0 ? 5 : 0, turn % 5 == 1 ? 3 : 0},
                               /*batch_invariant=*/true);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(LinearCudaTest, BatchInvariantMeansTheSameBitsBesideAnyTokensAndFeatures) {
  for (const DType x_dtype : kFloatDTypes) {
    for (const DType weight_dtype : kFloatDTypes) {
      for (const int64_t in : {7, 256, 2312, 4099}) {
        SCOPED_TRACE(absl::StrCat(DTypeName(x_dtype), " by ", DTypeName(weight_dtype), " of ", in));
        constexpr int64_t kTokens = 150, kOut = 300;
        const Tensor x = OnDevice(Random(x_dtype, kTokens, in, 0).view(), stream());
        const Tensor weight = OnDevice(Random(weight_dtype, kOut, in, 0).view(), stream());
        Tensor y = Tensor::Allocate(x_dtype, {kTokens, kOut}, stream().device()).value();
        ASSERT_TRUE(Linear({.x = x.view(),
                            .weight = weight.view(),
                            .y = y.mutable_view(),
                            .batch_invariant = true},
                           stream())
                        .ok());
        const std::vector<float> whole = Floats(OnHost(y.view(), stream()));
        for (const int64_t count : {1, 5, 11, 70}) {
          const int64_t token = static_cast<int64_t>(random_()) % (kTokens - count + 1);
          const int64_t out = 1 + static_cast<int64_t>(random_()) % (kOut / 2);
          const int64_t first = static_cast<int64_t>(random_()) % (kOut - out + 1);
          Tensor part = Tensor::Allocate(x_dtype, {count, out}, stream().device()).value();
          ASSERT_TRUE(Linear({.x = x.view().Rows(token, count),
                              .weight = weight.view().Rows(first, out),
                              .y = part.mutable_view(),
                              .batch_invariant = true},
                             stream())
                          .ok());
          const std::vector<float> found = Floats(OnHost(part.view(), stream()));
          for (int64_t t = 0; t < count; ++t) {
            for (int64_t o = 0; o < out; ++o) {
              ASSERT_EQ(found[t * out + o], whole[(token + t) * kOut + first + o])
                  << count << " tokens from " << token << ", features from " << first;
            }
          }
        }
      }
    }
  }
}

TEST_F(LinearCudaTest, LargeShapesMatchTheReferenceTwiceWithTheSameBits) {
  for (const DType dtype : kFloatDTypes) {
    ExpectMatchesReference({33, 512, 4096, dtype, dtype, true, 0, 0});
    ExpectMatchesReference({1, 1024, 4096, dtype, dtype, false, 0, 0});
    const Tensor x = OnDevice(Random(dtype, 20, 1024, 0).view(), stream());
    const Tensor weight = OnDevice(Random(dtype, 768, 1024, 0).view(), stream());
    std::vector<float> first;
    for (int i = 0; i < 3; ++i) {
      Tensor y = Tensor::Allocate(dtype, {20, 768}, stream().device()).value();
      ASSERT_TRUE(Linear({x.view(), weight.view(), {}, y.mutable_view()}, stream()).ok());
      const std::vector<float> values = Floats(OnHost(y.view(), stream()));
      if (i == 0) first = values;
      EXPECT_EQ(values, first);
    }
  }
}

}  // namespace
}  // namespace thinwire
