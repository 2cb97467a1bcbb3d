#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/gpu_book.cuh"
#include "kernels/quantize/gpu_vptq.h"

namespace thinwire {
namespace {

// Columns between two products that spread errors to the columns behind, or from all of them.
constexpr int kBlockColumns = 128;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kTiles = 2;
constexpr int kVectors = 8 * kTiles;  // of a block of threads
constexpr int kMostWidth = kVectors * kMaxSearchLength;
constexpr int kEnergyThreads = 256;
constexpr int kEnergyBlocks = 1024;

struct BlockArgs {
  BookView main, residual;
  bool has_residual, turns;
  const float* matrix;  // [in, in]: the factor, or the Hessian
  float* state;         // feedback: columns as moved, a chunk's [in, width]; descent: slopes of
                        // the block's columns, [kBlockColumns, width]
  float* changes;       // feedback: errors of the block's columns, [kBlockColumns, width];
                        // descent: errors of all, [in, width]
  float* values;        // [in, width]
  int32_t* indices;     // [in, rows]
  int32_t* residuals;
  int64_t in, rows, begin;
  int size;  // columns of this block
};

// Shared by a block of threads. Dynamic: columns [size, width of the block], then the block of the
// matrix [size, size].
struct Choice {
  int32_t main[kVectors], residual[kVectors];
};

struct Shared {
  float target[kMostWidth], left[kMostWidth], before[kMostWidth];
  Choice tried, kept;
  int most[kVectors];  // floats in an order that integers have
  unsigned long long keys[kVectors];
  bool keep[kVectors];
};

__device__ __forceinline__ int Ordered(float value) {
  const int bits = __float_as_int(value);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ __forceinline__ float FromOrdered(int bits) {
  return __int_as_float(bits >= 0 ? bits : bits ^ 0x7fffffff);
}

// The whole block: nearest[v] of x[v * length, ...), v < kVectors, both shared. Barriers at the
// begin and at the end.
template <int kSteps>
__device__ void Nearest(const BookView& book, const float* x, int32_t* nearest, Shared& shared) {
  const int lane = threadIdx.x % 32;
  const int length = book.length;
  if (threadIdx.x < kVectors) {
    shared.most[threadIdx.x] = Ordered(-__int_as_float(0x7f800000));
    shared.keys[threadIdx.x] = 0;
  }
  __syncthreads();
  BookSearch<kSteps, kTiles, true> search;
  search.Load(book, [&](int v, int e) { return x[v * length + e]; });
  search.Run(book, threadIdx.x / 32, kWarps);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float most = search.best[t][c];
      for (int step = 4; step < 32; step *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
      }
      if (lane < 4) atomicMax(&shared.most[8 * t + 2 * lane + c], Ordered(most));
    }
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int v = 8 * t + 2 * (lane % 4) + c;
      const float* const from = x + v * length;
      float square = 0.0f;
      for (int e = 0; e < length; ++e) square = fmaf(from[e], from[e], square);
      if (search.best[t][c] >= FromOrdered(shared.most[v]) - SearchMargin(book, sqrtf(square))) {
        float score;
        int index;
        ScoreAgain(
            book, search.where[t][c], [&](int e) { return from[e]; }, score, index);
        atomicMax(&shared.keys[v], SearchKey(score, index));
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < kVectors) nearest[threadIdx.x] = IndexOfKey(shared.keys[threadIdx.x]);
  __syncthreads();
}

// left = x - the book's vectors that `indices` say. Ends with a barrier.
__device__ void Subtract(const BookView& book, const int32_t* indices, const float* x,
                         float* left) {
  for (int o = threadIdx.x; o < kVectors * book.length; o += kThreads) {
    const int64_t from = int64_t{indices[o / book.length]} * book.length;
    left[o] = x[o] - __ldg(book.centroids + from + o % book.length);
  }
  __syncthreads();
}

template <int kSteps>
__device__ void Turn(const BlockArgs& args, const float* target, Choice& choice, Shared& shared) {
  Subtract(args.residual, choice.residual, target, shared.left);
  Nearest<kSteps>(args.main, shared.left, choice.main, shared);
  Subtract(args.main, choice.main, target, shared.left);
  Nearest<kSteps>(args.residual, shared.left, choice.residual, shared);
}

__device__ float Distance(const BlockArgs& args, const float* target, int32_t main,
                          int32_t residual) {
  const int length = args.main.length;
  float sum = 0.0f;
  for (int e = 0; e < length; ++e) {
    const float difference = target[e] - __ldg(args.main.centroids + int64_t{main} * length + e) -
                             __ldg(args.residual.centroids + int64_t{residual} * length + e);
    sum += difference * difference;
  }
  return sum;
}

// The column's choice for `target` into shared.tried; with kAgain from what shared.kept was, too.
template <int kSteps, bool kAgain>
__device__ void Choose(const BlockArgs& args, const float* target, Shared& shared) {
  Nearest<kSteps>(args.main, target, shared.tried.main, shared);
  if (!args.has_residual) return;
  Subtract(args.main, shared.tried.main, target, shared.left);
  Nearest<kSteps>(args.residual, shared.left, shared.tried.residual, shared);
  if (args.turns) Turn<kSteps>(args, target, shared.tried, shared);
  if (!kAgain) return;
  Turn<kSteps>(args, target, shared.kept, shared);
  if (threadIdx.x < kVectors) {
    const int v = threadIdx.x;
    const float* const x = target + v * args.main.length;
    if (Distance(args, x, shared.kept.main[v], shared.kept.residual[v]) <=
        Distance(args, x, shared.tried.main[v], shared.tried.residual[v])) {
      shared.tried.main[v] = shared.kept.main[v];
      shared.tried.residual[v] = shared.kept.residual[v];
    }
  }
  __syncthreads();
}

// Columns [begin, begin + size) of kVectors vectors of a chunk, one after another.
template <int kSteps, bool kDescend>
__global__ void __launch_bounds__(kThreads, 1) WalkColumns(BlockArgs args) {
  extern __shared__ float dynamic[];
  __shared__ Shared shared;
  const int length = args.main.length;
  const int width = kVectors * length;
  const int64_t row = int64_t{blockIdx.x} * kVectors;
  const int there = static_cast<int>(min(int64_t{kVectors}, args.rows - row));
  const int64_t chunk_width = args.rows * length;
  const int64_t chunk = blockIdx.y;
  const int64_t all = chunk * args.in * chunk_width + row * length;
  const int64_t of_block = chunk * kBlockColumns * chunk_width + row * length;
  float* const columns = dynamic;
  float* const matrix = dynamic + args.size * width;
  float* const state = args.state + (kDescend ? of_block : all + args.begin * chunk_width);
  float* const changes = args.changes + (kDescend ? all + args.begin * chunk_width : of_block);
  float* const values = args.values + all + args.begin * chunk_width;
  for (int k = threadIdx.x; k < args.size * width; k += kThreads) {
    const int o = k % width;
    columns[k] = o < there * length ? state[k / width * chunk_width + o] : 0.0f;
  }
  for (int k = threadIdx.x; k < args.size * args.size; k += kThreads) {
    matrix[k] = args.matrix[(args.begin + k / args.size) * args.in + args.begin + k % args.size];
  }
  // A thread's output and, of every so many, the later columns it moves.
  const int lanes = kThreads / width;
  const int output = threadIdx.x % width, lane = threadIdx.x / width;
  __syncthreads();
  for (int i = 0; i < args.size; ++i) {
    const int64_t vectors = (chunk * args.in + args.begin + i) * args.rows + row;
    const float pivot = matrix[i * args.size + i];
    if (threadIdx.x < width) {
      float target = columns[i * width + threadIdx.x];
      if (kDescend) {
        const float value =
            threadIdx.x < there * length ? values[i * chunk_width + threadIdx.x] : 0.0f;
        shared.before[threadIdx.x] = value;
        target = value - target / pivot;
      }
      shared.target[threadIdx.x] = target;
    }
    if (kDescend && args.has_residual && threadIdx.x < kVectors) {
      const bool real = threadIdx.x < there;
      shared.kept.main[threadIdx.x] = real ? args.indices[vectors + threadIdx.x] : 0;
      shared.kept.residual[threadIdx.x] = real ? args.residuals[vectors + threadIdx.x] : 0;
    }
    __syncthreads();
    Choose<kSteps, kDescend>(args, shared.target, shared);
    if (threadIdx.x < width) {
      const int v = threadIdx.x / length, e = threadIdx.x % length;
      float value = __ldg(args.main.centroids + int64_t{shared.tried.main[v]} * length + e);
      if (args.has_residual) {
        value += __ldg(args.residual.centroids + int64_t{shared.tried.residual[v]} * length + e);
      }
      const float change = kDescend ? value - shared.before[threadIdx.x]
                                    : (value - shared.target[threadIdx.x]) / pivot;
      shared.left[threadIdx.x] = change;
      if (threadIdx.x < there * length) {
        const int64_t at = i * chunk_width + threadIdx.x;
        values[at] = value;
        if (kDescend) {
          changes[at] += change;
        } else {
          changes[at] = change;
          state[at] = shared.target[threadIdx.x];
        }
      }
    }
    if (threadIdx.x < there) {
      args.indices[vectors + threadIdx.x] = shared.tried.main[threadIdx.x];
      if (args.has_residual) {
        args.residuals[vectors + threadIdx.x] = shared.tried.residual[threadIdx.x];
      }
    }
    __syncthreads();
    if (lane < lanes) {
      const float change = shared.left[output];
      for (int j = i + 1 + lane; j < args.size; j += lanes) {
        float& later = columns[j * width + output];
        later = fmaf(matrix[i * args.size + j], change, later);
      }
    }
    __syncthreads();
  }
}

__global__ void Minus(const float* a, const float* b, int64_t n, float* difference) {
  for (int64_t i = int64_t{blockIdx.x} * kEnergyThreads + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * kEnergyThreads) {
    difference[i] = a[i] - b[i];
  }
}

// values null: targets + shift.
__global__ void EnergyOperand(const float* values, const float* targets, const float* shift,
                              const float* multiplier, int64_t in, int64_t width, int64_t outputs,
                              int64_t n, float* x) {
  for (int64_t k = int64_t{blockIdx.x} * kEnergyThreads + threadIdx.x; k < n;
       k += int64_t{gridDim.x} * kEnergyThreads) {
    const int64_t i = k / width % in;
    const float value = values == nullptr ? targets[k] + shift[i] : values[k] - targets[k];
    const bool real = k / (width * in) * width + k % width < outputs;
    x[k] = real ? value * multiplier[i] : 0.0f;
  }
}

// sums[b]: of a part of a . b, in an order of its own.
__global__ void DotParts(const float* a, const float* b, int64_t n, double* sums) {
  __shared__ double parts[kEnergyThreads];
  double sum = 0.0;
  for (int64_t k = int64_t{blockIdx.x} * kEnergyThreads + threadIdx.x; k < n;
       k += int64_t{gridDim.x} * kEnergyThreads) {
    sum += double{a[k]} * double{b[k]};
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kEnergyThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

}  // namespace

absl::StatusOr<GpuVptq> GpuVptq::Create(const VptqMatrixShape& shape,
                                        absl::Span<const float> targets,
                                        absl::Span<const float> factor,
                                        absl::Span<const float> hessian, Stream& stream) {
  TW_CHECK(shape.length > 0 && shape.length <= kMaxSearchLength && shape.num_chunks > 0);
  TW_CHECK_LT(shape.num_chunks, 65536);
  for (const auto& matrix : {factor, hessian}) {
    TW_CHECK_EQ(static_cast<int64_t>(matrix.size()), shape.in * shape.in);
  }
  GpuVptq made(shape, stream);
  const std::string what =
      absl::StrCat("VPTQ of ", shape.num_chunks * shape.width(), " x ", shape.in, " weights");
  TW_ASSIGN_OR_RETURN(made.targets_, DeviceArray<float>::CopyOf(targets, what, stream));
  TW_ASSIGN_OR_RETURN(made.factor_, DeviceArray<float>::CopyOf(factor, what, stream));
  TW_ASSIGN_OR_RETURN(made.hessian_, DeviceArray<float>::CopyOf(hessian, what, stream));
  for (DeviceArray<float>* array : {&made.moved_, &made.values_, &made.errors_}) {
    TW_ASSIGN_OR_RETURN(*array, DeviceArray<float>::Allocate(shape.size(), what, stream));
  }
  TW_ASSIGN_OR_RETURN(
      made.block_,
      DeviceArray<float>::Allocate(shape.num_chunks * kBlockColumns * shape.width(), what, stream));
  for (DeviceArray<int32_t>* array : {&made.indices_, &made.residuals_}) {
    TW_ASSIGN_OR_RETURN(*array, DeviceArray<int32_t>::Allocate(shape.num_vectors(), what, stream));
  }
  return made;
}

absl::Status GpuVptq::SetBooks(const VptqBooks& books) {
  const auto set = [&](absl::Span<const float> vectors, GpuBook& book) -> absl::Status {
    TW_ASSIGN_OR_RETURN(const auto copy, DeviceArray<float>::CopyOf(vectors, "codebook", *stream_));
    TW_ASSIGN_OR_RETURN(book,
                        GpuBook::Allocate(copy.size() / shape_.length, shape_.length, *stream_));
    TW_RETURN_IF_ERROR(book.Set(copy.data(), *stream_));
    return stream_->Synchronize();  // before the copy goes
  };
  TW_RETURN_IF_ERROR(set(books.main, main_));
  return set(books.residual.empty() ? books.main : books.residual, residual_);
}

template <bool kDescend>
absl::Status GpuVptq::LaunchBlock(const VptqBooks& books, int64_t begin, int64_t end) {
  const auto size = static_cast<int>(end - begin);
  const BlockArgs args = {.main = main_.view(),
                          .residual = residual_.view(),
                          .has_residual = !books.residual.empty(),
                          .turns = books.turns,
                          .matrix = kDescend ? hessian_.data() : factor_.data(),
                          .state = kDescend ? block_.data() : moved_.data(),
                          .changes = kDescend ? errors_.data() : block_.data(),
                          .values = values_.data(),
                          .indices = indices_.data(),
                          .residuals = residuals_.data(),
                          .in = shape_.in,
                          .rows = shape_.rows,
                          .begin = begin,
                          .size = size};
  const auto kernel =
      BookSteps(shape_.length) == 1 ? WalkColumns<1, kDescend> : WalkColumns<2, kDescend>;
  const int bytes = static_cast<int>(sizeof(float)) * size * (kVectors * shape_.length + size);
  TW_RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      stream_->device());
  const dim3 grid(static_cast<unsigned>((shape_.rows + kVectors - 1) / kVectors),
                  static_cast<unsigned>(shape_.num_chunks));
  kernel<<<grid, kThreads, static_cast<size_t>(bytes), CudaStream(*stream_)>>>(args);
  return CudaLaunchStatus(kDescend ? "descent of columns" : "feedback of columns", *stream_);
}

absl::Status GpuVptq::Feedback(const VptqBooks& books, absl::Span<float> moved,
                               const VptqChoice& choice) {
  TW_RETURN_IF_ERROR(SetBooks(books));
  const int64_t in = shape_.in, width = shape_.width();
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(moved_.data(), targets_.data(), sizeof(float) * shape_.size(),
                      cudaMemcpyDeviceToDevice, CudaStream(*stream_)),
      stream_->device());
  for (int64_t begin = 0; begin < in; begin += kBlockColumns) {
    const int64_t end = std::min(in, begin + kBlockColumns);
    TW_RETURN_IF_ERROR(LaunchBlock<false>(books, begin, end));
    if (end == in) break;
    TW_RETURN_IF_ERROR(SgemmCuda({.transpose_a = true,
                                  .m = in - end,
                                  .n = width,
                                  .k = end - begin,
                                  .a = factor_.data() + begin * in + end,
                                  .lda = in,
                                  .b = block_.data(),
                                  .ldb = width,
                                  .b_step = kBlockColumns * width,
                                  .beta = 1.0f,
                                  .c = moved_.data() + end * width,
                                  .ldc = width,
                                  .c_step = shape_.chunk_size(),
                                  .count = shape_.num_chunks},
                                 *stream_));
  }
  TW_RETURN_IF_ERROR(moved_.Download(moved, *stream_));
  TW_RETURN_IF_ERROR(values_.Download(choice.values, *stream_));
  if (!books.residual.empty()) {
    TW_RETURN_IF_ERROR(residuals_.Download(choice.residuals, *stream_));
  }
  return indices_.Download(choice.indices, *stream_);
}

absl::Status GpuVptq::Descend(const VptqBooks& books, int sweeps, const VptqChoice& choice) {
  TW_RETURN_IF_ERROR(SetBooks(books));
  const int64_t in = shape_.in, width = shape_.width();
  TW_RETURN_IF_ERROR(values_.Upload(choice.values, *stream_));
  TW_RETURN_IF_ERROR(indices_.Upload(choice.indices, *stream_));
  if (!books.residual.empty()) {
    TW_RETURN_IF_ERROR(residuals_.Upload(choice.residuals, *stream_));
  }
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    Minus<<<kEnergyBlocks, kEnergyThreads, 0, CudaStream(*stream_)>>>(
        values_.data(), targets_.data(), shape_.size(), errors_.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("errors of columns", *stream_));
    for (int64_t begin = 0; begin < in; begin += kBlockColumns) {
      const int64_t end = std::min(in, begin + kBlockColumns);
      TW_RETURN_IF_ERROR(SgemmCuda({.m = end - begin,
                                    .n = width,
                                    .k = in,
                                    .a = hessian_.data() + begin * in,
                                    .lda = in,
                                    .b = errors_.data(),
                                    .ldb = width,
                                    .b_step = shape_.chunk_size(),
                                    .c = block_.data(),
                                    .ldc = width,
                                    .c_step = kBlockColumns * width,
                                    .count = shape_.num_chunks},
                                   *stream_));
      TW_RETURN_IF_ERROR(LaunchBlock<true>(books, begin, end));
    }
  }
  TW_RETURN_IF_ERROR(values_.Download(choice.values, *stream_));
  if (!books.residual.empty()) {
    TW_RETURN_IF_ERROR(residuals_.Download(choice.residuals, *stream_));
  }
  return indices_.Download(choice.indices, *stream_);
}

absl::StatusOr<double> GpuVptq::Energy(absl::Span<const float> values,
                                       absl::Span<const float> shift,
                                       absl::Span<const float> multiplier, int64_t outputs) {
  constexpr absl::string_view kWhat = "error of a matrix";
  const int64_t in = shape_.in, width = shape_.width();
  if (!values.empty()) TW_RETURN_IF_ERROR(values_.Upload(values, *stream_));
  TW_ASSIGN_OR_RETURN(const auto shifts, DeviceArray<float>::CopyOf(shift, kWhat, *stream_));
  TW_ASSIGN_OR_RETURN(const auto multipliers,
                      DeviceArray<float>::CopyOf(multiplier, kWhat, *stream_));
  TW_ASSIGN_OR_RETURN(const auto sums,
                      DeviceArray<double>::Allocate(kEnergyBlocks, kWhat, *stream_));
  EnergyOperand<<<kEnergyBlocks, kEnergyThreads, 0, CudaStream(*stream_)>>>(
      values.empty() ? nullptr : values_.data(), targets_.data(), shifts.data(), multipliers.data(),
      in, width, outputs, shape_.size(), errors_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("errors of columns", *stream_));
  TW_RETURN_IF_ERROR(SgemmCuda({.m = in,
                                .n = width,
                                .k = in,
                                .a = hessian_.data(),
                                .lda = in,
                                .b = errors_.data(),
                                .ldb = width,
                                .b_step = shape_.chunk_size(),
                                .c = moved_.data(),
                                .ldc = width,
                                .c_step = shape_.chunk_size(),
                                .count = shape_.num_chunks},
                               *stream_));
  DotParts<<<kEnergyBlocks, kEnergyThreads, 0, CudaStream(*stream_)>>>(
      errors_.data(), moved_.data(), shape_.size(), sums.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("energy", *stream_));
  std::vector<double> parts(kEnergyBlocks);
  TW_RETURN_IF_ERROR(sums.Download(absl::MakeSpan(parts), *stream_));
  double sum = 0.0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace thinwire
