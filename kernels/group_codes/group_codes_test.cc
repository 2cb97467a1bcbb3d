#include "kernels/group_codes/group_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative
constexpr int kBits[] = {8, 6, 5, 4};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Another seed each time; a failure names it.
uint32_t Seed() {
  static const uint32_t seed = [] {
    const uint32_t value = std::random_device()();
    std::printf("seed %u\n", value);
    return value;
  }();
  return seed;
}

// Groups of unlike sizes, with outliers.
std::vector<float> Values(int64_t num_rows, int64_t stride, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (int64_t t = 0; t < num_rows; ++t) {
    float size = 1.0f;
    for (int64_t i = 0; i < stride; ++i) {
      if (i % 64 == 0) size = std::exp2(2.0f * normal(random));
      values.push_back(size * normal(random) * (random() % 97 == 0 ? 50.0f : 1.0f));
    }
  }
  return values;
}

std::vector<uint8_t> Encode(const GroupCodesFormat& format, ConstTensorView x, int num_threads) {
  std::vector<uint8_t> codes(static_cast<size_t>(x.dim(0) * format.row_bytes()), 77);
  const EncodeGroupsArgs args{format, x,
                              TensorView(codes.data(), DType::kU8, {x.dim(0), format.row_bytes()})};
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const absl::Status status = EncodeGroups(args, stream);
  EXPECT_TRUE(status.ok()) << status;
  return codes;
}

std::vector<uint8_t> EncodeReference(const GroupCodesFormat& format, ConstTensorView x) {
  std::vector<uint8_t> codes(static_cast<size_t>(x.dim(0) * format.row_bytes()), 77);
  const absl::Status status = EncodeGroupsReference(
      {format, x, TensorView(codes.data(), DType::kU8, {x.dim(0), format.row_bytes()})});
  EXPECT_TRUE(status.ok()) << status;
  return codes;
}

std::vector<uint8_t> EncodeRow(int bits, const std::vector<float>& x) {
  const auto width = static_cast<int64_t>(x.size());
  return Encode({bits, width}, ConstTensorView(x.data(), DType::kF32, {1, width}), 1);
}

std::vector<float> DecodeRow(int bits, int64_t width, const std::vector<uint8_t>& codes) {
  std::vector<float> y(static_cast<size_t>(width), -3.0f);
  const ConstTensorView part(codes.data(), DType::kU8, {1, static_cast<int64_t>(codes.size())});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const absl::Status status = DecodeGroups(
      {{bits, width}, absl::MakeConstSpan(&part, 1), TensorView(y.data(), DType::kF32, {1, width})},
      stream);
  EXPECT_TRUE(status.ok()) << status;
  return y;
}

double Level(int bits, int code) {
  const int n = 1 << bits;
  if (bits != 4) return (2.0 * code + 1.0 - n) / (n - 1.0);
  return code < 8 ? -double{kFourBitLevels[7 - code]} : double{kFourBitLevels[code - 8]};
}

int CodeAt(int bits, int64_t size, int64_t i, const uint8_t* group) {
  if (bits == 8) return group[i];
  const int64_t half = (size + 1) / 2;
  const int low = i < half ? group[i] & 15 : group[i - half] >> 4;
  if (bits == 5) return low | (group[half + i / 8] >> (i % 8) & 1) << 4;
  if (bits == 6) return low | (group[half + i / 4] >> (2 * (i % 4)) & 3) << 4;
  return low;
}

double Norm(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// H x
std::vector<double> Rotated(std::vector<double> x) {
  const size_t size = x.size();
  for (size_t h = 1; h < size; h *= 2) {
    for (size_t i = 0; i < size; ++i) {
      if ((i & h) != 0) continue;
      const double sum = x[i] + x[i + h];
      x[i + h] = x[i] - x[i + h];
      x[i] = sum;
    }
  }
  for (double& value : x) value /= std::sqrt(static_cast<double>(size));
  return x;
}

// What one coded group stands for before it is rotated back.
struct Group {
  Group(const GroupCodesFormat& format, const uint8_t* row, int64_t g)
      : scale(row[g] == 0 ? 0.0 : std::exp2((row[g] - 128) / 8.0)) {
    for (int64_t i = 0; i < format.group(); ++i) {
      codes.push_back(CodeAt(format.bits, format.group(), i,
                             row + format.num_groups() + g * format.group_bytes()));
      u.push_back(scale * Level(format.bits, codes.back()));
    }
  }

  double ErrorOf(std::vector<double> exact) const {
    for (size_t i = 0; i < u.size(); ++i) exact[i] -= u[i];
    return Norm(exact);
  }

  double scale;
  std::vector<int> codes;
  std::vector<double> u;
};

// Bytes of the encoder beside those of the reference. In fp32, each stage of the rotation is off by
// eps of its values, so that all of them are off by log2(size) * eps * |x| together, in the norm;
// the norm's factor, 1 / S and their products add 4 roundings. Errors that are compared are off by
// as much, and by those of a sum of squares, (size / 16 + 6) * eps.
void ExpectAsGoodAsReference(const GroupCodesFormat& format, const std::vector<float>& x,
                             const uint8_t* found, const uint8_t* expected, double* error_found,
                             double* error_expected) {
  const int64_t size = format.group();
  for (int64_t g = 0; g < format.num_groups(); ++g) {
    const std::vector<double> exact = Rotated({x.begin() + g * size, x.begin() + (g + 1) * size});
    const double off = (std::log2(static_cast<double>(size)) + 4) * kEps * Norm(exact);
    const Group group(format, found, g);
    const double error = group.ErrorOf(exact);
    const double least = Group(format, expected, g).ErrorOf(exact);
    *error_found += error * error;
    *error_expected += least * least;
    ASSERT_LE(error, least * (1.0 + (size / 16 + 6) * kEps) + 2.0 * off) << "group " << g;
    ASSERT_NEAR(found[g], expected[g], 4);
    for (int64_t i = 0; i < size; ++i) {
      const double distance = std::fabs(group.u[i] - exact[i]);
      for (const int step : {-1, 1}) {
        const int code = group.codes[i] + step;
        if (code < 0 || code >= 1 << format.bits) continue;
        ASSERT_LE(distance,
                  std::fabs(group.scale * Level(format.bits, code) - exact[i]) + 2.0 * off)
            << "group " << g << " code " << i;
      }
    }
  }
}

struct Shape {
  int64_t num_rows;
  int64_t width;
  int64_t gap;  // elements between rows
};

constexpr Shape kShapes[] = {{33, 1, 0},   {2, 3, 1},   {33, 20, 3},  {5, 48, 0},
                             {2, 64, 1},   {3, 96, 2},  {33, 100, 0}, {2, 256, 5},
                             {33, 256, 0}, {1, 704, 0}, {2, 4096, 8}};

TEST(EncodeGroupsTest, IsAsGoodAsTheReferenceWithTheSameBytesOnEveryTarget) {
  std::mt19937 random(Seed());
  int turn = 0;
  for (const int bits : kBits) {
    double error = 0.0;
    double least = 0.0;
    for (const Shape& shape : kShapes) {
      const DType dtype = kFloatDTypes[++turn % 3];
      const GroupCodesFormat format{bits, shape.width};
      SCOPED_TRACE(testing::Message()
                   << "seed " << Seed() << " bits " << bits << " " << std::string(DTypeName(dtype))
                   << "[" << shape.num_rows << ", " << shape.width << "]");
      const int64_t stride = shape.width + shape.gap;
      const Tensor x =
          RoundedTensor(Values(shape.num_rows, stride, random), dtype, shape.num_rows, stride);
      const ConstTensorView view = x.view().Columns(0, shape.width);
      const std::vector<uint8_t> expected = EncodeReference(format, view);
      const std::vector<uint8_t> found = Encode(format, view, 1);
      const std::vector<float> values = Floats(x);
      for (int64_t t = 0; t < shape.num_rows; ++t) {
        const int64_t at = t * format.row_bytes();
        ExpectAsGoodAsReference(
            format, {values.begin() + t * stride, values.begin() + t * stride + shape.width},
            found.data() + at, expected.data() + at, &error, &least);
      }
      ForEachCpuTarget([&](absl::string_view target) {
        EXPECT_EQ(Encode(format, view, 1 + turn % 2), found) << target;
      });
    }
    EXPECT_NEAR(error, least, 1e-4 * least);
  }
}

TEST(EncodeGroupsTest, ARowsBytesDependOnNothingElse) {
  std::mt19937 random(Seed());
  for (const int bits : kBits) {
    for (const int64_t width : {20, 256, 704}) {
      const GroupCodesFormat format{bits, width};
      const Tensor x = RoundedTensor(Values(200, width, random), DType::kF32, 200, width);
      const std::vector<uint8_t> all = Encode(format, x.view(), 3);
      std::vector<uint8_t> rows;
      for (int64_t t = 0; t < 200; ++t) {
        const std::vector<uint8_t> row = Encode(format, x.view().Rows(t, 1), 1);
        rows.insert(rows.end(), row.begin(), row.end());
      }
      EXPECT_EQ(rows, all) << "seed " << Seed() << " bits " << bits << " width " << width;
    }
  }
}

TEST(DecodeGroupsTest, SumsMatchTheReferenceWithTheSameBitsOnEveryTarget) {
  std::mt19937 random(Seed());
  int turn = 0;
  for (const int bits : kBits) {
    for (const Shape& shape : kShapes) {
      ++turn;
      const DType dtype = kFloatDTypes[turn % 3];
      const bool accumulate = turn % 2 == 0;
      const int num_parts = 1 + turn % 4;
      const GroupCodesFormat format{bits, shape.width};
      const int64_t stride = shape.width + shape.gap;
      SCOPED_TRACE(testing::Message()
                   << "seed " << Seed() << " bits " << bits << " " << std::string(DTypeName(dtype))
                   << "[" << shape.num_rows << ", " << shape.width << "] parts " << num_parts);
      std::vector<std::vector<uint8_t>> codes;
      std::vector<ConstTensorView> parts;
      for (int p = 0; p < num_parts; ++p) {
        const Tensor x = RoundedTensor(Values(shape.num_rows, shape.width, random), DType::kF32,
                                       shape.num_rows, shape.width);
        codes.push_back(Encode(format, x.view(), 1));
      }
      for (const std::vector<uint8_t>& part : codes) {
        parts.push_back(
            ConstTensorView(part.data(), DType::kU8, {shape.num_rows, format.row_bytes()}));
      }
      const std::vector<float> before = Values(shape.num_rows, stride, random);
      const auto decode = [&](int num_threads) {
        Tensor y = RoundedTensor(before, dtype, shape.num_rows, stride);
        const DecodeGroupsArgs args{format, parts, y.mutable_view().Columns(0, shape.width),
                                    accumulate};
        ThreadPool pool(std::max(1, num_threads));
        Stream stream = Stream::Cpu(&pool);
        const absl::Status status =
            num_threads == 0 ? DecodeGroupsReference(args) : DecodeGroups(args, stream);
        EXPECT_TRUE(status.ok()) << status;
        return Floats(y);
      };
      const std::vector<float> expected = decode(0);
      const std::vector<float> found = decode(1);
      ForEachCpuTarget([&](absl::string_view target) { EXPECT_EQ(decode(2), found) << target; });
      const std::vector<float> start = Floats(RoundedTensor(before, dtype, shape.num_rows, stride));
      for (int64_t t = 0; t < shape.num_rows; ++t) {
        for (int64_t i = 0; i < stride; ++i) {
          const int64_t at = t * stride + i;
          if (i >= shape.width) {
            ASSERT_EQ(found[at], start[at]) << "gap overwritten at " << t << ", " << i;
            continue;
          }
          // 4 roundings of a term, one for each sum and stage of the rotation, 2 for its factor,
          // all relative to norms of groups; then y is rounded on both sides.
          double norms = 0.0;
          for (const std::vector<uint8_t>& part : codes) {
            norms +=
                Norm(Group(format, part.data() + t * format.row_bytes(), i / format.group()).u);
          }
          const double roundings = std::log2(static_cast<double>(format.group())) + num_parts + 6;
          const double result = std::fabs(expected[at]);
          const double before_added = accumulate ? std::fabs(start[at]) : 0.0;
          ASSERT_NEAR(found[at], expected[at],
                      1.01 * (roundings * kEps * norms + kEps * (before_added + result) +
                              2.0 * UnitRoundoff(dtype) * result) +
                          0x1p-24)  // fp16 below its normal range
              << "at " << t << ", " << i;
        }
      }
    }
  }
}

TEST(GroupCodesFormatTest, GroupsAreTheLargestThatFit) {
  const auto sizes = [](int bits, int64_t width) {
    const GroupCodesFormat format{bits, width};
    return std::vector<int64_t>{format.group(), format.group_bytes(), format.row_bytes()};
  };
  EXPECT_EQ(sizes(8, 4096), (std::vector<int64_t>{128, 128, 32 * 129}));
  EXPECT_EQ(sizes(8, 704), (std::vector<int64_t>{64, 64, 11 * 65}));
  EXPECT_EQ(sizes(6, 4096), (std::vector<int64_t>{64, 48, 64 * 49}));
  EXPECT_EQ(sizes(5, 4096), (std::vector<int64_t>{64, 40, 64 * 41}));
  EXPECT_EQ(sizes(4, 4096), (std::vector<int64_t>{64, 32, 64 * 33}));
  EXPECT_EQ(sizes(4, 3), (std::vector<int64_t>{1, 1, 6}));
  EXPECT_EQ(sizes(5, 3), (std::vector<int64_t>{1, 2, 9}));
  EXPECT_EQ(sizes(6, 20), (std::vector<int64_t>{4, 3, 20}));
  EXPECT_EQ(sizes(5, 48), (std::vector<int64_t>{16, 10, 33}));
}

TEST(GroupCodesFormatTest, BytesAreThoseWorkedOutByHand) {
  using Bytes = std::vector<uint8_t>;
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    // u = (1, -1, 1, 1): S = 1, codes: the last, the first, the last, the last.
    const std::vector<float> four = {1.0f, 1.0f, -1.0f, 1.0f};
    EXPECT_EQ(EncodeRow(8, four), (Bytes{128, 255, 0, 255, 255}));
    EXPECT_EQ(EncodeRow(6, four), (Bytes{128, 0xff, 0xf0, 0xf3}));
    EXPECT_EQ(EncodeRow(5, four), (Bytes{128, 0xff, 0xf0, 0x0d}));
    EXPECT_EQ(EncodeRow(4, four), (Bytes{128, 0xff, 0xf0}));
    EXPECT_EQ(DecodeRow(5, 4, {128, 0xff, 0xf0, 0x0d}), four);
    // u = (8, 0, ... 0): the smallest scale that clips nothing is 8, byte 152. Zeros cost
    // (S level[0])^2 each; 5 (4) bits gain by clipping 8 a little, to 7.34 (6.73).
    const std::vector<float> ones(64, 1.0f);
    Bytes expected(65, 128);
    expected[0] = 152;
    expected[1] = 255;
    EXPECT_EQ(EncodeRow(8, ones), expected);
    expected.assign(49, 0x00);
    std::fill(expected.begin() + 33, expected.end(), 0xaa);
    expected[0] = 152;
    expected[1] = 0x0f;
    expected[33] = 0xab;
    EXPECT_EQ(EncodeRow(6, ones), expected);
    expected.assign(41, 0x00);
    std::fill(expected.begin() + 33, expected.end(), 0xff);
    expected[0] = 151;
    expected[1] = 0x0f;
    EXPECT_EQ(EncodeRow(5, ones), expected);
    expected.assign(33, 0x88);
    expected[0] = 150;
    expected[1] = 0x8f;
    EXPECT_EQ(EncodeRow(4, ones), expected);
    // Groups of one channel: S = 2.
    EXPECT_FLOAT_EQ(DecodeRow(8, 1, {136, 128})[0], 2.0f / 255);
    EXPECT_FLOAT_EQ(DecodeRow(6, 1, {136, 0x05, 0x02})[0], 22.0f / 63);
    EXPECT_FLOAT_EQ(DecodeRow(5, 1, {136, 0x03, 0x01})[0], 14.0f / 31);
    EXPECT_FLOAT_EQ(DecodeRow(4, 1, {136, 0x07})[0], -2.0f * 0.04993f);
    EXPECT_FLOAT_EQ(DecodeRow(4, 1, {136, 0x08})[0], 2.0f * 0.04993f);
    // Scales of all groups come first.
    EXPECT_EQ(EncodeRow(8, {1.0f, 0.0f, -0.5f}), (Bytes{128, 0, 120, 255, 0, 0}));
  });
}

TEST(GroupCodesTest, EveryScaleIsCodedByItself) {
  // The group of one channel that is a scale errs with any other.
  for (int byte = 1; byte <= 254; ++byte) {
    const auto scale = static_cast<float>(std::exp2((byte - 128) / 8.0));
    EXPECT_EQ(EncodeRow(8, {scale}), (std::vector<uint8_t>{static_cast<uint8_t>(byte), 255}));
    EXPECT_FLOAT_EQ(DecodeRow(8, 1, EncodeRow(8, {-scale}))[0], -scale);
  }
}

TEST(GroupCodesTest, ZerosStayZerosAndWhatIsNotFiniteBecomesNan) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const int bits : kBits) {
      for (const int64_t width : {3, 24, 48, 192, 384}) {
        const int64_t size = GroupCodesFormat{bits, width}.group();
        const std::vector<uint8_t> zeros =
            EncodeRow(bits, std::vector<float>(static_cast<size_t>(width)));
        EXPECT_THAT(zeros, Each(0));
        for (const float y : DecodeRow(bits, width, zeros)) {
          EXPECT_EQ(std::bit_cast<uint32_t>(y), 0u);  // not -0
        }
        for (const float bad : {kInf, -kInf, kNan}) {
          std::vector<float> x(static_cast<size_t>(width), 1.0f);
          x[static_cast<size_t>(2 * size - 1)] = bad;
          const std::vector<uint8_t> codes = EncodeRow(bits, x);
          EXPECT_EQ(codes[1], 255);
          const std::vector<float> y = DecodeRow(bits, width, codes);
          for (int64_t i = 0; i < width; ++i) EXPECT_EQ(std::isnan(y[i]), i / size == 1);
        }
      }
    }
  });
}

TEST(GroupCodesTest, LargeGroupsSaturateAndSmallOnesGoToTheSmallestScale) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    const float largest = std::numeric_limits<float>::max();
    for (const int bits : kBits) {
      for (const int64_t width : {1, 8, 16, 32, 64, 128}) {
        SCOPED_TRACE(testing::Message() << "bits " << bits << " width " << width);
        const GroupCodesFormat format{bits, width};
        const int64_t size = format.group();
        const double scale = std::exp2(126 / 8.0);
        for (const float value : {1e6f, 1e20f, 1e38f, largest}) {
          const std::vector<uint8_t> codes =
              EncodeRow(bits, std::vector<float>(static_cast<size_t>(width), value));
          const Group group(format, codes.data(), 0);
          EXPECT_EQ(codes[0], 254);
          EXPECT_NEAR(group.u[0], scale, 1e-6 * scale);
          for (int64_t i = 1; i < size; ++i) EXPECT_EQ(group.codes[i], 1 << (bits - 1));
        }
        // No level is farther than 0.11 scales from what is below the smallest scale.
        for (const float value : {1e-6f, 1e-7f, 1e-20f, 1e-38f, 0x1p-149f}) {
          std::vector<float> x(static_cast<size_t>(width));
          x[0] = value;
          const std::vector<uint8_t> codes = EncodeRow(bits, x);
          EXPECT_EQ(codes[0], 1);
          const std::vector<float> y = DecodeRow(bits, width, codes);
          double error = 0.0;
          for (int64_t i = 0; i < size; ++i) error += std::pow(y[i] - x[i], 2);
          EXPECT_LE(std::sqrt(error), 0.11 * std::sqrt(size) * std::exp2(-127 / 8.0));
        }
      }
    }
  });
}

TEST(GroupCodesTest, WrongArgumentsAreNamed) {
  std::vector<float> values(2 * 64, 1.0f);
  std::vector<uint8_t> bytes(2 * 70);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EncodeGroupsArgs encode{{4, 64},
                          ConstTensorView(values.data(), DType::kF32, {2, 64}),
                          TensorView(bytes.data(), DType::kU8, {2, 33})};
  ASSERT_TRUE(EncodeGroups(encode, stream).ok());
  const auto encode_message = [&](const EncodeGroupsArgs& bad) {
    EXPECT_EQ(EncodeGroupsReference(bad).code(), absl::StatusCode::kInvalidArgument);
    const absl::Status status = EncodeGroups(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EncodeGroupsArgs bad = encode;
  bad.format.bits = 7;
  EXPECT_THAT(encode_message(bad), HasSubstr("encode groups: expected 8, 6, 5 or 4 bits, found 7"));
  bad = encode;
  bad.format.width = 0;
  EXPECT_THAT(encode_message(bad), HasSubstr("width of at least 1, found 0"));
  bad = encode;
  bad.x = ConstTensorView(values.data(), DType::kF32, {2, 32});
  EXPECT_THAT(encode_message(bad), HasSubstr("[num_rows, 64], found fp32[2, 32]"));
  bad.x = ConstTensorView(bytes.data(), DType::kU8, {2, 64});
  EXPECT_THAT(encode_message(bad), HasSubstr("found uint8[2, 64]"));
  bad = encode;
  bad.codes = TensorView(bytes.data(), DType::kU8, {2, 32});
  EXPECT_THAT(encode_message(bad), HasSubstr("codes uint8[2, 33], contiguous, on cpu, found"));
  bad.codes = TensorView(bytes.data(), DType::kU8, {2, 34}).Columns(0, 33);
  EXPECT_THAT(encode_message(bad), HasSubstr("strided"));

  const ConstTensorView parts[] = {encode.codes, encode.codes};
  DecodeGroupsArgs decode{{4, 64}, parts, TensorView(values.data(), DType::kF32, {2, 64})};
  ASSERT_TRUE(DecodeGroups(decode, stream).ok());
  const auto decode_message = [&](const DecodeGroupsArgs& bad) {
    EXPECT_EQ(DecodeGroupsReference(bad).code(), absl::StatusCode::kInvalidArgument);
    const absl::Status status = DecodeGroups(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  DecodeGroupsArgs wrong = decode;
  wrong.parts = {};
  EXPECT_THAT(decode_message(wrong), HasSubstr("decode groups: expected at least one part"));
  const ConstTensorView uneven[] = {encode.codes, encode.codes.Rows(0, 1)};
  wrong.parts = uneven;
  EXPECT_THAT(decode_message(wrong), HasSubstr("part 1 uint8[2, 33]"));
  wrong = decode;
  wrong.format.bits = 5;
  EXPECT_THAT(decode_message(wrong), HasSubstr("part 0 uint8[2, 41]"));
  wrong = decode;
  wrong.y = TensorView(values.data(), DType::kF32, {64});
  EXPECT_THAT(decode_message(wrong), HasSubstr("y of fp32, fp16 or bf16"));
}

TEST(GroupCodesTest, NoRowsIsNoWork) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const TensorView codes(nullptr, DType::kU8, {0, 33});
  const TensorView values(nullptr, DType::kF32, {0, 64});
  const ConstTensorView part = codes;
  EXPECT_TRUE(EncodeGroups({{4, 64}, values, codes}, stream).ok());
  EXPECT_TRUE(DecodeGroups({{4, 64}, absl::MakeConstSpan(&part, 1), values}, stream).ok());
}

}  // namespace
}  // namespace thinwire
