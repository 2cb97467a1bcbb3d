// VPTQ weights brought to a GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/convert/convert.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/float16.h"
#include "kernels/vptq_linear/byte_book.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_device.h"
#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire {
namespace {

constexpr int64_t kMostQuads = 65535;  // of a grid
// Beyond, kernels of byte books are slower than those of others.
constexpr int64_t kMostByteTokens = 1;

absl::StatusOr<Tensor> BytesOnDevice(const void* from, DType dtype, int64_t count, Device device) {
  TW_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, {count}, device));
  if (count > 0) {
    TW_RETURN_IF_CUDA_ERROR(
        cudaMemcpy(tensor.mutable_view().mutable_raw(), from,
                   static_cast<size_t>(DTypeBytes(dtype, count)), cudaMemcpyHostToDevice),
        device);
  }
  return tensor;
}

absl::StatusOr<Tensor> CopyOnDevice(const Tensor& host, Device device) {
  const ConstTensorView view = host.view();
  if (view.empty()) return Tensor();
  if (view.rank() == 1) return BytesOnDevice(view.raw(), view.dtype(), view.dim(0), device);
  TW_ASSIGN_OR_RETURN(Tensor tensor,
                      Tensor::Allocate(view.dtype(), {view.dim(0), view.dim(1)}, device));
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(tensor.mutable_view().mutable_raw(), view.raw(),
                 static_cast<size_t>(view.size_bytes()), cudaMemcpyHostToDevice),
      device);
  return tensor;
}

std::vector<float> Floats(const ConstTensorView& book) {
  std::vector<float> floats(static_cast<size_t>(book.empty() ? 0 : book.num_elements()));
  if (!floats.empty()) {
    ConvertToFloat(book.raw(), book.dtype(), floats.data(), static_cast<int64_t>(floats.size()));
  }
  return floats;
}

// What books of bf16 are divided by to be fp16: a power of two that brings the largest value into
// [2^13, 2^14), so that what fp16 cannot keep is below 2^-38 of it.
float BookFactor(const VptqGroup& group, int length) {
  if (group.centroids.view().dtype() == DType::kF16) return 1.0f;
  float largest = 0.0f;
  for (const Tensor* book : {&group.centroids, &group.residual}) {
    const std::vector<float> floats = Floats(book->view());
    const auto stride = static_cast<size_t>(VptqStride(length));
    for (size_t i = 0; i < floats.size(); ++i) {
      if (i % stride < static_cast<size_t>(length)) {
        largest = std::max(largest, std::fabs(floats[i]));
      }
    }
  }
  if (!(largest > 0.0f) || !std::isfinite(largest)) return 1.0f;
  return std::exp2f(static_cast<float>(std::clamp(std::ilogb(largest) - 13, -100, 100)));
}

absl::StatusOr<Tensor> TableOnDevice(const ConstTensorView& book, int length, float factor,
                                     Device device) {
  if (book.empty()) return Tensor();
  const std::vector<float> floats = Floats(book);
  const auto stride = static_cast<size_t>(VptqStride(length));
  const int64_t count = book.dim(0);
  TW_ASSIGN_OR_RETURN(Tensor host, Tensor::Allocate(DType::kF16, {count, kVptqRow}, Device::Cpu()));
  Half* const to = host.mutable_view().mutable_data<Half>();
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    for (size_t k = 0; k < kVptqRow; ++k) {
      const bool there = k < static_cast<size_t>(length);
      to[i * kVptqRow + k] = ToHalf(there ? floats[i * stride + k] / factor : 0.0f);
    }
  }
  return CopyOnDevice(host, device);
}

// Codes of a byte book, rows of 8.
absl::StatusOr<Tensor> BytesOfBook(const ByteBook& book, Device device) {
  std::vector<int8_t> rows(static_cast<size_t>(book.entries * kVptqRow));
  for (int64_t i = 0; i < book.entries; ++i) {
    std::copy_n(book.codes.begin() + i * book.length, book.length, rows.begin() + i * kVptqRow);
  }
  return BytesOnDevice(rows.data(), DType::kI8, static_cast<int64_t>(rows.size()), device);
}

// Whether weights whose books fit in tables have byte books with tables of their own; then these.
absl::StatusOr<bool> MakeByteBooks(const VptqPart& part, Device device, VptqOnDevice& made) {
  const VptqGroup& group = part.groups[0];
  const int residual_bits = part.code_bits(group) - part.index_bits;
  TW_ASSIGN_OR_RETURN(const DeviceProperties properties, GetDeviceProperties(device));
  if (!HasVptqByteTables(part.length, part.index_bits, residual_bits,
                         properties.shared_memory_per_block_bytes)) {
    return false;
  }
  const std::optional<ByteBook> centroids = AsByteBook(group.centroids.view(), part.length);
  if (!centroids.has_value()) return false;
  std::optional<ByteBook> residual;
  if (residual_bits > 0) {
    residual = AsByteBook(group.residual.view(), part.length);
    if (!residual.has_value()) return false;
  }
  TW_ASSIGN_OR_RETURN(made.byte_centroids, BytesOfBook(*centroids, device));
  std::copy(centroids->scales.begin(), centroids->scales.end(), made.byte_scales[0].begin());
  if (residual.has_value()) {
    TW_ASSIGN_OR_RETURN(made.byte_residual, BytesOfBook(*residual, device));
    std::copy(residual->scales.begin(), residual->scales.end(), made.byte_scales[1].begin());
  }
  return true;
}

absl::StatusOr<bool> FitsTables(const VptqWeights& host, Device device) {
  const absl::Span<const VptqPart> parts = host.parts();
  if (parts.size() != 1 || parts[0].groups.size() != 1) return false;
  const VptqPart& part = parts[0];
  const VptqGroup& group = part.groups[0];
  const int64_t vectors = part.num_vectors(host.out_features());
  const int residual_bits = part.code_bits(group) - part.index_bits;
  if (group.num_columns == 0 || group.residual.empty() != (residual_bits == 0) ||
      vectors > kMostQuads * kVptqQuadRows || group.centroids.view().dtype() == DType::kF32) {
    return false;
  }
  TW_ASSIGN_OR_RETURN(const DeviceProperties properties, GetDeviceProperties(device));
  return HasVptqTables(part.length, part.index_bits, residual_bits,
                       properties.shared_memory_per_block_bytes);
}

// The codes of `to`, from the host's order of them on the device.
absl::Status ArrangeBytes(const VptqWeights& host, const Tensor& codes, Device device,
                          VptqGroup& to) {
  const VptqPart& part = host.parts()[0];
  const VptqGroup& from = part.groups[0];
  VptqByteArrangeCall call = {};
  call.codes = reinterpret_cast<const uint32_t*>(codes.view().raw());
  call.row_words = VptqRowBytes(from.num_columns, part.code_bits(from)) / 4;
  call.index_bits = part.index_bits;
  call.residual_bits = part.code_bits(from) - part.index_bits;
  const int64_t vectors = part.num_vectors(host.out_features());
  call.num_vectors = static_cast<int32_t>(vectors);
  call.num_columns = static_cast<int32_t>(from.num_columns);
  call.num_groups = static_cast<int32_t>((vectors + kVptqByteRows - 1) / kVptqByteRows);
  call.num_chunks =
      static_cast<int32_t>(VptqByteStrips(from.num_columns) * (kVptqByteStrip / kVptqByteChunk));
  const int64_t words = int64_t{call.num_groups} * call.num_chunks * 32 *
                        VptqByteWords(call.index_bits, call.residual_bits);
  TW_ASSIGN_OR_RETURN(to.codes, Tensor::Allocate(DType::kI32, {words}, device));
  call.to = static_cast<uint32_t*>(to.codes.mutable_view().mutable_raw());
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqByteArrange(call, nullptr), device);
  // Before the host's order of codes goes.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr), device);
  return absl::OkStatus();
}

absl::Status MakeTables(const VptqWeights& host, Device device, int64_t usual_tokens,
                        VptqPart& part, VptqOnDevice& made) {
  const VptqGroup& from = host.parts()[0].groups[0];
  VptqGroup& to = part.groups.emplace_back();
  const int64_t vectors = part.num_vectors(host.out_features());
  to.num_columns = from.num_columns;
  made.in_tables = true;
  made.book_factor = BookFactor(from, part.length);
  TW_ASSIGN_OR_RETURN(to.centroids,
                      TableOnDevice(from.centroids.view(), part.length, made.book_factor, device));
  TW_ASSIGN_OR_RETURN(to.residual,
                      TableOnDevice(from.residual.view(), part.length, made.book_factor, device));
  TW_ASSIGN_OR_RETURN(const Tensor codes, CopyOnDevice(from.codes, device));
  if (usual_tokens <= kMostByteTokens) {
    TW_ASSIGN_OR_RETURN(made.in_bytes, MakeByteBooks(host.parts()[0], device, made));
  }
  if (made.in_bytes) return ArrangeBytes(host, codes, device, to);
  VptqArrangeCall call = {};
  call.codes = reinterpret_cast<const uint32_t*>(codes.view().raw());
  call.row_words = VptqRowBytes(from.num_columns, part.code_bits(from)) / 4;
  call.index_bits = part.index_bits;
  call.residual_bits = part.code_bits(from) - part.index_bits;
  call.num_vectors = static_cast<int32_t>(vectors);
  call.num_columns = static_cast<int32_t>(from.num_columns);
  call.num_quads = static_cast<int32_t>((vectors + kVptqQuadRows - 1) / kVptqQuadRows);
  call.num_units =
      static_cast<int32_t>((from.num_columns + kVptqUnitColumns - 1) / kVptqUnitColumns);
  TW_ASSIGN_OR_RETURN(const DeviceProperties properties, GetDeviceProperties(device));
  call.num_thirds =
      NumVptqThirds(call.index_bits, call.residual_bits, properties.shared_memory_per_block_bytes);
  const int64_t words = int64_t{call.num_quads} * call.num_units * 32 *
                        VptqTableCodeBits(call.index_bits, call.residual_bits);
  TW_ASSIGN_OR_RETURN(to.codes, Tensor::Allocate(DType::kI32, {words}, device));
  call.to = static_cast<uint32_t*>(to.codes.mutable_view().mutable_raw());
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqArrange(call, nullptr), device);
  // Before the host's order of codes goes.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr), device);
  return absl::OkStatus();
}

}  // namespace

absl::Status CopyVptqToDevice(const VptqWeights& host, Device device, int64_t usual_tokens,
                              std::vector<VptqPart>& parts, VptqOnDevice& made) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  const auto vector = [&](const auto& values, DType dtype) -> absl::StatusOr<Tensor> {
    if (values.empty()) return Tensor();
    return BytesOnDevice(values.data(), dtype, static_cast<int64_t>(values.size()), device);
  };
  TW_ASSIGN_OR_RETURN(made.order, vector(host.order(), DType::kI32));
  TW_ASSIGN_OR_RETURN(made.scale, vector(host.scale(), DType::kF32));
  TW_ASSIGN_OR_RETURN(made.offset, vector(host.offset(), DType::kF32));
  TW_ASSIGN_OR_RETURN(const bool tables, FitsTables(host, device));
  for (const VptqPart& from : host.parts()) {
    VptqPart& part = parts.emplace_back();
    part.length = from.length;
    part.skip = from.skip;
    part.index_bits = from.index_bits;
    part.residual_bits = from.residual_bits;
    if (tables) {
      TW_RETURN_IF_ERROR(MakeTables(host, device, usual_tokens, part, made));
      continue;
    }
    for (const VptqGroup& group : from.groups) {
      VptqGroup& to = part.groups.emplace_back();
      to.num_columns = group.num_columns;
      TW_ASSIGN_OR_RETURN(to.centroids, CopyOnDevice(group.centroids, device));
      TW_ASSIGN_OR_RETURN(to.residual, CopyOnDevice(group.residual, device));
      TW_ASSIGN_OR_RETURN(to.codes, CopyOnDevice(group.codes, device));
    }
  }
  // On the default stream; others do not wait for it.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr), device);
  return absl::OkStatus();
}

}  // namespace thinwire
