#include "kernels/activation/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr ActivationKind kKinds[] = {ActivationKind::kRelu, ActivationKind::kSilu,
                                     ActivationKind::kGelu, ActivationKind::kGeluTanh};
constexpr double kEps = 0x1p-24;

// The bound that activation_internal.h states, plus the rounding to the dtype.
double Bound(ActivationKind kind, double x, double up, double want, DType dtype) {
  double tail = 0.0;
  if (kind == ActivationKind::kGelu) tail = x * x;
  if (kind == ActivationKind::kGeluTanh) tail = 8 * std::fabs(x + 0.044715 * x * x * x);
  const double computed = want == 0.0 ? 0.0 : (8 + tail) * kEps * std::fabs(want);
  // Half a step: of normal numbers relative, of subnormal ones absolute.
  double rounded = dtype == DType::kF32 ? 0.0 : UnitRoundoff(dtype) * std::fabs(want);
  if (dtype != DType::kF32) rounded += dtype == DType::kF16 ? 0x1p-25 : 0x1p-134;
  return computed * (1 + UnitRoundoff(dtype)) + rounded + 0x1p-126 * std::fabs(up);
}

std::vector<float> Values(int64_t count, std::mt19937& random) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) {
    // Magnitudes from 2^-20 to 2^7.
    v = std::ldexp(std::uniform_real_distribution<float>(-1.0f, 1.0f)(random),
                   std::uniform_int_distribution<int>(-20, 7)(random));
  }
  return values;
}

struct Case {
  int64_t rows;
  int64_t columns;
  int64_t padding;
};

// Activate, and GatedActivation in place and not, on [rows, columns] of wider matrices.
void CompareWithReference(const Case& c, ActivationKind kind, DType dtype, int num_threads) {
  SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(kind) << " "
                                  << std::string(DTypeName(dtype)) << "[" << c.rows << ", "
                                  << c.columns << "]");
  std::mt19937 random(static_cast<unsigned>(c.rows * 7919 + c.columns));
  const int64_t stride = c.columns + c.padding;
  Tensor activated = RoundedTensor(Values(c.rows * stride, random), dtype, c.rows, stride);
  const std::vector<float> x = Floats(activated);
  Tensor gated = RoundedTensor(x, dtype, c.rows, stride);
  Tensor in_place = RoundedTensor(x, dtype, c.rows, stride);
  const Tensor gate = RoundedTensor(x, dtype, c.rows, stride);
  const Tensor up = RoundedTensor(Values(c.rows * stride, random), dtype, c.rows, stride);
  const std::vector<float> factors = Floats(up);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const auto columns = [&](auto view) { return view.Columns(0, c.columns); };
  ASSERT_TRUE(Activate(kind, columns(activated.mutable_view()), stream).ok());
  ASSERT_TRUE(
      GatedActivation(
          {kind, columns(gate.view()), columns(up.view()), columns(gated.mutable_view())}, stream)
          .ok());
  ASSERT_TRUE(GatedActivation({kind, columns(in_place.view()), columns(up.view()),
                               columns(in_place.mutable_view())},
                              stream)
                  .ok());
  EXPECT_EQ(Floats(gate), x);
  EXPECT_EQ(Floats(in_place), Floats(gated));
  const std::vector<float> got = Floats(activated);
  const std::vector<float> got_gated = Floats(gated);
  for (int64_t i = 0; i < c.rows * stride; ++i) {
    const auto at = static_cast<size_t>(i);
    if (i % stride >= c.columns) {
      ASSERT_EQ(got[at], x[at]) << "padding changed";
      ASSERT_EQ(got_gated[at], x[at]) << "padding changed";
      continue;
    }
    const double want = ActivationReference(kind, x[at]);
    ASSERT_NEAR(got[at], want, Bound(kind, x[at], 1.0, want, dtype)) << "x = " << x[at];
    ASSERT_NEAR(got_gated[at], want * factors[at],
                Bound(kind, x[at], factors[at], want * factors[at], dtype))
        << "x = " << x[at] << ", up = " << factors[at];
  }
}

TEST(ActivationTest, AgreesWithTheDefinitionOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const Case& c : {Case{1, 1, 0}, Case{3, 7, 1}, Case{2, 17, 0}, Case{1, 1025, 3},
                          Case{5, 64, 64}, Case{2, 2053, 0}}) {
      for (const ActivationKind kind : kKinds) {
        for (const DType dtype : kFloatDTypes) CompareWithReference(c, kind, dtype, 1);
      }
    }
  });
}

TEST(ActivationTest, ThreadsSplitWideRowsOfOneToken) {
  for (const ActivationKind kind : kKinds) {
    CompareWithReference({1, 50021, 0}, kind, DType::kF32, 3);
    CompareWithReference({7, 5003, 1}, kind, DType::kBF16, 3);
  }
}

TEST(ActivationTest, IsAccurateOverTheWholeRange) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    std::vector<float> x;
    for (int i = -110000; i <= 110000; ++i) x.push_back(static_cast<float>(i) * 0.001f);
    const auto count = static_cast<int64_t>(x.size());
    for (const ActivationKind kind : kKinds) {
      std::vector<float> y = x;
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      ASSERT_TRUE(Activate(kind, TensorView(y.data(), DType::kF32, {1, count}), stream).ok());
      double worst = 0.0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double want = ActivationReference(kind, x[i]);
        const double bound = Bound(kind, x[i], 1.0, want, DType::kF32);
        worst = std::max(worst, std::fabs(y[i] - want) / bound);
        ASSERT_LE(std::fabs(y[i] - want), bound) << "x = " << x[i];
      }
      RecordProperty("worst_share_of_bound_" + std::to_string(static_cast<int>(kind)),
                     std::to_string(worst));
    }
  });
}

TEST(ActivationTest, LargeValuesGoToTheirLimits) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const ActivationKind kind : kKinds) {
      SCOPED_TRACE(static_cast<int>(kind));
      std::vector<float> x = {200.0f,        1e10f,   largest, infinity, 0.0f,
                              std::nanf(""), -200.0f, -1e10f,  -largest, -infinity};
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      ASSERT_TRUE(Activate(kind, TensorView(x.data(), DType::kF32, {1, 10}), stream).ok());
      EXPECT_EQ(x[0], 200.0f);
      EXPECT_EQ(x[1], 1e10f);
      EXPECT_EQ(x[2], largest);
      EXPECT_EQ(x[3], infinity);
      EXPECT_EQ(x[4], 0.0f);
      EXPECT_TRUE(std::isnan(x[5]));
      for (size_t i = 6; i < 10; ++i) EXPECT_EQ(x[i], 0.0f) << i;
      EXPECT_EQ(ActivationReference(kind, -infinity), 0.0);
      EXPECT_EQ(ActivationReference(kind, infinity), infinity);
      EXPECT_TRUE(std::isnan(ActivationReference(kind, std::nan(""))));
    }
  });
}

TEST(ActivationTest, KnownValues) {
  // To ten digits, from tables of the logistic function and of the normal distribution.
  EXPECT_NEAR(ActivationReference(ActivationKind::kSilu, 1.0), 0.7310585786, 1e-10);
  EXPECT_NEAR(ActivationReference(ActivationKind::kGelu, 1.0), 0.8413447461, 1e-10);
  EXPECT_NEAR(ActivationReference(ActivationKind::kGelu, -2.0), -2 * 0.0227501319, 1e-10);
  EXPECT_NEAR(ActivationReference(ActivationKind::kGeluTanh, 1.0), 0.8411919906, 1e-10);
  EXPECT_EQ(ActivationReference(ActivationKind::kRelu, -1.0), 0.0);
  EXPECT_EQ(ActivationReference(ActivationKind::kRelu, 2.5), 2.5);
}

TEST(ActivationTest, RefusesWrongArgumentsByName) {
  std::vector<float> data(12);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const TensorView x(data.data(), DType::kF32, {3, 4});
  const auto message = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const ActivationKind kind = ActivationKind::kSilu;
  EXPECT_THAT(message(Activate(kind, TensorView(data.data(), DType::kF32, {12}), stream)),
              HasSubstr("found fp32[12]"));
  EXPECT_THAT(message(Activate(kind, TensorView(data.data(), DType::kI32, {3, 4}), stream)),
              HasSubstr("found int32[3, 4]"));
  EXPECT_THAT(message(GatedActivation({kind, x, x.Rows(0, 2), x}, stream)),
              HasSubstr("up of fp32, fp16 or bf16, [num_tokens, width], like fp32[3, 4]"));
  EXPECT_THAT(message(GatedActivation({kind, x.Columns(0, 2), x, x}, stream)), HasSubstr("gate"));
  EXPECT_THAT(message(Activate(kind, TensorView(data.data(), DType::kF32, {3, 4}, Device::Cuda(0)),
                               stream)),
              HasSubstr("cuda:0"));
  EXPECT_TRUE(Activate(kind, TensorView(nullptr, DType::kF16, {0, 4}), stream).ok());
}

}  // namespace
}  // namespace thinwire
