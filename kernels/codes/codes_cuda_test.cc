#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/codes/codes.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Parameters {
  Parameters(int64_t width, std::mt19937& random) : width(width) {
    for (int64_t c = 0; c < width; ++c) {
      step.push_back(std::exp(std::uniform_real_distribution<float>(-5.0f, -1.0f)(random)));
      inverse_step.push_back(1.0f / step.back());
      zero.push_back(std::uniform_real_distribution<float>(100.0f, 150.0f)(random));
      max_code.push_back(c % 2 == 0 ? 255 : 127);
    }
    for (int i = 0; i < 256; ++i) snap.push_back(static_cast<uint8_t>(i / 16 * 17));
  }

  int64_t width;
  std::vector<float> step, inverse_step, zero;
  std::vector<uint8_t> max_code, snap;
};

class CodesCudaTest : public GpuTest {
 protected:
  std::mt19937 random_{std::random_device{}()};

  Tensor Rows(DType dtype, int64_t rows, int64_t columns) {
    std::vector<float> values;
    for (int64_t i = 0; i < rows * columns; ++i) {
      values.push_back(std::normal_distribution<float>(0.0f, i % 31 == 0 ? 8.0f : 1.0f)(random_));
    }
    for (int64_t i = 0; i < columns; ++i) values[static_cast<size_t>(i)] = 0.0f;  // a row of zeros
    return RoundedTensor(values, dtype, rows, columns);
  }

  struct Coded {
    std::vector<uint8_t> codes;
    std::vector<float> gains;
  };

  Coded Run(GainKind gain, bool snap, const Tensor& x, int64_t width, const Parameters& p,
            const std::vector<float>& gains_before, Stream& on) {
    const int64_t rows = x.view().dim(0);
    const Tensor there = OnDevice(x.view(), on);
    const Tensor inverse_step = VectorOnDevice(p.inverse_step, on);
    const Tensor zero = VectorOnDevice(p.zero, on);
    const Tensor max_code = VectorOnDevice(p.max_code, on);
    const Tensor snaps = VectorOnDevice(p.snap, on);
    const std::vector<uint8_t> poison(static_cast<size_t>(rows * (width + 8)), 77);
    Tensor codes = OnDevice(ConstTensorView(poison.data(), DType::kU8, {rows, width + 8}), on);
    Tensor gains = VectorOnDevice(gains_before, on);
    QuantizeArgs args;
    args.x = there.view().Columns(0, width);
    args.inverse_step = inverse_step.view();
    args.zero = zero.view();
    args.max_code = max_code.view();
    if (snap) args.snap = snaps.view();
    args.gain = gain;
    args.codes = codes.mutable_view().Columns(0, width);
    args.gains = gains.mutable_view();
    const absl::Status status = Quantize(args, on);
    EXPECT_TRUE(status.ok()) << status;
    return {Values<uint8_t>(codes.view(), on), Values<float>(gains.view(), on)};
  }
};

TEST_F(CodesCudaTest, CodesAndGainsAreThoseOfTheCpu) {
  int turn = 0;
  for (const int64_t width : {1, 37, 64, 4096, 5003}) {
    for (const DType dtype : kFloatDTypes) {
      for (const GainKind gain :
           {GainKind::kNone, GainKind::kMax, GainKind::kGiven, GainKind::kRms}) {
        const int64_t gap = ++turn % 2 == 0 ? 8 : 1;
        const bool snap = turn % 3 == 0;
        SCOPED_TRACE(absl::StrCat(DTypeName(dtype), " width ", width, " gap ", gap, " gain ",
                                  static_cast<int>(gain), " snap ", snap));
        constexpr int64_t kRows = 6;
        const Parameters p(width, random_);
        const Tensor x = Rows(dtype, kRows, width + gap);
        const std::vector<float> before = {0.0f, 0.5f, 1.0f, 3.25f, 0.125f, 7.0f};
        const Coded found = Run(gain, snap, x, width, p, before, stream());
        if (gain == GainKind::kRms) {
          // The sum has another order, so a gain may fall to the other side of a rounding to fp16.
          const Coded want = Run(gain, snap, x, width, p, before, host());
          for (size_t t = 0; t < before.size(); ++t) {
            ASSERT_NEAR(found.gains[t], want.gains[t], 0x1p-10 * want.gains[t]);
          }
          const Coded given = Run(GainKind::kGiven, snap, x, width, p, found.gains, host());
          ASSERT_EQ(found.codes, given.codes);
        } else {
          const Coded want = Run(gain, snap, x, width, p, before, host());
          ASSERT_EQ(found.gains, want.gains);
          ASSERT_EQ(found.codes, want.codes);
        }
      }
    }
  }
}

TEST_F(CodesCudaTest, MaxGainsAndRoundedValuesAreThoseOfTheCpu) {
  for (const int64_t width : {1, 37, 64, 4096}) {
    for (const DType dtype : kFloatDTypes) {
      SCOPED_TRACE(absl::StrCat(DTypeName(dtype), " width ", width));
      const Parameters p(width, random_);
      constexpr int64_t kRows = 7;
      const Tensor x = Rows(dtype, kRows, width + 8);
      const auto run = [&](Stream& on) {
        Tensor there = OnDevice(x.view(), on);
        const Tensor step = VectorOnDevice(p.step, on);
        const Tensor inverse_step = VectorOnDevice(p.inverse_step, on);
        const Tensor zero = VectorOnDevice(p.zero, on);
        const Tensor max_code = VectorOnDevice(p.max_code, on);
        Tensor gains = VectorOnDevice(std::vector<float>(kRows, -1.0f), on);
        const TensorView part = there.mutable_view().Columns(0, width);
        EXPECT_TRUE(MaxGains(part, inverse_step.view(), gains.mutable_view(), on).ok());
        EXPECT_TRUE(
            RoundToCodes({part, step.view(), inverse_step.view(), zero.view(), max_code.view()}, on)
                .ok());
        std::vector<float> all = Values<float>(gains.view(), on);
        const std::vector<float> rounded = Floats(OnHost(there.view(), on));
        all.insert(all.end(), rounded.begin(), rounded.end());
        return all;
      };
      ASSERT_EQ(run(stream()), run(host()));
    }
  }
}

}  // namespace
}  // namespace thinwire
