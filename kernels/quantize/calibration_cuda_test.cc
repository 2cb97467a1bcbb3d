// Sums over activations that lie on a GPU, beside plain loops in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/quantize/gpu_channel_stats.h"
#include "kernels/quantize/gpu_moments.h"
#include "kernels/quantize/gpu_rounding.h"
#include "kernels/quantize/head_losses.h"
#include "kernels/testing/gpu_test.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Rows on the GPU, `stride` numbers apart, of channels some of which sit far from zero.
struct Rows {
  int64_t num_rows, width, stride;
  std::vector<float> values;
  DeviceArray<float> there;

  float at(int64_t t, int64_t c) const { return values[t * stride + c]; }
};

struct Moments {
  std::vector<double> sums;
  std::vector<float> minima, maxima;
  bool operator==(const Moments&) const = default;
};

class CalibrationCudaTest : public GpuTest {
 protected:
  Rows MakeRows(int64_t num_rows, int64_t width, int64_t padding) {
    std::normal_distribution<float> normal;
    Rows rows = {.num_rows = num_rows, .width = width, .stride = width + padding};
    rows.values.resize(static_cast<size_t>(num_rows * rows.stride),
                       std::numeric_limits<float>::quiet_NaN());
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t c = 0; c < width; ++c) {
        rows.values[t * rows.stride + c] = normal(random_) + (c % 7 == 3 ? 100.0f : 0.0f);
      }
    }
    rows.there = DeviceArray<float>::CopyOf(rows.values, "rows", stream()).value();
    return rows;
  }

  Moments Download(const GpuMoments& moments) {
    const int64_t width = moments.width();
    Moments found;
    found.sums.resize(
        static_cast<size_t>(1 + (moments.with_target() ? 2 : 1) * (width + width * width)));
    found.minima.resize(static_cast<size_t>(width));
    found.maxima.resize(static_cast<size_t>(width));
    const absl::Status status =
        moments.Download(absl::MakeSpan(found.sums), absl::MakeSpan(found.minima),
                         absl::MakeSpan(found.maxima), stream());
    EXPECT_TRUE(status.ok()) << status;
    return found;
  }

  std::mt19937 random_{std::random_device{}()};
};

TEST_F(CalibrationCudaTest, MomentsAreThoseOfTheRows) {
  for (const auto [num_rows, width, padding] : {std::array<int64_t, 3>{1, 1, 0},
                                                {37, 33, 5},
                                                {700, 96, 0},
                                                {1100, 300, 12},
                                                {60, 2100, 0}}) {
    for (const bool target : {false, true}) {
      SCOPED_TRACE(absl::StrCat(num_rows, " x ", width, target ? " with a target" : ""));
      const Rows x = MakeRows(num_rows, width, padding), y = MakeRows(num_rows, width, 0);
      GpuMoments moments = GpuMoments::Create(width, target, stream()).value();
      // In two calls, the second of which is merged.
      GpuMoments behind = GpuMoments::Create(width, target, stream()).value();
      const int64_t cut = num_rows / 3;
      const auto add = [&](int64_t first, int64_t count, GpuMoments& to) {
        EXPECT_TRUE(to.Add(x.there.data() + first * x.stride, x.stride,
                           target ? y.there.data() + first * y.stride : nullptr, y.stride, count,
                           stream())
                        .ok());
      };
      add(0, cut, moments);
      add(cut, num_rows - cut, behind);
      ASSERT_TRUE(moments.Merge(behind, stream()).ok());
      const Moments found = Download(moments);
      EXPECT_EQ(found.sums[0], static_cast<double>(num_rows));
      // Where the rows that are multiplied together begin.
      std::vector<int64_t> begins;
      for (int64_t t = 0; t < cut; t += 512) begins.push_back(t);
      for (int64_t t = cut; t < num_rows; t += 512) begins.push_back(t);
      begins.push_back(num_rows);
      // a_ti a product's left side, x its right: sum_t |a_ti - mean| |x_tj - mean| of the rows of a
      // block, in fp32, is off by 2^-24 for each addition, the product, and both deviations.
      const auto check = [&](auto&& of, const double* sums, const double* products, bool upper) {
        const double rounding = static_cast<double>(std::min<int64_t>(num_rows, 512) + 4) * 0x1p-24;
        std::vector<double> a(static_cast<size_t>(num_rows * width)), b(a), far_a(a), far_b(a);
        for (int64_t t = 0; t < num_rows; ++t) {
          for (int64_t c = 0; c < width; ++c) {
            a[t * width + c] = of(t, c);
            b[t * width + c] = x.at(t, c);
          }
        }
        for (auto [values, far] : {std::pair(&a, &far_a), std::pair(&b, &far_b)}) {
          for (size_t block = 0; block + 1 < begins.size(); ++block) {
            const int64_t begin = begins[block], end = begins[block + 1];
            for (int64_t c = 0; c < width; ++c) {
              double mean = 0.0;
              for (int64_t t = begin; t < end; ++t) mean += (*values)[t * width + c];
              mean /= static_cast<double>(std::max<int64_t>(1, end - begin));
              for (int64_t t = begin; t < end; ++t) {
                // The mean is rounded to fp32.
                (*far)[t * width + c] =
                    std::fabs((*values)[t * width + c] - mean) + 0x1p-24 * std::fabs(mean);
              }
            }
          }
        }
        for (int64_t c = 0; c < width; ++c) {
          double sum = 0.0, size = 0.0;
          for (int64_t t = 0; t < num_rows; ++t) {
            sum += a[t * width + c];
            size += std::fabs(a[t * width + c]);
          }
          ASSERT_NEAR(sums[c], sum, 1e-12 * size) << c;
        }
        const int64_t step = width > 1000 ? 17 : 1;
        for (int64_t i = 0; i < width; i += step) {
          for (int64_t j = upper ? i : 0; j < width; j += step) {
            double product = 0.0, bound = 0.0;
            for (int64_t t = 0; t < num_rows; ++t) {
              const double ai = a[t * width + i], bj = b[t * width + j];
              product += ai * bj;
              bound += rounding * far_a[t * width + i] * far_b[t * width + j];
              bound += 1e-13 * std::fabs(ai * bj);
            }
            ASSERT_NEAR(products[i * width + j], product, bound) << i << ", " << j;
          }
        }
      };
      check([&](int64_t t, int64_t c) { return double{x.at(t, c)}; }, found.sums.data() + 1,
            found.sums.data() + 1 + width, true);
      if (target) {
        const double* shift = found.sums.data() + 1 + width + width * width;
        check([&](int64_t t, int64_t c) { return double{y.at(t, c) - x.at(t, c)}; }, shift,
              shift + width, false);
      }
      for (int64_t c = 0; c < width; ++c) {
        float least = x.at(0, c), most = least;
        for (int64_t t = 1; t < num_rows; ++t) {
          least = std::min(least, x.at(t, c));
          most = std::max(most, x.at(t, c));
        }
        ASSERT_EQ(found.minima[c], least) << c;
        ASSERT_EQ(found.maxima[c], most) << c;
      }
    }
  }
}

TEST_F(CalibrationCudaTest, MomentsAreTheSameEveryTime) {
  const Rows x = MakeRows(900, 260, 3), y = MakeRows(900, 260, 0);
  Moments first;
  for (int run = 0; run < 3; ++run) {
    GpuMoments moments = GpuMoments::Create(260, true, stream()).value();
    ASSERT_TRUE(
        moments.Add(x.there.data(), x.stride, y.there.data(), y.stride, 900, stream()).ok());
    const Moments found = Download(moments);
    if (run == 0) first = found;
    EXPECT_TRUE(found == first);
  }
}

TEST_F(CalibrationCudaTest, WhatIsNoNumberIsNamed) {
  Rows x = MakeRows(50, 40, 0), y = MakeRows(50, 40, 0);
  y.values[31 * 40 + 7] = std::numeric_limits<float>::infinity();
  y.values[40 * 40 + 3] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(y.there.Upload(y.values, stream()).ok());
  GpuMoments moments = GpuMoments::Create(40, true, stream()).value();
  ASSERT_TRUE(moments.Add(x.there.data(), 40, x.there.data(), 40, 50, stream()).ok());
  ASSERT_TRUE(moments.Add(x.there.data(), 40, y.there.data(), 40, 50, stream()).ok());
  std::vector<double> sums(1 + 2 * 41 * 40);
  std::vector<float> extrema(40);
  const absl::Status status = moments.Download(absl::MakeSpan(sums), absl::MakeSpan(extrema),
                                               absl::MakeSpan(extrema), stream());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("target row 81, channel 7"));
  GpuChannelStats stats = GpuChannelStats::Create(40, stream()).value();
  ASSERT_TRUE(stats.Add(y.there.data(), 40, 50, stream()).ok());
  EXPECT_THAT(std::string(stats.Download(stream()).status().message()),
              HasSubstr("channel 7 of token 31"));
}

TEST_F(CalibrationCudaTest, ChannelsHaveTheirSumsAndRanges) {
  for (const auto [num_rows, width, padding] :
       {std::array<int64_t, 3>{1, 1, 0}, {47, 70, 6}, {513, 31, 1}}) {
    const Rows x = MakeRows(num_rows, width, padding);
    GpuChannelStats stats = GpuChannelStats::Create(width, stream()).value();
    const int64_t cut = num_rows / 2;
    ASSERT_TRUE(stats.Add(x.there.data(), x.stride, cut, stream()).ok());
    ASSERT_TRUE(
        stats.Add(x.there.data() + cut * x.stride, x.stride, num_rows - cut, stream()).ok());
    const GpuChannelStats::Sums found = stats.Download(stream()).value();
    EXPECT_EQ(found.count, num_rows);
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0.0, square = 0.0, size = 0.0;
      float least = x.at(0, c), most = least;
      for (int64_t t = 0; t < num_rows; ++t) {
        const double v = x.at(t, c);
        sum += v;
        size += std::fabs(v);
        square += v * v;
        least = std::min(least, x.at(t, c));
        most = std::max(most, x.at(t, c));
      }
      ASSERT_NEAR(found.sums[c], sum, 1e-12 * size) << c;
      ASSERT_NEAR(found.squares[c], square, 1e-12 * square) << c;
      ASSERT_EQ(found.minima[c], least) << c;
      ASSERT_EQ(found.maxima[c], most) << c;
    }
  }
}

// A code is off by one where its argument lies within fp32's rounding of a half.
TEST_F(CalibrationCudaTest, RowsAreRoundedToTheirCodes) {
  using Gain = GpuRoundingArgs::Gain;
  constexpr int64_t kRows = 21, kWidth = 333, kPadding = 9;
  std::uniform_real_distribution<float> uniform(0.02f, 0.3f);
  for (const Gain gain : {Gain::kNone, Gain::kMax, Gain::kRms}) {
    for (const bool snapped : {false, true}) {
      Rows x = MakeRows(kRows, kWidth, kPadding);
      for (int64_t c = 0; c < kWidth; ++c) x.values[4 * x.stride + c] = 0.0f;
      ASSERT_TRUE(x.there.Upload(x.values, stream()).ok());
      std::vector<float> step(kWidth), inverse(kWidth), zero(kWidth), max_code(kWidth);
      for (int64_t c = 0; c < kWidth; ++c) {
        step[c] = uniform(random_);
        inverse[c] = 1.0f / step[c];
        zero[c] = 50.0f * uniform(random_);
        max_code[c] = snapped || c % 2 == 0 ? 255.0f : 15.0f;
      }
      std::vector<uint8_t> snap(256);
      for (int i = 0; i < 256; ++i) snap[i] = static_cast<uint8_t>(i / 16 * 16 + 8);
      const auto copy = [&](const auto& values) {
        using T = typename std::decay_t<decltype(values)>::value_type;
        return DeviceArray<T>::CopyOf(values, "parameters", stream()).value();
      };
      const auto steps = copy(step), inverses = copy(inverse), zeros = copy(zero);
      const auto max_codes = copy(max_code);
      const auto snaps = copy(snap);
      ASSERT_TRUE(RoundRowsOnGpu({.x = x.there.data(),
                                  .stride = x.stride,
                                  .num_rows = kRows,
                                  .width = kWidth,
                                  .step = steps.data(),
                                  .inverse_step = inverses.data(),
                                  .zero = zeros.data(),
                                  .max_code = max_codes.data(),
                                  .snap = snapped ? snaps.data() : nullptr,
                                  .gain = gain},
                                 stream())
                      .ok());
      std::vector<float> found(x.values.size());
      ASSERT_TRUE(x.there.Download(absl::MakeSpan(found), stream()).ok());
      for (int64_t t = 0; t < kRows; ++t) {
        double largest = 0.0, square = 0.0;
        for (int64_t c = 0; c < kWidth; ++c) {
          const double u = double{x.at(t, c)} * inverse[c];
          largest = std::max(largest, std::fabs(u));
          square += u * u;
        }
        const double statistic = gain == Gain::kMax   ? largest / 127.0
                                 : gain == Gain::kRms ? std::sqrt(square / kWidth)
                                                      : 1.0;
        // fp16's neighbours of the gain are 2^-11 apart at least; which it is may differ.
        const double by = statistic == 0.0 ? 1.0 : statistic;
        const double slack = gain == Gain::kNone ? 0.0 : 0x1p-10;
        for (int64_t c = 0; c < kWidth; ++c) {
          const double u = double{x.at(t, c)} * inverse[c] / by;
          const auto code_of = [&](double v) {
            const double code = std::nearbyint(std::clamp(v + zero[c], 0.0, double{max_code[c]}));
            return snapped ? static_cast<double>(snap[static_cast<size_t>(code)]) : code;
          };
          const double off = std::fabs(u) * (slack + 0x1p-20) + 1e-4;
          const double low = code_of(u - off), high = code_of(u + off);
          const double least = by * step[c] * (low - zero[c]);
          const double most = by * step[c] * (high - zero[c]);
          const double rounding = (slack + 0x1p-20) * std::max(std::fabs(least), std::fabs(most));
          const double value = found[t * x.stride + c];
          ASSERT_GE(value, least - rounding) << t << ", " << c;
          ASSERT_LE(value, most + rounding) << t << ", " << c;
        }
        for (int64_t c = kWidth; c < x.stride; ++c) {
          ASSERT_TRUE(std::isnan(found[t * x.stride + c]));
        }
      }
    }
  }
}

TEST_F(CalibrationCudaTest, HeadsLoseWhatTheirErrorsBecome) {
  constexpr int64_t kRows = 45, kHeads = 3, kHeadDim = 20, kWidth = kHeads * kHeadDim, kOut = 50;
  const Rows exact = MakeRows(kRows, kWidth, 0), coded = MakeRows(kRows, kWidth, 0);
  const Rows weight = MakeRows(kOut, kWidth, 0);
  std::vector<double> losses(kHeads, 1.5);
  ASSERT_TRUE(AddHeadLossesOnGpu({.exact = exact.there.data(),
                                  .coded = coded.there.data(),
                                  .weight = weight.there.data(),
                                  .num_rows = kRows,
                                  .width = kWidth,
                                  .head_dim = kHeadDim,
                                  .out_features = kOut,
                                  .losses = absl::MakeSpan(losses)},
                                 stream())
                  .ok());
  for (int64_t h = 0; h < kHeads; ++h) {
    double loss = 1.5, slack = 0.0;
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t o = 0; o < kOut; ++o) {
        double sum = 0.0, size = 0.0;
        for (int64_t c = h * kHeadDim; c < (h + 1) * kHeadDim; ++c) {
          const double term = (double{coded.at(t, c)} - exact.at(t, c)) * weight.at(o, c);
          sum += term;
          size += std::fabs(term);
        }
        loss += sum * sum;
        const double off = (kHeadDim + 2) * 0x1p-24 * size;
        slack += 2.0 * std::fabs(sum) * off + off * off;
      }
    }
    EXPECT_NEAR(losses[h], loss, slack + 1e-9 * loss);
  }
}

}  // namespace
}  // namespace thinwire
