#include "runtime/quantizer/rank_exchange.h"

#include <algorithm>
#include <cstdint>

#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// Doubles of one message.
constexpr int64_t kChunk = int64_t{1} << 20;

template <typename T>
TensorView Bytes(T* values, int64_t count) {
  return TensorView(const_cast<std::remove_const_t<T>*>(values), DType::kU8,
                    {count * static_cast<int64_t>(sizeof(T))});
}

}  // namespace

absl::Status SumOverRanks(absl::Span<double> values, Communicator& world, Stream& stream) {
  if (world.size() == 1) return absl::OkStatus();
  std::vector<double> part;
  for (int64_t begin = 0; begin < static_cast<int64_t>(values.size()); begin += kChunk) {
    const int64_t count = std::min(kChunk, static_cast<int64_t>(values.size()) - begin);
    double* mine = values.data() + begin;
    part.resize(static_cast<size_t>(count));
    for (int step = 1; step < world.size(); step *= 2) {
      if (world.rank() % (2 * step) != 0) {
        TW_RETURN_IF_ERROR(world.Send(Bytes(mine, count), world.rank() - step, stream));
        break;
      }
      if (world.rank() + step >= world.size()) continue;
      TW_RETURN_IF_ERROR(world.Recv(Bytes(part.data(), count), world.rank() + step, stream));
      for (int64_t i = 0; i < count; ++i) mine[i] += part[i];
    }
    TW_RETURN_IF_ERROR(world.Broadcast(Bytes(mine, count), 0, stream));
  }
  return absl::OkStatus();
}

absl::Status RangeOverRanks(absl::Span<float> minima, absl::Span<float> maxima, Communicator& world,
                            Stream& stream) {
  if (world.size() == 1) return absl::OkStatus();
  const auto size = static_cast<int64_t>(minima.size());
  for (float& minimum : minima) minimum = -minimum;
  TW_RETURN_IF_ERROR(
      world.AllReduce(TensorView(minima.data(), DType::kF32, {size}), ReduceOp::kMax, stream));
  for (float& minimum : minima) minimum = -minimum;
  return world.AllReduce(TensorView(maxima.data(), DType::kF32, {size}), ReduceOp::kMax, stream);
}

absl::StatusOr<std::vector<float>> ConcatenateOverRanks(const std::vector<float>& values,
                                                        Communicator& world, Stream& stream) {
  if (world.size() == 1) return values;
  auto mine = static_cast<int64_t>(values.size());
  std::vector<int64_t> sizes(world.size());
  TW_RETURN_IF_ERROR(world.AllGather(ConstTensorView(&mine, DType::kI64, {1}),
                                     TensorView(sizes.data(), DType::kI64, {world.size()}),
                                     stream));
  std::vector<float> all;
  for (int rank = 0; rank < world.size(); ++rank) {
    std::vector<float> part = rank == world.rank() ? values : std::vector<float>(sizes[rank]);
    if (sizes[rank] > 0) {
      TW_RETURN_IF_ERROR(
          world.Broadcast(TensorView(part.data(), DType::kF32, {sizes[rank]}), rank, stream));
    }
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace thinwire
