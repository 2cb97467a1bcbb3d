#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/attention/row_strips_cuda.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWidest = 16;                    // bytes of an access
constexpr int64_t kPieceBytes = int64_t{4} << 20;  // a multiple of kWidest
constexpr int64_t kMostBlocksOfStrip = 64;

// A RowStrip, with where its rows lie among the packed ones and the widest access for them.
struct PlacedStrip {
  std::byte* pages;
  int64_t packed;
  int64_t page_bytes;
  uint32_t row_bytes, used_bytes;
  uint32_t first, width;
  int64_t bytes;  // packed
};

// Block (x, y) has bytes of strip x. Packed bytes [begin, end) are `piece`.
template <bool kPack>
__global__ void MoveRows(const PlacedStrip* strips, const int32_t* page_ids, uint32_t page_size,
                         int64_t begin, int64_t end, std::byte* piece) {
  const PlacedStrip strip = strips[blockIdx.x];
  const int64_t low = max(begin, strip.packed), high = min(end, strip.packed + strip.bytes);
  const auto move = [&](auto word) {
    using Word = decltype(word);
    constexpr auto kBytes = static_cast<int64_t>(sizeof(Word));
    const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads * kBytes;
    for (int64_t at = low + (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kBytes;
         at < high; at += step) {
      const auto in_strip = static_cast<uint32_t>(at - strip.packed);
      const uint32_t row = strip.first + in_strip / strip.used_bytes;
      const uint32_t byte = in_strip % strip.used_bytes;
      std::byte* const bytes_of_row = strip.pages + page_ids[row / page_size] * strip.page_bytes +
                                      static_cast<int64_t>(row % page_size) * strip.row_bytes;
      auto* const in_row = reinterpret_cast<Word*>(bytes_of_row + byte);
      auto* const in_piece = reinterpret_cast<Word*>(piece + (at - begin));
      if constexpr (kPack) {
        *in_piece = *in_row;
      } else {
        *in_row = *in_piece;
        if (byte != 0) continue;
        for (uint32_t i = strip.used_bytes; i < strip.row_bytes; ++i)
          bytes_of_row[i] = std::byte{0};
      }
    }
  };
  switch (strip.width) {
    case 16:
      return move(uint4());
    case 8:
      return move(uint2());
    case 4:
      return move(uint32_t());
    case 2:
      return move(uint16_t());
    default:
      return move(uint8_t());
  }
}

// What the stream keeps: a piece of packed rows.
class Staging : public StreamState {
 public:
  explicit Staging(Device device) : device_(device) {}

  absl::StatusOr<std::byte*> Piece() {
    if (piece_.size_bytes() == 0) {
      TW_ASSIGN_OR_RETURN(piece_, PinnedBuffer::Allocate(kPieceBytes, device_));
    }
    return piece_.data();
  }

 private:
  Device device_;
  PinnedBuffer piece_;
};

std::vector<PlacedStrip> Place(const RowStrips& rows) {
  std::vector<PlacedStrip> placed;
  int64_t packed = 0;
  for (const RowStrip& strip : rows.strips) {
    const int64_t bytes = strip.count * strip.used_bytes;
    if (bytes == 0) continue;
    TW_CHECK_LE(bytes, int64_t{UINT32_MAX});
    TW_CHECK_LE(strip.first + strip.count, int64_t{UINT32_MAX});
    const uint64_t bits = reinterpret_cast<uintptr_t>(strip.pages) |
                          static_cast<uint64_t>(strip.page_bytes | strip.row_bytes |
                                                strip.used_bytes | packed | kWidest);
    placed.push_back({.pages = strip.pages,
                      .packed = packed,
                      .page_bytes = strip.page_bytes,
                      .row_bytes = static_cast<uint32_t>(strip.row_bytes),
                      .used_bytes = static_cast<uint32_t>(strip.used_bytes),
                      .first = static_cast<uint32_t>(strip.first),
                      .width = static_cast<uint32_t>(bits & -bits),
                      .bytes = bytes});
    packed += bytes;
  }
  return placed;
}

// Moves all rows, piece by piece; exchange(piece, packed offset, bytes) is between the piece and
// the caller's memory: behind the kernel that packs, before the one that unpacks.
template <bool kPack, typename Exchange>
absl::Status Move(const RowStrips& rows, Stream& stream, const Exchange& exchange) {
  const cudaStream_t native = CudaStream(stream);
  TW_ASSIGN_OR_RETURN(std::byte* const piece, stream.State<Staging>().Piece());
  const std::vector<PlacedStrip> strips = Place(rows);
  const auto strips_bytes = static_cast<int64_t>(strips.size() * sizeof(PlacedStrip));
  const auto ids_bytes = static_cast<int64_t>(rows.page_ids.size() * sizeof(int32_t));
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(strips_bytes + ids_bytes));
  const auto upload = [&](const void* from, int64_t bytes, std::byte* to) {
    return Copy(ConstTensorView(from, DType::kU8, {bytes}),
                TensorView(to, DType::kU8, {bytes}, stream.device()), stream);
  };
  TW_RETURN_IF_ERROR(upload(strips.data(), strips_bytes, scratch));
  TW_RETURN_IF_ERROR(upload(rows.page_ids.data(), ids_bytes, scratch + strips_bytes));
  const auto* const placed = reinterpret_cast<const PlacedStrip*>(scratch);
  const auto* const page_ids = reinterpret_cast<const int32_t*>(scratch + strips_bytes);

  const int64_t total = strips.back().packed + strips.back().bytes;
  size_t first = 0;  // the strip that `begin` is in
  for (int64_t begin = 0; begin < total; begin += kPieceBytes) {
    const int64_t end = std::min(begin + kPieceBytes, total);
    while (strips[first].packed + strips[first].bytes <= begin) ++first;
    size_t last = first;
    int64_t blocks = 1;  // of a strip
    for (; last < strips.size() && strips[last].packed < end; ++last) {
      const int64_t bytes = std::min(strips[last].bytes, kPieceBytes);
      blocks = std::max(blocks, bytes / (kThreads * strips[last].width));
    }
    const dim3 grid(static_cast<unsigned>(last - first),
                    static_cast<unsigned>(std::min(blocks, kMostBlocksOfStrip)));
    if constexpr (!kPack) exchange(piece, begin, end - begin);
    MoveRows<kPack><<<grid, kThreads, 0, native>>>(
        placed + first, page_ids, static_cast<uint32_t>(rows.page_size), begin, end, piece);
    TW_RETURN_IF_ERROR(CudaLaunchStatus(kPack ? "pack_rows" : "unpack_rows", stream));
    TW_RETURN_IF_ERROR(stream.Synchronize());
    if constexpr (kPack) exchange(piece, begin, end - begin);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PackRowsCuda(const RowStrips& rows, TensorView packed, Stream& stream) {
  auto* const to = static_cast<std::byte*>(packed.mutable_raw());
  return Move<true>(rows, stream, [to](const std::byte* piece, int64_t begin, int64_t bytes) {
    std::memcpy(to + begin, piece, static_cast<size_t>(bytes));
  });
}

absl::Status UnpackRowsCuda(const RowStrips& rows, ConstTensorView packed, Stream& stream) {
  const auto* const from = static_cast<const std::byte*>(packed.raw());
  return Move<false>(rows, stream, [from](std::byte* piece, int64_t begin, int64_t bytes) {
    std::memcpy(piece, from + begin, static_cast<size_t>(bytes));
  });
}

}  // namespace thinwire
