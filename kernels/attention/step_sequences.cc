#include "kernels/attention/step_sequences.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/attention/attention_items.h"
#include "kernels/attention/invariant_attention.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr int64_t kAlignment = 16;
constexpr int64_t kLeastBytes = int64_t{64} << 10;

// The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half as much again.
int64_t RoundedUp(size_t count) {
  if (count <= 2) return static_cast<int64_t>(count);
  const uint64_t power = std::bit_ceil(uint64_t{count});
  return static_cast<int64_t>(power / 4 * 3 >= count ? power / 4 * 3 : power);
}

struct Piece {
  const void* from;
  int64_t bytes;
  int64_t room;
};

template <typename T>
Piece PieceOf(absl::Span<const T> values, int64_t room = 0) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  return {values.data(), bytes, std::max(bytes, room * static_cast<int64_t>(sizeof(T)))};
}

}  // namespace

absl::Status StepSequences::Upload(const Arrays& arrays, Stream& stream) {
  const AttentionItems items = (layers_.batch_invariant ? CutIntoInvariantItems : CutIntoItems)(
      {.group = layers_.num_heads / layers_.num_kv_heads,
       .num_kv_heads = layers_.num_kv_heads,
       .window = layers_.window,
       .coded = layers_.coded,
       .has_prompts = HasPromptKernel(layers_.coded, layers_.page_dtype, layers_.head_dim)},
      arrays.token_offsets, arrays.context_lens);
  Layout layout = {.num_tokens = static_cast<int64_t>(arrays.slots.size()),
                   .num_seqs = static_cast<int64_t>(arrays.context_lens.size()),
                   .num_few = RoundedUp(items.few.size()),
                   .num_prompt = static_cast<int64_t>(items.prompt.size()),
                   .num_combines = RoundedUp(items.combines.size()),
                   .exact_seqs = !arrays.exact_rows_of_seqs.empty(),
                   .exact_tokens = !arrays.exact_rows_of_tokens.empty()};
  // Page ids come last: their number changes nothing for what lies before them.
  std::vector<Piece> pieces = {PieceOf(arrays.token_offsets),
                               PieceOf(arrays.context_lens),
                               PieceOf(arrays.page_offsets),
                               PieceOf(arrays.slots),
                               PieceOf(arrays.exact_rows_of_seqs),
                               PieceOf(arrays.exact_rows_of_tokens),
                               PieceOf(absl::MakeConstSpan(items.few), layout.num_few),
                               PieceOf(absl::MakeConstSpan(items.prompt)),
                               PieceOf(absl::MakeConstSpan(items.combines), layout.num_combines)};
  for (const absl::Span<const int32_t> other : arrays.others) {
    layout.others.push_back(static_cast<int64_t>(other.size()));
    pieces.push_back(PieceOf(other));
  }
  pieces.push_back(PieceOf(arrays.page_ids));

  std::vector<int64_t> begins;
  int64_t bytes = 0;
  for (const Piece& piece : pieces) {
    begins.push_back(bytes);
    bytes += (piece.room + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (there_.size_bytes() < bytes) {
    const int64_t room = std::max(kLeastBytes, 2 * bytes);
    // The last call's may be in use.
    TW_RETURN_IF_ERROR(stream.Synchronize());
    there_ = Buffer();
    for (PinnedBuffer& here : here_) {
      here = PinnedBuffer();
      TW_ASSIGN_OR_RETURN(here, PinnedBuffer::Allocate(room, device_));
    }
    TW_ASSIGN_OR_RETURN(there_, Buffer::Allocate(room, device_));
  }
  turn_ = 1 - turn_;
  const PinnedBuffer& here = here_[turn_];
  for (size_t i = 0; i < pieces.size(); ++i) {
    std::byte* const to = here.data() + begins[i];
    if (pieces[i].bytes > 0) {
      std::memcpy(to, pieces[i].from, static_cast<size_t>(pieces[i].bytes));
    }
    std::memset(to + pieces[i].bytes, 0, static_cast<size_t>(pieces[i].room - pieces[i].bytes));
  }
  layout.base = there_.data();
  size_t next = 0;
  const auto take = [&](auto*& address) {
    const size_t i = next++;
    address = pieces[i].room == 0 ? nullptr
                                  : reinterpret_cast<std::remove_reference_t<decltype(address)>>(
                                        there_.data() + begins[i]);
  };
  addresses_ = Addresses();
  take(addresses_.token_offsets);
  take(addresses_.context_lens);
  take(addresses_.page_offsets);
  take(addresses_.slots);
  take(addresses_.exact_rows_of_seqs);
  take(addresses_.exact_rows_of_tokens);
  take(addresses_.few);
  take(addresses_.prompt);
  take(addresses_.combines);
  addresses_.others.resize(arrays.others.size());
  for (const int32_t*& other : addresses_.others) take(other);
  // Never null: that would not say where they will be.
  addresses_.page_ids = reinterpret_cast<const int32_t*>(there_.data() + begins[next]);
  layout_ = std::move(layout);
  return CopyPinned(ConstTensorView(here.data(), DType::kU8, {bytes}),
                    TensorView(there_.data(), DType::kU8, {bytes}, device_), stream);
}

ConstTensorView StepSequences::other(size_t i) const {
  return ConstTensorView(addresses_.others[i], DType::kI32, {layout_.others[i]}, device_);
}

}  // namespace thinwire
