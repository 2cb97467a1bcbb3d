#include "runtime/refine/norm_gradient.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr int64_t kTokens = 64;  // of a part whose sums are formed apart

struct Moments {
  double mean = 0.0;
  double reciprocal = 0.0;  // of the deviation
};

Moments MomentsOf(NormKind kind, const float* x, int64_t hidden, float epsilon) {
  const auto width = static_cast<double>(hidden);
  Moments moments;
  if (kind == NormKind::kLayerNorm) {
    for (int64_t c = 0; c < hidden; ++c) moments.mean += x[c];
    moments.mean /= width;
  }
  double squares = 0.0;
  for (int64_t c = 0; c < hidden; ++c) {
    const double centred = x[c] - moments.mean;
    squares += centred * centred;
  }
  moments.reciprocal = 1.0 / std::sqrt(squares / width + double{epsilon});
  return moments;
}

}  // namespace

void NormGradient(const NormGradientArgs& args, int64_t hidden, std::vector<float>* dgain,
                  std::vector<float>* doffset, ThreadPool& pool) {
  const auto num_tokens = static_cast<int64_t>(args.x.size()) / hidden;
  TW_CHECK(args.x.size() == args.dy.size() && args.x.size() == args.dx.size());
  const int64_t num_parts = (num_tokens + kTokens - 1) / kTokens;
  std::vector<double> sums(static_cast<size_t>(num_parts * 2 * hidden), 0.0);
  pool.ParallelForDynamic(num_parts, [&](int64_t part) {
    double* const gains = sums.data() + part * 2 * hidden;
    double* const offsets = gains + hidden;
    const int64_t end = std::min(num_tokens, (part + 1) * kTokens);
    for (int64_t t = part * kTokens; t < end; ++t) {
      const float* const x = args.x.data() + t * hidden;
      const float* const dy = args.dy.data() + t * hidden;
      float* const dx = args.dx.data() + t * hidden;
      const Moments moments = MomentsOf(args.kind, x, hidden, args.epsilon);
      double sum = 0.0, product = 0.0;
      for (int64_t c = 0; c < hidden; ++c) {
        const double normed = (x[c] - moments.mean) * moments.reciprocal;
        const double g = double{dy[c]} * (args.gain.empty() ? 1.0f : args.gain[c]);
        gains[c] += dy[c] * normed;
        offsets[c] += dy[c];
        sum += g;
        product += g * normed;
      }
      sum = args.kind == NormKind::kLayerNorm ? sum / static_cast<double>(hidden) : 0.0;
      product /= static_cast<double>(hidden);
      for (int64_t c = 0; c < hidden; ++c) {
        const double normed = (x[c] - moments.mean) * moments.reciprocal;
        const double g = double{dy[c]} * (args.gain.empty() ? 1.0f : args.gain[c]);
        dx[c] += static_cast<float>(moments.reciprocal * (g - sum - normed * product));
      }
    }
  });
  const auto collect = [&](int64_t first, std::vector<float>* out) {
    if (out == nullptr) return;
    out->resize(static_cast<size_t>(hidden));
    for (int64_t c = 0; c < hidden; ++c) {
      double total = 0.0;
      for (int64_t part = 0; part < num_parts; ++part) {
        total += sums[part * 2 * hidden + first + c];
      }
      (*out)[c] = static_cast<float>(total);
    }
  };
  collect(0, dgain);
  collect(hidden, doffset);
}

}  // namespace thinwire
