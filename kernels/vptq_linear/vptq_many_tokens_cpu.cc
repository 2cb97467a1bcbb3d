// Many tokens: the vectors of some outputs are laid out as rows of a matrix, which BLAS multiplies.
#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "kernels/vptq_linear/vptq_linear_cpu.h"

namespace thinwire {
namespace {

// A thread's block of outputs: as many as its fp32 copy in cache allows, but enough for BLAS.
constexpr int64_t kBlockWeights = 1 << 19;
constexpr int64_t kMinBlockOutputs = 64;
constexpr int64_t kMaxBlockOutputs = 512;

// What the codebooks of a group are as fp32, made once a call.
struct FloatBooks {
  std::vector<float> centroids, residual;
};

std::vector<float> ToFloats(const ConstTensorView& book) {
  std::vector<float> floats(static_cast<size_t>(book.empty() ? 0 : book.num_elements()));
  if (!floats.empty()) {
    ConvertToFloat(book.raw(), book.dtype(), floats.data(), static_cast<int64_t>(floats.size()));
  }
  return floats;
}

// matrix[p, o - begin] of outputs [begin, end) and the part's positions p: centroid plus residual.
void LayOut(const VptqPart& part, const std::vector<FloatBooks>& books, int64_t begin, int64_t end,
            float* matrix, int64_t stride) {
  const int64_t step = VptqStride(part.length);
  const int64_t first = (begin + part.skip) / part.length;
  const int64_t last = (end - 1 + part.skip) / part.length;
  for (int64_t row = first; row <= last; ++row) {
    const int64_t from = row * part.length - part.skip;  // output of the vector's first element
    const int64_t lowest = std::max(begin, from);
    const int64_t count = std::min(end, from + part.length) - lowest;
    float* to = matrix + (lowest - begin);
    for (size_t g = 0; g < part.groups.size(); ++g) {
      const VptqGroup& group = part.groups[g];
      const int bits = part.code_bits(group);
      const uint8_t* codes =
          group.codes.view().data<uint8_t>() + row * VptqRowBytes(group.num_columns, bits);
      for (int64_t c = 0; c < group.num_columns; ++c, to += stride) {
        const uint64_t code = VptqCodeAt(codes, c * bits);
        const float* w = books[g].centroids.data() + VptqField(code, 0, part.index_bits) * step +
                         (lowest - from);
        if (books[g].residual.empty()) {
          for (int64_t i = 0; i < count; ++i) to[i] = w[i];
        } else {
          const float* r = books[g].residual.data() +
                           VptqField(code, part.index_bits, part.residual_bits) * step +
                           (lowest - from);
          for (int64_t i = 0; i < count; ++i) to[i] = w[i] + r[i];
        }
      }
    }
  }
}

}  // namespace

absl::Status VptqLinearManyTokens(const VptqLinearArgs& args, Stream& stream) {
  const VptqWeights& weights = *args.weights;
  const int64_t num_tokens = args.x.dim(0);
  const int64_t in = weights.in_features();
  const int64_t out = weights.out_features();
  const int threads = stream.pool().num_threads();
  const int64_t block =
      std::clamp(kBlockWeights / std::max<int64_t>(1, in) / kMinBlockOutputs * kMinBlockOutputs,
                 kMinBlockOutputs, kMaxBlockOutputs);
  const int64_t floats = (in + num_tokens) * block;
  TW_ASSIGN_OR_RETURN(const VptqInput input, PrepareVptqInput(args, threads * floats, stream));
  std::vector<std::vector<FloatBooks>> books;
  for (const VptqPart& part : weights.parts()) {
    std::vector<FloatBooks>& of_part = books.emplace_back();
    for (const VptqGroup& group : part.groups) {
      of_part.push_back({ToFloats(group.centroids.view()), ToFloats(group.residual.view())});
    }
  }
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  stream.pool().ParallelForDynamic((out + block - 1) / block, [&](int64_t item) {
    const int64_t begin = item * block;
    const int64_t end = std::min(out, begin + block);
    const int64_t width = end - begin;
    float* const matrix = input.rest + ThreadPool::CurrentThread() * floats;
    float* const y = matrix + in * block;
    int64_t position = 0;
    for (size_t i = 0; i < books.size(); ++i) {
      const VptqPart& part = weights.parts()[i];
      if (part.groups.empty()) continue;
      LayOut(part, books[i], begin, end, matrix + position * width, width);
      position += part.num_columns();
    }
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t o = 0; o < width; ++o) {
        y[t * width + o] = input.sums[t] + (bias == nullptr ? 0.0f : bias[begin + o]);
      }
    }
    SgemmNN(num_tokens, width, in, input.x, in, matrix, width, 1.0f, y, width);
    for (int64_t t = 0; t < num_tokens; ++t) {
      ConvertFromFloat(y + t * width, args.y.Rows(t, 1).Columns(begin, width).mutable_raw(),
                       args.y.dtype(), width);
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
