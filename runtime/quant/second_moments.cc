#include "runtime/quant/second_moments.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

// Rows whose products are summed in fp32: few enough for its rounding, enough to pay for adding
// width^2 numbers in double.
constexpr int64_t kBlockRows = 512;
constexpr int64_t kTile = 128;     // columns of one product
constexpr int64_t kChannels = 64;  // channels whose sums one thread takes

bool IsFinite(float value) { return (std::bit_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u; }

// The smallest t * width + c whose element is NaN or infinite; -1 when there is none.
int64_t FirstNonFinite(const float* x, int64_t stride, int64_t num_rows, int64_t width,
                       ThreadPool& pool) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first{kNone};
  pool.ParallelFor(num_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * stride;
      uint32_t bad = 0;
      for (int64_t c = 0; c < width; ++c) bad |= IsFinite(row[c]) ? 0u : 1u;
      if (bad == 0) continue;
      const int64_t found = t * width + (std::find_if_not(row, row + width, IsFinite) - row);
      int64_t seen = first.load();
      while (found < seen && !first.compare_exchange_weak(seen, found)) {
      }
      return;
    }
  });
  return first == kNone ? -1 : first.load();
}

absl::Status CheckFinite(const float* x, int64_t stride, int64_t num_rows, int64_t width,
                         absl::string_view what, ThreadPool& pool) {
  const int64_t bad = FirstNonFinite(x, stride, num_rows, width, pool);
  if (bad < 0) return absl::OkStatus();
  const int64_t t = bad / width;
  const int64_t c = bad % width;
  return absl::InvalidArgumentError(absl::StrCat(what, " row ", t, ", channel ", c, ": ",
                                                 x[t * stride + c], ", expected a finite number"));
}

// A block of rows with a shift per channel taken off, and what puts it back.
struct Centred {
  explicit Centred(int64_t rows, int64_t width)
      : values(static_cast<size_t>(rows * width)), shift(width), sum(width) {}
  std::vector<float> values;  // [rows, width]
  std::vector<double> shift;  // [width]: values + shift = the rows
  std::vector<double> sum;    // [width] of (row - shift)
};

// The block's column sums go to `total`; the shift is their mean rounded to fp32, so that it comes
// off exactly where it matters.
void Centre(int64_t rows, int64_t width, Centred& block, double* total, ThreadPool& pool) {
  pool.ParallelFor(width, kChannels, [&](int64_t begin, int64_t end) {
    std::fill(block.sum.begin() + begin, block.sum.begin() + end, 0.0);
    for (int64_t t = 0; t < rows; ++t) {
      const float* row = block.values.data() + t * width;
      for (int64_t c = begin; c < end; ++c) block.sum[c] += static_cast<double>(row[c]);
    }
    for (int64_t c = begin; c < end; ++c) {
      total[c] += block.sum[c];
      block.shift[c] =
          static_cast<double>(static_cast<float>(block.sum[c] / static_cast<double>(rows)));
      block.sum[c] -= static_cast<double>(rows) * block.shift[c];
    }
    for (int64_t t = 0; t < rows; ++t) {
      float* row = block.values.data() + t * width;
      for (int64_t c = begin; c < end; ++c) row[c] -= static_cast<float>(block.shift[c]);
    }
  });
}

// to[i, j] += sum_t a_ti b_tj over the rows before their shifts came off. With `upper`, only j >= i
// of it.
void AddProducts(int64_t rows, int64_t width, const Centred& a, const Centred& b, bool upper,
                 double* to, ThreadPool& pool) {
  const int64_t tiles = (width + kTile - 1) / kTile;
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t i = 0; i < tiles; ++i) {
    for (int64_t j = upper ? i : 0; j < tiles; ++j) pairs.emplace_back(i * kTile, j * kTile);
  }
  std::vector<float> scratch(static_cast<size_t>(pool.num_threads() * kTile * kTile));
  const auto n = static_cast<double>(rows);
  pool.ParallelForDynamic(static_cast<int64_t>(pairs.size()), [&](int64_t item) {
    const auto [i0, j0] = pairs[item];
    const int64_t height = std::min(kTile, width - i0);
    const int64_t breadth = std::min(kTile, width - j0);
    float* tile = scratch.data() + ThreadPool::CurrentThread() * kTile * kTile;
    SgemmTN(height, breadth, rows, a.values.data() + i0, width, b.values.data() + j0, width, 0.0f,
            tile, breadth);
    for (int64_t i = 0; i < height; ++i) {
      // sum (a + s)(b + r) = sum a b + s sum b + r (sum a + n s)
      const double shift = a.shift[i0 + i];
      const double sum = a.sum[i0 + i] + n * shift;
      double* out = to + (i0 + i) * width + j0;
      const float* in = tile + i * breadth;
      for (int64_t j = upper ? std::max<int64_t>(0, i0 + i - j0) : 0; j < breadth; ++j) {
        out[j] += static_cast<double>(in[j]) + (shift * b.sum[j0 + j] + b.shift[j0 + j] * sum);
      }
    }
  });
}

// run(i) for i in [0, count): on the pool, or here without one.
template <typename F>
void InTurns(ThreadPool* pool, int64_t count, const F& run) {
  if (pool != nullptr) {
    pool->ParallelForDynamic(count, run);
    return;
  }
  for (int64_t i = 0; i < count; ++i) run(i);
}

}  // namespace

SecondMoments::SecondMoments(int64_t width, bool with_target)
    : width_(width),
      with_target_(with_target),
      sums_(static_cast<size_t>(1 + (with_target ? 2 : 1) * (width + width * width)), 0.0),
      minima_(static_cast<size_t>(width), std::numeric_limits<float>::infinity()),
      maxima_(static_cast<size_t>(width), -std::numeric_limits<float>::infinity()) {
  TW_CHECK_GE(width, 0);
}

absl::Status SecondMoments::Add(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                                int64_t num_rows, ThreadPool& pool) {
  TW_CHECK(num_rows == 0 || (y != nullptr) == with_target_);
  if (num_rows == 0 || width_ == 0) {
    sums_[0] += static_cast<double>(num_rows);
    return absl::OkStatus();
  }
  if (absl::Status s = CheckFinite(x, x_stride, num_rows, width_, "input", pool); !s.ok()) return s;
  if (with_target_) {
    absl::Status s = CheckFinite(y, y_stride, num_rows, width_, "target", pool);
    if (!s.ok()) return s;
  }
  const int64_t most = std::min(num_rows, kBlockRows);
  Centred inputs(most, width_);
  Centred shifts(with_target_ ? most : 0, width_);
  for (int64_t first = 0; first < num_rows; first += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, num_rows - first);
    pool.ParallelFor(width_, kChannels, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < rows; ++t) {
        const float* in = x + (first + t) * x_stride;
        float* to = inputs.values.data() + t * width_;
        for (int64_t c = begin; c < end; ++c) {
          to[c] = in[c];
          minima_[c] = std::min(minima_[c], in[c]);
          maxima_[c] = std::max(maxima_[c], in[c]);
        }
        if (!with_target_) continue;
        const float* target = y + (first + t) * y_stride;
        float* shift = shifts.values.data() + t * width_;
        for (int64_t c = begin; c < end; ++c) shift[c] = target[c] - in[c];
      }
    });
    Centre(rows, width_, inputs, sums_.data() + 1, pool);
    AddProducts(rows, width_, inputs, inputs, true, Product(), pool);
    if (with_target_) {
      double* shift_sums = Product() + width_ * width_;
      Centre(rows, width_, shifts, shift_sums, pool);
      AddProducts(rows, width_, shifts, inputs, false, shift_sums + width_, pool);
    }
    sums_[0] += static_cast<double>(rows);
  }
  return absl::OkStatus();
}

void SecondMoments::Merge(const SecondMoments& other) {
  TW_CHECK_EQ(width_, other.width_);
  TW_CHECK_EQ(with_target_, other.with_target_);
  for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
  for (int64_t c = 0; c < width_; ++c) {
    minima_[c] = std::min(minima_[c], other.minima_[c]);
    maxima_[c] = std::max(maxima_[c], other.maxima_[c]);
  }
}

double* SecondMoments::Product() { return sums_.data() + 1 + width_; }
const double* SecondMoments::Product() const { return sums_.data() + 1 + width_; }
const double* SecondMoments::Shift() const { return Product() + width_ * width_; }

std::vector<double> SecondMoments::MeanOf(const double* sums) const {
  std::vector<double> mean(static_cast<size_t>(width_), 0.0);
  if (count() == 0) return mean;
  for (int64_t c = 0; c < width_; ++c) mean[c] = sums[c] / sums_[0];
  return mean;
}

std::vector<double> SecondMoments::Mean() const { return MeanOf(sums_.data() + 1); }

std::vector<double> SecondMoments::TargetShiftMean() const {
  TW_CHECK(with_target_);
  return MeanOf(Shift());
}

std::vector<double> SecondMoments::Hessian(bool centred, ThreadPool* pool) const {
  std::vector<double> hessian(static_cast<size_t>(width_ * width_), 0.0);
  if (count() == 0) return hessian;
  const std::vector<double> mean = centred ? Mean() : std::vector<double>(width_, 0.0);
  const double* product = Product();
  // Tile after tile: the lower ones are read across.
  InTurns(pool, (width_ + kTile - 1) / kTile, [&](int64_t tile) {
    const int64_t end = std::min(width_, (tile + 1) * kTile);
    for (int64_t first = 0; first < width_; first += kTile) {
      for (int64_t i = tile * kTile; i < end; ++i) {
        for (int64_t j = first; j < std::min(width_, first + kTile); ++j) {
          const int64_t upper = i <= j ? i * width_ + j : j * width_ + i;
          const double value = product[upper] / sums_[0] - mean[i] * mean[j];
          hessian[i * width_ + j] = i == j ? std::max(0.0, value) : value;
        }
      }
    }
  });
  return hessian;
}

std::vector<double> SecondMoments::TargetShift(bool centred, ThreadPool* pool) const {
  TW_CHECK(with_target_);
  std::vector<double> shift(static_cast<size_t>(width_ * width_), 0.0);
  if (count() == 0) return shift;
  const std::vector<double> mean = centred ? Mean() : std::vector<double>(width_, 0.0);
  const std::vector<double> shift_mean = TargetShiftMean();
  const double* product = Shift() + width_;
  InTurns(pool, width_, [&](int64_t i) {
    for (int64_t j = 0; j < width_; ++j) {
      shift[i * width_ + j] = product[i * width_ + j] / sums_[0] - shift_mean[i] * mean[j];
    }
  });
  return shift;
}

std::vector<double> SecondMoments::Variance(bool centred) const {
  std::vector<double> variance(static_cast<size_t>(width_), 0.0);
  if (count() == 0) return variance;
  const double* product = Product();
  for (int64_t c = 0; c < width_; ++c) {
    const double mean = centred ? sums_[1 + c] / sums_[0] : 0.0;
    variance[c] = std::max(0.0, product[c * width_ + c] / sums_[0] - mean * mean);
  }
  return variance;
}

}  // namespace thinwire
