#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/activation/activation.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

class ActivationCudaTest : public GpuTest {};

constexpr ActivationKind kKinds[] = {ActivationKind::kRelu, ActivationKind::kSilu,
                                     ActivationKind::kGelu, ActivationKind::kGeluTanh};

// What the tails of a function make of roundings before it: see activation_internal.h.
double Amplification(ActivationKind kind, double x) {
  if (kind == ActivationKind::kGelu) return x * x;
  if (kind == ActivationKind::kGeluTanh) return 8.0 * std::fabs(x + 0.044715 * x * x * x);
  return 0.0;
}

std::vector<float> Random(int64_t n, std::mt19937& random) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    values.push_back(std::normal_distribution<float>(0.0f, i % 7 == 0 ? 6.0f : 1.0f)(random));
  }
  return values;
}

TEST_F(ActivationCudaTest, AgreesWithTheDefinition) {
  const int64_t shapes[][3] = {{1, 1, 0}, {3, 7, 2}, {2, 64, 8}, {5, 4096, 0}, {3, 2731, 5}};
  std::mt19937 random(std::random_device{}());
  int turn = 0;
  for (const auto& shape : shapes) {
    for (const DType dtype : kFloatDTypes) {
      for (const ActivationKind kind : kKinds) {
        const auto [rows, width, gap] = std::tie(shape[0], shape[1], shape[2]);
        const bool gated = ++turn % 2 == 0;
        SCOPED_TRACE(absl::StrCat("kind ", static_cast<int>(kind), " ", DTypeName(dtype), " ", rows,
                                  " x ", width, " gap ", gap, gated ? " gated" : ""));
        const int64_t stride = width + gap;
        const Tensor gate = RoundedTensor(Random(rows * stride, random), dtype, rows, stride);
        const Tensor up = RoundedTensor(Random(rows * stride, random), dtype, rows, stride);
        Tensor device_gate = OnDevice(gate.view(), stream());
        const Tensor device_up = OnDevice(up.view(), stream());
        const TensorView x = device_gate.mutable_view().Columns(0, width);
        const absl::Status status =
            gated ? GatedActivation({kind, x, device_up.view().Columns(0, width), x}, stream())
                  : Activate(kind, x, stream());
        ASSERT_TRUE(status.ok()) << status;
        const std::vector<float> got = Floats(OnHost(device_gate.view(), stream()));
        const std::vector<float> before = Floats(gate);
        const std::vector<float> factor = Floats(up);
        for (size_t i = 0; i < got.size(); ++i) {
          if (static_cast<int64_t>(i) % stride >= width) {
            ASSERT_EQ(got[i], before[i]) << "gap overwritten";
            continue;
          }
          const double f = gated ? factor[i] : 1.0;
          const double want = ActivationReference(kind, before[i]) * f;
          const double relative =
              (12.0 + 2.0 * Amplification(kind, before[i])) * 0x1p-24 + UnitRoundoff(dtype);
          const double subnormal = dtype == DType::kF16 ? 0x1p-25 : 0x1p-134;
          ASSERT_NEAR(got[i], want,
                      1.01 * relative * std::fabs(want) + 0x1p-126 * std::fabs(f) + subnormal)
              << "x " << before[i];
        }
      }
    }
  }
}

TEST_F(ActivationCudaTest, InfinitiesAndNansAreThoseOfTheCpu) {
  const std::vector<float> x = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 3e38f, -3e38f, 1e-40f};
  for (const ActivationKind kind : kKinds) {
    Tensor on_cpu = RoundedTensor(x, DType::kF32, 1, 8);
    Tensor on_gpu = OnDevice(on_cpu.view(), stream());
    ASSERT_TRUE(Activate(kind, on_cpu.mutable_view(), host()).ok());
    ASSERT_TRUE(Activate(kind, on_gpu.mutable_view(), stream()).ok());
    const std::vector<float> want = Floats(on_cpu);
    const std::vector<float> got = Floats(OnHost(on_gpu.view(), stream()));
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(std::isnan(got[i]), std::isnan(want[i])) << x[i];
      if (!std::isnan(want[i])) {
        EXPECT_FLOAT_EQ(got[i], want[i]) << x[i];
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
