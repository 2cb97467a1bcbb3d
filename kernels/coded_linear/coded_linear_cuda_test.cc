#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/coded_linear/integer_linear_in_order.h"
#include "kernels/coded_linear/random_weights.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Case {
  int64_t num_tokens, out, in;
  int bits;
  int64_t group_size;  // 0: ragged
  DType dtype = DType::kF32;
  int64_t segment_size = 0;  // of codes; 0: ragged
  bool extras = true;        // bias; of codes also gains and offset
  int64_t x_gap = 0, y_gap = 0;
  int max_zero = 255;  // for codes
};

std::ostream& operator<<(std::ostream& to, const Case& c) {
  return to << c.num_tokens << " x " << c.out << " x " << c.in << ", " << c.bits << " bits, groups "
            << c.group_size << ", segments " << c.segment_size << ", "
            << std::string(DTypeName(c.dtype)) << ", gaps " << c.x_gap << " " << c.y_gap;
}

class CodedLinearCudaTest : public GpuTest {
 protected:
  Tensor NaNs(const Case& c) {
    const int64_t stride = c.out + c.y_gap;
    return OnDevice(
        RoundedTensor(std::vector<float>(static_cast<size_t>(c.num_tokens * stride), kNaN), c.dtype,
                      c.num_tokens, stride)
            .view(),
        stream());
  }

  void ExpectFloats(const Case& c, absl::Status (*way)(const CodedLinearArgs&, Stream&),
                    bool rounds_weights) {
    SCOPED_TRACE(testing::Message() << c);
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.out * 31 + c.in));
    const int max_zero = (1 << c.bits) - 1;
    const Weights w(c.out, c.in, c.bits, Offsets(c.in, c.group_size, random), max_zero, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    std::normal_distribution<float> normal(0.0f, 1.0f);
    const int64_t x_stride = c.in + c.x_gap, y_stride = c.out + c.y_gap;
    std::vector<float> values(static_cast<size_t>(c.num_tokens * x_stride), kNaN), bias;
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t i = 0; i < c.in; ++i) values[t * x_stride + i] = normal(random);
    }
    for (int64_t o = 0; o < c.out; ++o) bias.push_back(normal(random));
    const Tensor host_x = RoundedTensor(values, c.dtype, c.num_tokens, x_stride);
    const std::vector<float> rounded = Floats(host_x);
    const Tensor x = OnDevice(host_x.view(), stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    Tensor y = NaNs(c);
    CodedLinearArgs args;
    args.x = x.view().Columns(0, c.in);
    args.weights = &weights;
    if (c.extras) args.bias = device_bias.view();
    args.y = y.mutable_view().Columns(0, c.out);
    const absl::Status status = way(args, stream());
    ASSERT_TRUE(status.ok()) << status;
    const Tensor host_y = OnHost(y.view(), stream());
    const std::vector<float> found = Floats(host_y);
    // Codes, with what is added to them for bf16, and zeros are multiplied apart.
    const double constant = c.dtype == DType::kF16 ? 0.0 : c.bits == 8 ? 2176.0 : 128.0;
    const double u = 0x1p-24;
    for (int64_t o = 0; o < c.out; ++o) {
      std::vector<float> row(static_cast<size_t>(c.in));
      w.coded.DequantizeRow(o, absl::MakeSpan(row));
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        double sum = c.extras ? static_cast<double>(bias[o]) : 0.0;
        double magnitude = std::fabs(sum), products = 0.0;
        for (int64_t i = 0; i < c.in; ++i) {
          const int64_t g = o * w.num_groups + w.Group(i);
          const double value = rounded[t * x_stride + i];
          sum += value * static_cast<double>(row[i]);
          products += std::fabs(value * static_cast<double>(row[i]));
          magnitude += std::fabs(value * static_cast<double>(w.scales[g])) *
                       (2.0 * constant + w.codes[o * c.in + i] + w.zeros[g]);
        }
        // Any order has at most this many roundings in a chain, of which matrix units cut off a
        // whole unit; three planes of fp32 leave 2^-24 of a value.
        const double chain = 2.0 * static_cast<double>(c.in + 3 * w.num_groups + 8);
        double error = chain * u * magnitude;
        if (rounds_weights && c.dtype != DType::kF32) error += UnitRoundoff(c.dtype) * products;
        const double bound = error + UnitRoundoff(c.dtype) * (std::fabs(sum) + error) + 0x1p-25;
        ASSERT_NEAR(static_cast<double>(found[t * y_stride + o]), sum, bound)
            << "token " << t << ", row " << o;
      }
    }
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t o = c.out; o < y_stride; ++o) {
        ASSERT_TRUE(std::isnan(found[t * y_stride + o])) << "gap of y overwritten";
      }
    }
  }

  // Returns y as fp32, [num_tokens, out].
  std::vector<float> ExpectIntegers(const Case& c, int64_t run_tokens, bool in_order = false) {
    SCOPED_TRACE(testing::Message() << c);
    std::mt19937 random(static_cast<uint32_t>(c.out * 31 + c.in));
    const Weights w(c.out, c.in, c.bits, Offsets(c.in, c.group_size, random), c.max_zero, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    const std::vector<int32_t> segments = Subdivided(w.offsets, c.segment_size, random);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<float> steps, gains, offsets, bias;
    for (size_t s = 1; s < segments.size(); ++s) steps.push_back(uniform(random) * 0x1p-12f);
    for (int64_t t = 0; t < c.num_tokens; ++t) gains.push_back(uniform(random));
    for (int64_t o = 0; o < c.out; ++o) {
      offsets.push_back(uniform(random) * 10.0f);
      bias.push_back(uniform(random));
    }
    const int64_t x_stride = c.in + c.x_gap, y_stride = c.out + c.y_gap;
    std::vector<uint8_t> codes(static_cast<size_t>(c.num_tokens * x_stride));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
    const Tensor x =
        OnDevice(ConstTensorView(codes.data(), DType::kU8, {c.num_tokens, x_stride}), stream());
    const Tensor device_gains = VectorOnDevice(gains, stream());
    const Tensor device_offsets = VectorOnDevice(offsets, stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    Tensor y = NaNs(c);
    IntegerLinearArgs args;
    args.codes = x.view().Columns(0, c.in).Rows(0, run_tokens);
    args.segment_offsets = segments;
    args.segment_step = steps;
    args.weights = &weights;
    if (c.extras) {
      args.gains = device_gains.view().Rows(0, run_tokens);
      args.offset = device_offsets.view();
      args.bias = device_bias.view();
    }
    args.y = y.mutable_view().Columns(0, c.out).Rows(0, run_tokens);
    const absl::Status status = (in_order ? IntegerLinearInOrder : IntegerLinear)(args, stream());
    EXPECT_TRUE(status.ok()) << status;
    const Tensor host_y = OnHost(y.view(), stream());
    const std::vector<float> found = Floats(host_y);
    std::vector<float> result;
    for (int64_t t = 0; t < run_tokens; ++t) {
      for (int64_t o = 0; o < c.out; ++o) {
        double sum = c.extras ? -static_cast<double>(offsets[o]) : 0.0;
        double magnitude = std::fabs(sum);
        for (size_t s = 0; s + 1 < segments.size(); ++s) {
          const int64_t g = o * w.num_groups + w.Group(segments[s]);
          int64_t isum = 0, products = 0;
          for (int64_t i = segments[s]; i < segments[s + 1]; ++i) {
            const int product = codes[t * x_stride + i] * (w.codes[o * c.in + i] - w.zeros[g]);
            isum += product;
            products += std::abs(product);
          }
          const double factor = static_cast<double>(steps[s]) * static_cast<double>(w.scales[g]);
          sum += factor * static_cast<double>(isum);
          // A segment may be summed in pieces, each exact, which may cancel.
          magnitude += std::fabs(factor) * static_cast<double>(products);
        }
        const double gain = c.extras ? static_cast<double>(gains[t]) : 1.0;
        const double addend = c.extras ? static_cast<double>(bias[o]) : 0.0;
        const double value = gain * sum + addend;
        // A step times a scale and an integer are rounded, then added: a chain as long as there are
        // pieces of at least 16 columns or a segment's rest, and offset, gain and bias.
        const double pieces =
            2.0 * static_cast<double>(segments.size()) + static_cast<double>(c.in) / 16.0;
        const double error =
            (pieces + 16.0) * 0x1p-24 * (std::fabs(gain) * magnitude + std::fabs(addend));
        const double bound = error + UnitRoundoff(c.dtype) * (std::fabs(value) + error) + 0x1p-25;
        const float at = found[t * y_stride + o];
        EXPECT_NEAR(static_cast<double>(at), value, bound) << "token " << t << ", row " << o;
        if (std::fabs(static_cast<double>(at) - value) > bound || std::isnan(at)) return result;
        result.push_back(at);
      }
      for (int64_t o = c.out; o < y_stride; ++o) {
        EXPECT_TRUE(std::isnan(found[t * y_stride + o])) << "gap of y overwritten";
      }
    }
    return result;
  }
};

TEST_F(CodedLinearCudaTest, FewTokensMatchTheDefinition) {
  for (const int bits : {3, 4, 8}) {
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t num_tokens : {1, 2, 5, 8, 9, 16, 17, 40}) {
        ExpectFloats({num_tokens, 96, 1024, bits, 128, dtype}, CodedLinearFewTokensCuda, false);
      }
      ExpectFloats({3, 2000, 2048, bits, 64, dtype}, CodedLinearFewTokensCuda, false);
      ExpectFloats({16, 515, 4096, bits, 128, dtype}, CodedLinearFewTokensCuda, false);
    }
  }
}

TEST_F(CodedLinearCudaTest, OddShapesMatchTheDefinition) {
  std::mt19937 random(9);
  for (int i = 0; i < 90; ++i) {
    Case c;
    c.num_tokens = 1 + static_cast<int64_t>(random() % 20);
    c.out = 1 + static_cast<int64_t>(random() % 150);
    c.in = 1 + static_cast<int64_t>(random() % 700);
    c.bits = std::vector<int>{3, 4, 8}[static_cast<size_t>(i % 3)];
    c.group_size = std::vector<int64_t>{0, 16, 48, 128, 64, 37}[random() % 6];
    c.dtype = kFloatDTypes[i / 3 % 3];
    c.extras = random() % 2 == 0;
    c.x_gap = static_cast<int64_t>(random() % 3) * 8;
    c.y_gap = static_cast<int64_t>(random() % 4);
    ExpectFloats(c, CodedLinearFewTokensCuda, false);
    ExpectFloats(c, CodedLinearManyTokensCuda, true);
  }
}

TEST_F(CodedLinearCudaTest, ManyTokensMatchTheDefinition) {
  for (const int bits : {3, 4, 8}) {
    for (const DType dtype : kFloatDTypes) {
      ExpectFloats({70, 272, 512, bits, 128, dtype, 0, true, 8, 8}, CodedLinear, true);
    }
  }
}

// Rows that copy engines do not take, for racecheck of compute-sanitizer: it ends in dense kernels
// of the case above.
TEST_F(CodedLinearCudaTest, ManyTokensOfUnalignedRowsMatchTheDefinition) {
  for (const int bits : {3, 4, 8}) {
    for (const DType dtype : kFloatDTypes) {
      ExpectFloats({66, 40, 391, bits, 128, dtype, 0, true, 3, 3}, CodedLinear, true);
    }
  }
}

TEST_F(CodedLinearCudaTest, CodesMatchTheDefinition) {
  for (const int bits : {3, 4, 8}) {
    for (const int64_t num_tokens : {1, 8, 9, 16, 17, 65, 130}) {
      ExpectIntegers({num_tokens, 96, 1024, bits, 128, DType::kF32, 64}, num_tokens);
    }
    ExpectIntegers({16, 515, 4096, bits, 128, DType::kF16, 128}, 16);
  }
}

TEST_F(CodedLinearCudaTest, CodesOfOddShapesMatchTheDefinition) {
  std::mt19937 random(10);
  for (int i = 0; i < 90; ++i) {
    Case c;
    c.num_tokens = 1 + static_cast<int64_t>(random() % 30);
    c.out = 1 + static_cast<int64_t>(random() % 150);
    c.in = 1 + static_cast<int64_t>(random() % 700);
    c.bits = std::vector<int>{3, 4, 8}[static_cast<size_t>(i % 3)];
    c.group_size = std::vector<int64_t>{0, 16, 48, 128, 64, 37}[random() % 6];
    c.segment_size = std::vector<int64_t>{0, 16, 5, 128}[random() % 4];
    c.dtype = kFloatDTypes[i / 3 % 3];
    c.extras = random() % 2 == 0;
    c.x_gap = static_cast<int64_t>(random() % 3) * 8;
    c.y_gap = static_cast<int64_t>(random() % 4);
    ExpectIntegers(c, c.num_tokens);
  }
}

TEST_F(CodedLinearCudaTest, LongRowsMatchTheDefinition) {
  for (const int bits : {3, 4, 8}) {
    // More chunks than a block has warps, the last ones not full; an odd number of panels.
    for (const int64_t num_tokens : {1, 8, 16}) {
      ExpectFloats({num_tokens, 40, 9 * 1024 + 128, bits, 128, DType::kF16},
                   CodedLinearFewTokensCuda, false);
      ExpectFloats({num_tokens, 33, 4500, bits, 0, DType::kF32}, CodedLinearFewTokensCuda, false);
      ExpectIntegers({num_tokens, 40, 9 * 1024 + 128, bits, 128, DType::kF32, 64}, num_tokens);
    }
  }
  // Rows shared by 2, 3 and 5 blocks; more pairs of panels than clusters.
  for (const int64_t in : {2304, 4608, 8320}) {
    ExpectFloats({5, 3000, in, 4, 128, DType::kBF16}, CodedLinearFewTokensCuda, false);
    ExpectIntegers({20, 1500, in, 4, 128, DType::kF16, 128}, 20);
  }
  for (const int64_t num_tokens : {1, 8, 18}) {  // by 4
    ExpectFloats({num_tokens, 1500, 8192, 4, 128, DType::kF16}, CodedLinearFewTokensCuda, false);
    ExpectIntegers({num_tokens, 1500, 8192, 4, 128, DType::kF16, 128}, num_tokens);
  }
  // More pairs of panels than blocks.
  ExpectFloats({9, 9000, 512, 4, 128, DType::kF16}, CodedLinearFewTokensCuda, false);
  ExpectFloats({2, 20000, 256, 3, 128, DType::kF16}, CodedLinearFewTokensCuda, false);
}

TEST_F(CodedLinearCudaTest, ManyCodesMatchTheDefinition) {
  std::mt19937 random(12);
  for (int i = 0; i < 24; ++i) {
    Case c;
    c.num_tokens = 65 + static_cast<int64_t>(random() % 200);
    c.out = 1 + static_cast<int64_t>(random() % 300);
    c.in = 1 + static_cast<int64_t>(random() % 700);
    c.bits = 3 + i % 2;
    c.group_size = std::vector<int64_t>{0, 128, 37, 64}[random() % 4];
    c.segment_size = std::vector<int64_t>{0, 16, 5, 128}[random() % 4];
    if (i % 6 == 0) c.in = c.group_size = c.segment_size = 1408;  // several pieces of a segment
    if (i % 6 == 1) {                                             // several splits of whole chunks
      c.in = 2304 + 256;
      c.group_size = 256;
      c.segment_size = 128;
    }
    c.max_zero = std::vector<int>{15, 127, 128}[static_cast<size_t>(i % 3)];
    c.dtype = kFloatDTypes[i % 3];
    c.extras = random() % 2 == 0;
    c.x_gap = static_cast<int64_t>(random() % 3) * 8;
    c.y_gap = static_cast<int64_t>(random() % 4);
    ExpectIntegers(c, c.num_tokens);
  }
}

TEST_F(CodedLinearCudaTest, ATokensBitsAreTheSameBesideAnyOthers) {
  for (const int bits : {3, 4, 8}) {
    Case c = {70, 200, 2304, bits, 128, DType::kF32, 128};
    c.max_zero = (1 << bits) - 1;
    const std::vector<float> all = ExpectIntegers(c, 70);
    for (const int64_t num_tokens : {1, 7, 12, 33}) {
      const std::vector<float> some = ExpectIntegers(c, num_tokens);
      ASSERT_EQ(some.size(), static_cast<size_t>(num_tokens * c.out));
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << num_tokens << " tokens";
    }
  }
}

TEST_F(CodedLinearCudaTest, CodesInOrderHaveTheSameBitsBesideAnyOthers) {
  for (const int bits : {3, 4, 8}) {
    // Whole chunks of columns, pieces of them, and ragged ones.
    for (const auto& [group, segment] : {std::pair(128, 128), {64, 64}, {128, 48}, {0, 0}}) {
      Case c = {100, 130, 2304, bits, group, DType::kF32, segment};
      c.max_zero = 15;
      const std::vector<float> many = ExpectIntegers(c, 100, /*in_order=*/true);
      const std::vector<float> few = ExpectIntegers(c, 3, /*in_order=*/true);
      ASSERT_EQ(few.size(), 3u * 130);
      EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin())) << c;
    }
  }
}

TEST_F(CodedLinearCudaTest, BatchInvariantFloatsHaveTheSameBitsBesideAnyTokensAndRows) {
  std::mt19937 random(8);
  for (const DType dtype : kFloatDTypes) {
    for (const int bits : {3, 4, 8}) {
      constexpr int64_t kTokens = 80, kOut = 96, kIn = 2304;
      const std::vector<int32_t> offsets = Offsets(kIn, bits == 8 ? 0 : 128, random);
      const Weights w(kOut, kIn, bits, offsets, (1 << bits) - 1, random);
      const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
      std::normal_distribution<float> normal;
      std::vector<float> values(kTokens * kIn);
      for (float& value : values) value = normal(random);
      const Tensor x = OnDevice(RoundedTensor(values, dtype, kTokens, kIn).view(), stream());
      const auto run = [&](int64_t first, int64_t count) {
        Tensor y = Tensor::Allocate(dtype, {count, kOut}, stream().device()).value();
        EXPECT_TRUE(CodedLinear({.x = x.view().Rows(first, count),
                                 .weights = &weights,
                                 .y = y.mutable_view(),
                                 .batch_invariant = true},
                                stream())
                        .ok());
        return Floats(OnHost(y.view(), stream()));
      };
      const std::vector<float> whole = run(0, kTokens);
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>(0, 1), {77, 3}, {20, 17}}) {
        const std::vector<float> part = run(first, count);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * kOut))
            << bits << " bits, " << std::string(DTypeName(dtype)) << ", " << count << " tokens";
      }
    }
  }
}

// A call begins with its weights while the one ahead still runs: each must see that one's results,
// and leave partial sums alone that are still read.
TEST_F(CodedLinearCudaTest, CallsInARowSeeTheResultsOfThoseAhead) {
  constexpr int kCalls = 12;
  for (const int64_t width : {512, 2304}) {  // without partial sums and with them
    std::mt19937 random(static_cast<uint32_t>(width));
    const Weights w(width, width, 4, Offsets(width, 128, random), 15, random);
    const CodedWeights weights = w.coded.CopyTo(stream().device()).value();
    for (const int64_t num_tokens : {1, 16}) {
      std::normal_distribution<float> normal(0.0f, 1.0f);
      std::vector<float> values(static_cast<size_t>(num_tokens * width));
      for (float& value : values) value = normal(random);
      // bf16: it is read as it lies, and has the range for many products.
      const Tensor first = RoundedTensor(values, DType::kBF16, num_tokens, width);
      std::vector<float> expected;
      for (const bool waits : {true, false}) {
        Tensor x[2] = {OnDevice(first.view(), stream()), OnDevice(first.view(), stream())};
        for (int i = 0; i < kCalls; ++i) {
          CodedLinearArgs args;
          args.x = x[i % 2].view();
          args.weights = &weights;
          args.y = x[1 - i % 2].mutable_view();
          ASSERT_TRUE(CodedLinearFewTokensCuda(args, stream()).ok());
          if (waits) {
            ASSERT_TRUE(stream().Synchronize().ok());
          }
        }
        const std::vector<float> found = Floats(OnHost(x[kCalls % 2].view(), stream()));
        if (waits) {
          expected = found;
          ASSERT_TRUE(std::isfinite(found[0]) && found[0] != 0.0f) << found[0];
        } else {
          EXPECT_EQ(found, expected) << num_tokens << " tokens, " << width;
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
