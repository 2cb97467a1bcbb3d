#include "kernels/vptq_linear/nearest_vector.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cpu_targets.h"

namespace thinwire {
namespace {

double SquaredDistance(const float* a, const float* b, int length) {
  double sum = 0.0;
  for (int e = 0; e < length; ++e) sum += (double{a[e]} - b[e]) * (double{a[e]} - b[e]);
  return sum;
}

TEST(VectorBookTest, FindsTheNearestUpToRounding) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const int length : {1, 2, 3, 4, 8, 13}) {
      for (const int64_t count : {1, 5, 16, 100, 257}) {
        std::vector<float> book(static_cast<size_t>(count * length)), from(37 * length);
        for (float& value : book) value = normal(random);
        for (float& value : from) value = normal(random);
        std::vector<int32_t> found(37);
        VectorBook(book, length).Nearest(from.data(), 37, found.data());
        for (int64_t i = 0; i < 37; ++i) {
          ASSERT_TRUE(found[i] >= 0 && found[i] < count);
          const float* x = from.data() + i * length;
          double best = 1e30, norm = 0.0;
          for (int64_t c = 0; c < count; ++c) {
            best = std::min(best, SquaredDistance(x, book.data() + c * length, length));
          }
          for (int e = 0; e < length; ++e) norm += double{x[e]} * x[e];
          // Two scores of length + 1 roundings each, of terms that |x| |c| + |c|^2 / 2 bounds; |c|
          // is below 5 sqrt(length) here.
          const double c = 5.0 * std::sqrt(length);
          const double bound = 4 * 0x1p-24 * (length + 2) * (std::sqrt(norm) * c + c * c / 2);
          ASSERT_LE(SquaredDistance(x, book.data() + found[i] * length, length), best + bound);
        }
      }
    }
  });
}

TEST(VectorBookTest, OfEqualsTheFirstIsFound) {
  const std::vector<float> book(40 * 2, 1.5f);
  const std::vector<float> from = {1.0f, 2.0f, -3.0f, 0.5f};
  std::vector<int32_t> found(2, -1);
  VectorBook(book, 2).Nearest(from.data(), 2, found.data());
  EXPECT_EQ(found, (std::vector<int32_t>{0, 0}));
}

}  // namespace
}  // namespace thinwire
