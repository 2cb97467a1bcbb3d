#include "kernels/vptq_linear/vptq_linear_cuda.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/device_properties.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"
#include "kernels/vptq_linear/byte_book.h"
#include "kernels/vptq_linear/random_vptq.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_device.h"
#include "kernels/vptq_linear/vptq_linear.h"

namespace thinwire {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Way = absl::Status (*)(const VptqLinearArgs&, Stream&);

struct Case {
  int64_t num_tokens, out;
  std::vector<RandomVptqPart> parts;
  bool ordered = true, scaled = true, bias = true;
  DType dtype = DType::kF32;
  int64_t x_gap = 0, y_gap = 3;
  bool bytes = false;  // byte books
  int64_t usual_tokens = 1;
};

std::ostream& operator<<(std::ostream& to, const Case& c) {
  to << c.num_tokens << " x " << c.out << ", " << std::string(DTypeName(c.dtype))
     << (c.bytes ? ", byte books" : "") << (c.usual_tokens > 1 ? " for more than one token" : "");
  for (const RandomVptqPart& part : c.parts) {
    to << ", v" << part.length << " skip " << part.skip << " bits " << part.index_bits << "+"
       << (part.residual ? part.residual_bits : 0) << " " << std::string(DTypeName(part.dtype))
       << " columns";
    for (const int64_t columns : part.group_columns) to << " " << columns;
  }
  return to;
}

// A small whole number.
float Whole(int largest, std::mt19937& random) {
  return static_cast<float>(static_cast<int>(random() % static_cast<uint32_t>(2 * largest + 1)) -
                            largest);
}

// Elements of a book as floats become others.
void SetFloats(Tensor& book, const std::vector<float>& values) {
  const TensorView view = book.mutable_view();
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    const float value = values[static_cast<size_t>(i)];
    if (view.dtype() == DType::kF32) view.mutable_data<float>()[i] = value;
    if (view.dtype() == DType::kF16) view.mutable_data<Half>()[i] = ToHalf(value);
    if (view.dtype() == DType::kBF16) view.mutable_data<BFloat16>()[i] = ToBFloat16(value);
  }
}

// A byte book, or one that is none.
void Fill(Tensor& book, bool bytes, std::mt19937& random) {
  if (book.empty()) return;
  std::vector<float> values;
  for (int64_t i = 0; i < book.view().num_elements(); ++i) values.push_back(Whole(4, random));
  if (!bytes && book.view().dim(0) > 1) {
    values[0] = 1.0f;
    values[static_cast<size_t>(book.view().dim(1))] = 256.0f;
  }
  SetFloats(book, values);
}

VptqWeights RandomWeights(int64_t out, std::vector<RandomVptqPart> parts, bool ordered, bool scaled,
                          bool bytes, std::mt19937& random) {
  for (RandomVptqPart& part : parts) part.bytes = bytes;
  return RandomVptq(out, parts, ordered, scaled, random);
}

// Weights of whole numbers, few above 128: with such x every sum is exact.
VptqWeights WholeWeights(const Case& c, std::mt19937& random) {
  std::vector<VptqPart> parts;
  int64_t in = 0;
  for (const RandomVptqPart& from : c.parts) {
    VptqPart& part = parts.emplace_back(RandomPart(from, c.out, random));
    in += part.num_columns();
    for (VptqGroup& group : part.groups) {
      Fill(group.centroids, c.bytes, random);
      Fill(group.residual, c.bytes, random);
    }
  }
  std::vector<int32_t> order;
  std::vector<float> scale, offset;
  if (c.ordered) {
    order.resize(static_cast<size_t>(in));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
  }
  if (c.scaled) {
    for (int64_t i = 0; i < in; ++i) {
      scale.push_back(random() % 2 == 0 ? 2.0f : -1.0f);
      offset.push_back(Whole(3, random));
    }
  }
  return VptqWeights::Create(c.out, std::move(parts), std::move(order), std::move(scale),
                             std::move(offset))
      .value();
}

class VptqLinearCudaTest : public GpuTest {
 protected:
  // [num_tokens, out + y_gap] that a way leaves. values: [num_tokens, in + x_gap].
  std::vector<float> Result(const Case& c, const VptqWeights& weights, const Tensor& host_x,
                            const std::vector<float>& bias, Way way) {
    const VptqWeights on_device = weights.CopyTo(stream().device(), c.usual_tokens).value();
    EXPECT_EQ(on_device.out_features(), weights.out_features());
    EXPECT_TRUE(c.bytes || !on_device.on_device().in_bytes);
    const Tensor x = OnDevice(host_x.view(), stream());
    const Tensor device_bias = VectorOnDevice(bias, stream());
    const int64_t stride = c.out + c.y_gap;
    Tensor y =
        OnDevice(RoundedTensor(std::vector<float>(static_cast<size_t>(c.num_tokens * stride), kNaN),
                               c.dtype, c.num_tokens, stride)
                     .view(),
                 stream());
    VptqLinearArgs args;
    args.x = x.view().Columns(0, weights.in_features());
    args.weights = &on_device;
    if (c.bias) args.bias = device_bias.view();
    args.y = y.mutable_view().Columns(0, c.out);
    const absl::Status status = way(args, stream());
    EXPECT_TRUE(status.ok()) << status;
    return Floats(OnHost(y.view(), stream()));
  }

  // Whole numbers: exactly the definition.
  void ExpectExact(const Case& c, Way way) {
    SCOPED_TRACE(testing::Message() << c);
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.out));
    const VptqWeights weights = WholeWeights(c, random);
    const int64_t in = weights.in_features(), x_stride = in + c.x_gap;
    std::vector<float> values(static_cast<size_t>(c.num_tokens * x_stride), kNaN), bias;
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t i = 0; i < in; ++i) values[t * x_stride + i] = Whole(4, random);
    }
    for (int64_t o = 0; o < c.out; ++o) bias.push_back(Whole(100, random));
    const Tensor x = RoundedTensor(values, c.dtype, c.num_tokens, x_stride);
    const std::vector<float> found = Result(c, weights, x, bias, way);
    std::vector<float> wanted(found.size(), kNaN), row(static_cast<size_t>(in));
    for (int64_t o = 0; o < c.out; ++o) {
      weights.DequantizeRow(o, absl::MakeSpan(row));
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        float sum = c.bias ? bias[o] : 0.0f;
        for (int64_t i = 0; i < in; ++i) sum += values[t * x_stride + i] * row[i];
        wanted[t * (c.out + c.y_gap) + o] = sum;
      }
    }
    const std::vector<float> rounded =
        Floats(RoundedTensor(wanted, c.dtype, c.num_tokens, c.out + c.y_gap));
    int64_t wrong = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      if (std::isnan(rounded[i]) ? std::isnan(found[i]) : found[i] == rounded[i]) continue;
      const auto at = static_cast<int64_t>(i);
      if (wrong++ < 4) {
        ADD_FAILURE() << "token " << at / (c.out + c.y_gap) << ", output " << at % (c.out + c.y_gap)
                      << ": found " << found[i] << ", expected " << rounded[i];
      }
    }
    EXPECT_EQ(wrong, 0);
  }

  // Any numbers: within what roundings can do.
  void ExpectNear(const Case& c, Way way, bool rounds_weights) {
    SCOPED_TRACE(testing::Message() << c);
    std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 31 + c.out));
    const VptqWeights weights = RandomWeights(c.out, c.parts, c.ordered, c.scaled, c.bytes, random);
    const int64_t in = weights.in_features(), x_stride = in + c.x_gap;
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values(static_cast<size_t>(c.num_tokens * x_stride)), bias;
    for (float& value : values) value = normal(random);
    for (int64_t o = 0; o < c.out; ++o) bias.push_back(normal(random));
    const Tensor x = RoundedTensor(values, c.dtype, c.num_tokens, x_stride);
    const std::vector<float> rounded = Floats(x);
    const std::vector<float> found = Result(c, weights, x, bias, way);
    // |C| + |R| of a weight, before the scale: w's own rounding is relative to them.
    constexpr double kLargest = 12.0;
    std::vector<float> row(static_cast<size_t>(in));
    for (int64_t o = 0; o < c.out; ++o) {
      weights.DequantizeRow(o, absl::MakeSpan(row));
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        double sum = c.bias ? static_cast<double>(bias[o]) : 0.0;
        double magnitude = 1.0 + std::fabs(sum), products = 0.0;
        for (int64_t p = 0; p < in; ++p) {
          const int64_t column = weights.order().empty() ? p : weights.order()[p];
          const double value = rounded[t * x_stride + column];
          sum += value * static_cast<double>(row[column]);
          const double scale = weights.scale().empty() ? 1.0 : std::fabs(weights.scale()[p]);
          const double offset = weights.offset().empty() ? 0.0 : std::fabs(weights.offset()[p]);
          magnitude += std::fabs(value) * (scale * kLargest + offset);
          products += std::fabs(value) * (std::fabs(static_cast<double>(row[column])) +
                                          (rounds_weights ? 0.0 : offset));
        }
        // At most in + 8 roundings in a chain, of which matrix units cut off a whole unit; 16-bit x
        // times scales, or weights, are rounded once to 16 bits.
        double error = 2.0 * static_cast<double>(in + 8) * 0x1p-24 * magnitude;
        // x as integers is rounded by at most half a step, which is below 2 / 32639 of a strip's
        // largest; the second row that fp32 has leaves 2^-15 of that.
        if (c.bytes && !rounds_weights) {
          for (int64_t first = 0; first < in; first += kVptqByteStrip) {
            double largest = 0.0, sizes = 0.0;
            for (int64_t p = first; p < std::min<int64_t>(in, first + kVptqByteStrip); ++p) {
              const int64_t column = weights.order().empty() ? p : weights.order()[p];
              const double scale = weights.scale().empty() ? 1.0 : weights.scale()[p];
              const double offset = weights.offset().empty() ? 0.0 : weights.offset()[p];
              const double value = rounded[t * x_stride + column];
              largest = std::max(largest, std::fabs(value * scale));
              if (scale != 0.0)
                sizes += std::fabs((static_cast<double>(row[column]) - offset) / scale);
            }
            error += largest * sizes / 32639.0 * (c.dtype == DType::kF32 ? 0x1p-15 : 1.0);
          }
        }
        if (c.dtype != DType::kF32 && (rounds_weights || !c.bytes)) {
          error += (rounds_weights ? UnitRoundoff(c.dtype) : 0x1p-11) * products;
        }
        const double bound = error + UnitRoundoff(c.dtype) * (std::fabs(sum) + error) + 0x1p-24;
        ASSERT_NEAR(static_cast<double>(found[t * (c.out + c.y_gap) + o]), sum, bound)
            << "token " << t << ", output " << o;
      }
    }
  }
};

RandomVptqPart Books(int length, int skip, int index_bits, int residual_bits, int64_t columns,
                     DType dtype = DType::kF16) {
  return {.length = length,
          .skip = skip,
          .index_bits = index_bits,
          .residual_bits = residual_bits,
          .residual = residual_bits > 0,
          .group_columns = {columns},
          .dtype = dtype};
}

constexpr int kTableBits[][2] = {{8, 0}, {8, 8}, {12, 0}, {12, 8}, {12, 12}};

TEST_F(VptqLinearCudaTest, ACentroidsPlacesAreInDifferentBanks) {
  for (int i = 0; i < 4096; ++i) {
    const int other = VptqOtherPlace(i), third = VptqThirdPlace(i);
    EXPECT_NE(i % 8, other % 8);
    EXPECT_NE(i % 8, third % 8);
    EXPECT_NE(other % 8, third % 8);
    // So that thirds of the first 8 n centroids fill 8 n rows.
    EXPECT_EQ(i / 8, third / 8);
    EXPECT_EQ(VptqIndexAt(12, i), i);
    EXPECT_EQ(VptqIndexAt(12, 4096 + other), i);
    EXPECT_EQ(VptqIndexAt(12, 8192 + third), i);
  }
}

TEST_F(VptqLinearCudaTest, TablesFitInSharedMemoryOrAreNotThere) {
  for (const int64_t bytes : {48 << 10, 99 << 10, 163 << 10, 227 << 10}) {
    for (const auto& bits : kTableBits) {
      SCOPED_TRACE(testing::Message() << bytes << " bytes, " << bits[0] << "+" << bits[1]);
      if (!HasVptqTables(8, bits[0], bits[1], bytes)) continue;
      for (const int32_t num_tokens : {1, 8, 9, 100}) {
        VptqTablesCall call = {};
        call.index_bits = bits[0];
        call.residual_bits = bits[1];
        call.num_units = 20;
        call.planes = 1;
        call.shared_memory_bytes = static_cast<int32_t>(bytes);
        call.result.num_tokens = num_tokens;
        PlanVptqTables(call);
        EXPECT_LE(call.shared_bytes, bytes);
        // Sums of 16 rows of x.
        EXPECT_GE(call.sum_floats, 8 * 16 * 32);
      }
    }
  }
  EXPECT_FALSE(HasVptqTables(8, 12, 12, 163 << 10));
  EXPECT_TRUE(HasVptqTables(8, 12, 0, 163 << 10));
  EXPECT_FALSE(HasVptqTables(8, 12, 0, 99 << 10));
}

TEST_F(VptqLinearCudaTest, ByteBooksAreRecognisedWhereOneTokenIsUsual) {
  std::mt19937 random(8);
  const int64_t shared_memory =
      GetDeviceProperties(stream().device()).value().shared_memory_per_block_bytes;
  for (const auto& bits : kTableBits) {
    for (const bool bytes : {false, true}) {
      const VptqWeights weights =
          RandomWeights(20, {Books(6, 1, bits[0], bits[1], 70)}, false, true, bytes, random);
      const int64_t usual_tokens = random() % 2 == 0 ? 1 : 2;
      const bool fit = HasVptqByteTables(6, bits[0], bits[1], shared_memory);
      EXPECT_EQ(weights.CopyTo(stream().device(), usual_tokens).value().on_device().in_bytes,
                bytes && fit && usual_tokens == 1);
    }
  }
}

TEST_F(VptqLinearCudaTest, TablesOfOddShapesAreExactOnWholeNumbers) {
  std::mt19937 random(3);
  for (int i = 0; i < 100; ++i) {
    const auto& bits = kTableBits[i % 5];
    const int length = 1 + static_cast<int>(random() % 8);
    Case c;
    c.num_tokens = 1 + static_cast<int64_t>(random() % 20);
    c.out = 1 + static_cast<int64_t>(random() % 300);
    c.parts = {Books(length, static_cast<int>(random() % static_cast<unsigned>(length)), bits[0],
                     bits[1], 1 + static_cast<int64_t>(random() % 700),
                     random() % 2 == 0 ? DType::kF16 : DType::kBF16)};
    c.dtype = kFloatDTypes[random() % 3];
    c.ordered = random() % 2 == 0;
    c.scaled = random() % 2 == 0;
    c.bias = random() % 2 == 0;
    c.x_gap = static_cast<int64_t>(random() % 3);
    c.bytes = random() % 2 == 0 && bits[1] != 12;
    c.usual_tokens = 1 + random() % 4 / 3;
    ExpectExact(c, VptqLinearFewTokensCuda);
    // Weights laid out in 16 bits are not exact with numbers as large as other books have.
    c.bytes = true;
    ExpectExact(c, VptqLinearManyTokensCuda);
  }
}

TEST_F(VptqLinearCudaTest, LongRowsAndManyOutputsAreExactOnWholeNumbers) {
  for (const bool bytes : {false, true}) {
    for (const auto& bits : kTableBits) {
      if (bytes && bits[1] == 12) continue;
      const auto expect = [&](int64_t num_tokens, int64_t out, int length, int skip,
                              int64_t columns, DType dtype) {
        Case c = {num_tokens, out, {Books(length, skip, bits[0], bits[1], columns)}};
        c.dtype = dtype;
        c.bytes = bytes;
        ExpectExact(c, VptqLinearFewTokensCuda);
      };
      // Several splits, the last unit not full; more quads than blocks; passes of tokens.
      expect(1, 70, 8, 0, 5000, DType::kF32);
      expect(37, 50, 6, 5, 2500, DType::kF32);
      for (const int64_t num_tokens : {1, 16, 33, 70}) {
        expect(num_tokens, 40, 8, 3, 9000, DType::kF16);
      }
      // x made by each block: of a part, of two.
      for (const int64_t columns : {700, 4097, 6200, 8192}) {
        expect(1, columns == 700 ? 4500 : 300, 8, 1, columns, DType::kBF16);
      }
      expect(2, 20000, 8, 0, 300, DType::kF32);
      expect(9, 9001, 8, 7, 300, DType::kBF16);
    }
  }
}

TEST_F(VptqLinearCudaTest, OtherBooksAreExactOnWholeNumbers) {
  std::mt19937 random(4);
  for (int i = 0; i < 60; ++i) {
    Case c;
    c.num_tokens = 1 + static_cast<int64_t>(random() % 20);
    c.out = 1 + static_cast<int64_t>(random() % 200);
    const DType dtype = kFloatDTypes[random() % 3];
    const int parts = 1 + i % 2;
    for (int p = 0; p < parts; ++p) {
      RandomVptqPart& part = c.parts.emplace_back();
      part.length = 1 + static_cast<int>(random() % 16);
      part.skip = static_cast<int>(random() % static_cast<uint32_t>(part.length));
      part.index_bits = static_cast<int>(random() % 17);
      part.residual = random() % 2 == 0;
      part.residual_bits = static_cast<int>(random() % 17);
      part.dtype = dtype;
      for (uint32_t g = 0; g <= random() % 3; ++g) {
        part.group_columns.push_back(static_cast<int64_t>(random() % 300));
      }
    }
    c.parts[0].group_columns[0] += 1;
    c.dtype = kFloatDTypes[random() % 3];
    c.ordered = random() % 2 == 0;
    c.scaled = random() % 2 == 0;
    c.bytes = true;
    ExpectExact(c, VptqLinearFewTokensCuda);
    ExpectExact(c, VptqLinearManyTokensCuda);
  }
}

TEST_F(VptqLinearCudaTest, AnyNumbersMatchTheDefinition) {
  for (const DType dtype : kFloatDTypes) {
    for (const DType book : {DType::kF16, DType::kBF16}) {
      for (const auto& bits : kTableBits) {
        for (const bool bytes : {false, true}) {
          if (bytes && bits[1] == 12) continue;
          Case c = {3, 45, {Books(8, 1, bits[0], bits[1], 600, book)}};
          c.dtype = dtype;
          c.bytes = bytes;
          ExpectNear(c, VptqLinear, false);
          c.num_tokens = 1;
          ExpectNear(c, VptqLinear, false);
          c.num_tokens = kFewTableTokens + 4;
          ExpectNear(c, VptqLinear, true);
        }
      }
      Case c = {5, 45, {Books(4, 1, 5, 3, 40, book), Books(12, 3, 14, 2, 500, book)}};
      c.dtype = dtype;
      ExpectNear(c, VptqLinear, false);
    }
  }
}

TEST_F(VptqLinearCudaTest, ATokensBitsAreTheSameBesideAnyOthers) {
  for (const DType dtype : kFloatDTypes) {
    for (const auto& [part, bytes] :
         {std::pair(Books(8, 0, 12, 8, 5000), false), std::pair(Books(8, 0, 13, 0, 700), false),
          std::pair(Books(8, 0, 12, 8, 5000), true), std::pair(Books(6, 0, 12, 0, 9000), true)}) {
      std::mt19937 random(5);
      const VptqWeights weights = RandomWeights(60, {part}, true, true, bytes, random);
      const int64_t in = weights.in_features();
      const Tensor x = NormalTensor(dtype, 20, in);
      const std::vector<float> bias(60, 0.5f);
      Case c = {20, 60, {}, true, true, true, dtype, 0, 0, bytes};
      const std::vector<float> all = Result(c, weights, x, bias, VptqLinearFewTokensCuda);
      const std::vector<float> values = Floats(x);
      for (const int64_t num_tokens : {1, 2, 7, 16}) {
        c.num_tokens = num_tokens;
        const Tensor some =
            RoundedTensor(std::vector<float>(values.begin(), values.begin() + num_tokens * in),
                          dtype, num_tokens, in);
        EXPECT_EQ(Result(c, weights, some, bias, VptqLinearFewTokensCuda),
                  std::vector<float>(all.begin(), all.begin() + num_tokens * 60))
            << num_tokens << " tokens";
      }
    }
  }
}

TEST_F(VptqLinearCudaTest, LargeAndSmallActivationsStayInRange) {
  std::mt19937 random(6);
  for (const bool bytes : {false, true}) {
    const VptqWeights weights =
        RandomWeights(24, {Books(8, 0, 12, 8, 300)}, true, true, bytes, random);
    for (const float factor : {1e-30f, 1e-6f, 1e6f, 1e30f}) {
      std::vector<float> values = Floats(NormalTensor(DType::kF32, 2, 300));
      for (float& value : values) value *= factor;
      const Tensor x = RoundedTensor(values, DType::kF32, 2, 300);
      const Case c = {2, 24, {}, true, true, false, DType::kF32, 0, 0, bytes};
      const std::vector<float> found =
          Result(c, weights, x, std::vector<float>(24), VptqLinearFewTokensCuda);
      std::vector<float> row(300);
      for (int64_t o = 0; o < 24; ++o) {
        weights.DequantizeRow(o, absl::MakeSpan(row));
        for (int64_t t = 0; t < 2; ++t) {
          double sum = 0.0, magnitude = 0.0;
          for (int64_t i = 0; i < 300; ++i) {
            const double product =
                static_cast<double>(values[t * 300 + i]) * static_cast<double>(row[i]);
            sum += product;
            magnitude += std::fabs(product);
          }
          EXPECT_NEAR(static_cast<double>(found[t * 24 + o]), sum, 1e-4 * magnitude);
        }
      }
    }
  }
}

TEST_F(VptqLinearCudaTest, WhatIsNoNumberMakesItsTokensResultsNone) {
  std::mt19937 random(7);
  for (const bool bytes : {false, true}) {
    const VptqWeights weights =
        RandomWeights(24, {Books(8, 0, 12, 8, 300)}, true, true, bytes, random);
    for (const int64_t num_tokens : {1, 3}) {
      std::vector<float> values = Floats(NormalTensor(DType::kF16, num_tokens, 300));
      values[270] = kNaN;
      const Tensor x = RoundedTensor(values, DType::kF16, num_tokens, 300);
      const Case c = {num_tokens, 24, {}, true, true, false, DType::kF16, 0, 0, bytes};
      const std::vector<float> found =
          Result(c, weights, x, std::vector<float>(24), VptqLinearFewTokensCuda);
      for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(std::isnan(found[i]), i < 24) << i;
    }
  }
}

TEST_F(VptqLinearCudaTest, ACopyOfAByteBooksCentroidIsInOtherBanks) {
  for (int i = 0; i < 4096; ++i) {
    uint32_t banks = 0;
    for (int copy = 0; copy < 4; ++copy) {
      const int place = VptqBytePlace(i, copy);
      banks |= 1u << (place % 16);
      EXPECT_EQ(place / 16 % 256, i / 16);
      EXPECT_EQ(place / 4096, copy);
      EXPECT_EQ(VptqByteIndexAt(12, place), i);
    }
    EXPECT_EQ(std::popcount(banks), 4);
  }
}

}  // namespace
}  // namespace thinwire
