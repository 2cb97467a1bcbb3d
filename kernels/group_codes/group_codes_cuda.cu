#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/group_codes/group_lanes.cuh"

namespace thinwire {
namespace {

template <int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(kGroupThreads, kSteps == 8 ? 3 : 4)
    Encode(GroupParams p, const T* x, uint8_t* codes) {
  __shared__ LaneTables tables;
  FillLaneTables<kBits>(tables);
  const int lane = threadIdx.x % kLanes;
  // All threads stay to the end: neighbours exchange values.
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const auto at = static_cast<uint32_t>(inside ? found : p.num_groups - 1);
  const uint32_t row = at / static_cast<uint32_t>(p.groups_per_row);
  const uint32_t group = at - row * static_cast<uint32_t>(p.groups_per_row);
  const T* const from = x + row * p.stride + int64_t{group} * (16 * kSteps) + 4 * lane;
  const GroupCode<kSteps> coded = EncodeGroup<kBits, kSteps>(tables, lane, from, p.norm, p.aligned);
  uint8_t* const to = codes + row * p.row_bytes;
  if (inside && lane == 0) to[group] = coded.scale;
  StoreCodes<kBits, kSteps, false>(lane, coded.words, inside,
                                   to + p.groups_per_row + int64_t{group} * (2 * kBits * kSteps));
}

template <int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(kGroupThreads)
    Decode(GroupParams p, GroupParts parts, T* y, bool accumulate) {
  __shared__ LaneTables tables;
  FillLaneTables<kBits>(tables);
  const int lane = threadIdx.x % kLanes;
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const auto at = static_cast<uint32_t>(inside ? found : p.num_groups - 1);
  const uint32_t row = at / static_cast<uint32_t>(p.groups_per_row);
  const uint32_t group = at - row * static_cast<uint32_t>(p.groups_per_row);
  Values<kSteps> u = {};  // from 0 on, since a sum of -0 would be -0
  for (int part = 0; part < parts.count; ++part) {
    const uint8_t* const from = parts.rows[part] + row * p.row_bytes;
    uint32_t codes[kSteps];
    LoadCodes<kBits, kSteps, false>(
        lane, from + p.groups_per_row + int64_t{group} * (2 * kBits * kSteps), codes);
    AddLevels<kBits>(tables, from[group], codes, u);
  }
  Rotate(lane, u);
  if (!inside) return;
  StoreValues(u, p.norm, accumulate, p.aligned,
              y + row * p.stride + int64_t{group} * (16 * kSteps) + 4 * lane);
}

GroupParams ParamsOf(const GroupCodesFormat& format, const ConstTensorView& values) {
  GroupParams p = {};
  p.groups_per_row = format.num_groups();
  p.num_groups = values.dim(0) * p.groups_per_row;
  p.row_bytes = format.row_bytes();
  p.stride = values.row_stride();
  p.size = static_cast<int>(format.group());
  p.group_bytes = static_cast<int>(format.group_bytes());
  p.norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.size)));
  p.aligned = RowsAlign(values, 4 * DTypeBytes(values.dtype(), 1));
  return p;
}

// Calls body(bits, sixteenths of a group) with both as constants.
template <typename Body>
void WithFormat(const GroupCodesFormat& format, const Body& body) {
  WithBits(format.bits, [&](auto bits) {
    if (format.group() == 16) return body(bits, std::integral_constant<int, 1>());
    if (format.group() == 32) return body(bits, std::integral_constant<int, 2>());
    if constexpr (decltype(bits)::value == 8) {
      if (format.group() == 128) return body(bits, std::integral_constant<int, 8>());
    }
    return body(bits, std::integral_constant<int, 4>());
  });
}

unsigned NumBlocks(const GroupParams& p) {
  return static_cast<unsigned>((p.num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock);
}

}  // namespace

absl::Status EncodeGroupsCuda(const EncodeGroupsArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const GroupParams p = ParamsOf(args.format, args.x);
  if (p.size < kSmallestVectorGroup) {
    EncodeSmallGroups(args, p, stream);
    return CudaLaunchStatus("encode groups", stream);
  }
  WithFormat(args.format, [&](auto bits, auto steps) {
    WithFloatType(args.x.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Encode<decltype(bits)::value, decltype(steps)::value, T>
          <<<NumBlocks(p), kGroupThreads, 0, native>>>(p, args.x.data<T>(),
                                                       args.codes.mutable_data<uint8_t>());
    });
  });
  return CudaLaunchStatus("encode groups", stream);
}

absl::Status DecodeGroupsCuda(const DecodeGroupsArgs& args, Stream& stream) {
  if (args.parts.size() > kMostParts) {
    return absl::InvalidArgumentError(absl::StrCat("decode groups: expected at most ", kMostParts,
                                                   " parts on a GPU, found ", args.parts.size()));
  }
  const cudaStream_t native = CudaStream(stream);
  const GroupParams p = ParamsOf(args.format, args.y);
  GroupParts parts = {};
  for (const ConstTensorView& part : args.parts) {
    parts.rows[parts.count++] = part.data<uint8_t>();
  }
  if (p.size < kSmallestVectorGroup) {
    DecodeSmallGroups(args, p, parts, stream);
    return CudaLaunchStatus("decode groups", stream);
  }
  WithFormat(args.format, [&](auto bits, auto steps) {
    WithFloatType(args.y.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Decode<decltype(bits)::value, decltype(steps)::value, T>
          <<<NumBlocks(p), kGroupThreads, 0, native>>>(p, parts, args.y.mutable_data<T>(),
                                                       args.accumulate);
    });
  });
  return CudaLaunchStatus("decode groups", stream);
}

}  // namespace thinwire
