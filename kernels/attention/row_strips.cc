#include "kernels/attention/row_strips.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/attention/row_strips_cuda.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckPacked(const RowStrips& rows, const ConstTensorView& packed) {
  for (const RowStrip& strip : rows.strips) {
    TW_CHECK(strip.used_bytes >= 1 && strip.used_bytes <= strip.row_bytes);
    TW_CHECK_LE(strip.first + strip.count,
                static_cast<int64_t>(rows.page_ids.size()) * rows.page_size);
  }
  const int64_t bytes = PackedBytes(rows);
  if (packed.dtype() == DType::kU8 && packed.rank() == 1 && packed.dim(0) == bytes &&
      packed.device() == Device::Cpu()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "packed rows: expected ", bytes, " bytes on the host, found ", packed.DebugString()));
}

// Calls visit(memory, used, rest) for every run of bytes, in the order of packing; `rest` bytes
// behind the run belong to it and are zero.
template <typename Visit>
void ForEachRun(const RowStrips& rows, const Visit& visit) {
  for (const RowStrip& strip : rows.strips) {
    for (int64_t i = strip.first; i < strip.first + strip.count;) {
      std::byte* const run = strip.pages + rows.page_ids[i / rows.page_size] * strip.page_bytes +
                             i % rows.page_size * strip.row_bytes;
      if (strip.used_bytes < strip.row_bytes) {
        visit(run, strip.used_bytes, strip.row_bytes - strip.used_bytes);
        ++i;
        continue;
      }
      const int64_t count =
          std::min(rows.page_size - i % rows.page_size, strip.first + strip.count - i);
      visit(run, count * strip.row_bytes, 0);
      i += count;
    }
  }
}

}  // namespace

int64_t PackedBytes(const RowStrips& rows) {
  int64_t bytes = 0;
  for (const RowStrip& strip : rows.strips) bytes += strip.count * strip.used_bytes;
  return bytes;
}

absl::Status PackRows(const RowStrips& rows, TensorView packed, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckPacked(rows, packed));
  if (packed.num_elements() == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return PackRowsCuda(rows, packed, stream);
    return absl::UnimplementedError(
        absl::StrCat("packed rows: not available on ", DeviceName(stream.device())));
  }
  auto* to = static_cast<std::byte*>(packed.mutable_raw());
  ForEachRun(rows, [&](const std::byte* run, int64_t used, int64_t) {
    std::memcpy(to, run, used);
    to += used;
  });
  return absl::OkStatus();
}

absl::Status UnpackRows(const RowStrips& rows, ConstTensorView packed, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckPacked(rows, packed));
  if (packed.num_elements() == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return UnpackRowsCuda(rows, packed, stream);
    return absl::UnimplementedError(
        absl::StrCat("packed rows: not available on ", DeviceName(stream.device())));
  }
  const auto* from = static_cast<const std::byte*>(packed.raw());
  ForEachRun(rows, [&](std::byte* run, int64_t used, int64_t rest) {
    std::memcpy(run, from, used);
    std::memset(run + used, 0, rest);
    from += used;
  });
  return absl::OkStatus();
}

}  // namespace thinwire
