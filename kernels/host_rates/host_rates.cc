#include "kernels/host_rates/host_rates.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/core/fastest.h"
#include "kernels/linear/blas.h"

namespace thinwire {

double MeasureReadRate(int64_t num_bytes, ThreadPool& pool) {
  const std::vector<char> bytes(num_bytes, 0);
  std::atomic<int64_t> num_found{0};  // keeps the search from being left out
  // A search for what is not there is the fastest plain read at hand.
  const double seconds = FastestSeconds(8, [&] {
    pool.ParallelFor(num_bytes, 4096, [&](int64_t begin, int64_t end) {
      if (std::memchr(bytes.data() + begin, 1, end - begin) != nullptr) ++num_found;
    });
  });
  return num_found == 0 ? static_cast<double>(num_bytes) / seconds : 0.0;
}

double MeasureSgemmRate(ThreadPool& pool) {
  constexpr int64_t kM = 512, kN = 2048, kK = 512;
  const int num_threads = pool.num_threads();
  const std::vector<float> a(kM * kK, 0.5f), b(kN * kK, 0.25f);
  std::vector<std::vector<float>> c(num_threads, std::vector<float>(kM * kN));
  const double seconds = FastestSeconds(6, [&] {
    pool.ParallelFor(num_threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        SgemmNT(kM, kN, kK, a.data(), kK, b.data(), kK, 0.0f, c[i].data(), kN);
      }
    });
  });
  return 2.0 * kM * kN * kK * num_threads / seconds;
}

}  // namespace thinwire
