// A step's sequences on a GPU: uploaded once, in one piece, for attention and the writes of K and V
// of all layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/device.h"
#include "kernels/core/dtype.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// What the layers that share a step's sequences have in common, as in PagedAttentionArgs.
struct StepLayers {
  int64_t num_heads = 1;
  int64_t num_kv_heads = 1;
  int64_t head_dim = 0;
  int64_t window = 0;
  DType page_dtype = DType::kF32;  // where pages hold floats
  bool coded = false;              // they hold codes
  bool batch_invariant = false;    // as in PagedAttentionArgs
};

// Owns memory on both sides; move-only, thread-compatible. Operators that are given one do not look
// at its device memory on the host.
class StepSequences {
 public:
  // Host arrays, as in PagedAttentionArgs, KvWriteArgs and their like for codes. The last two may
  // be empty.
  struct Arrays {
    absl::Span<const int32_t> token_offsets;
    absl::Span<const int32_t> context_lens;
    absl::Span<const int32_t> page_offsets;
    absl::Span<const int32_t> page_ids;
    absl::Span<const int64_t> slots;
    absl::Span<const int32_t> exact_rows_of_seqs;
    absl::Span<const int32_t> exact_rows_of_tokens;
    // Arrays of the caller's, which go along.
    std::vector<absl::Span<const int32_t>> others;
  };

  // Where things lie and how many there are: what arguments of kernels follow from. Steps that are
  // alike in this run the same kernels with the same arguments. Items and combines are filled up
  // with ones that have nothing to do, so that steps are often alike.
  struct Layout {
    const std::byte* base = nullptr;
    int64_t num_tokens = 0;
    int64_t num_seqs = 0;
    int64_t num_few = 0;
    int64_t num_prompt = 0;
    int64_t num_combines = 0;
    bool exact_seqs = false;
    bool exact_tokens = false;
    std::vector<int64_t> others;  // elements of each

    bool operator==(const Layout& other) const = default;
  };

  StepSequences(const StepLayers& layers, Device device) : layers_(layers), device_(device) {}

  // Cuts attention over the arrays into items and enqueues the upload of all, for what is enqueued
  // until the next call. What the call before the last has enqueued must have ended: the host's
  // memory is used in turns. ResourceExhausted where memory lacks.
  absl::Status Upload(const Arrays& arrays, Stream& stream);

  const Layout& layout() const { return layout_; }

  // On the device. int32 [others[i].size()].
  ConstTensorView other(size_t i) const;

  // For the operators of this folder: on the device, null where empty.
  struct Addresses {
    const int32_t* token_offsets = nullptr;
    const int32_t* context_lens = nullptr;
    const int32_t* page_offsets = nullptr;
    const int32_t* page_ids = nullptr;
    const int64_t* slots = nullptr;
    const int32_t* exact_rows_of_seqs = nullptr;
    const int32_t* exact_rows_of_tokens = nullptr;
    const void* few = nullptr;     // AttentionItem [num_few]
    const void* prompt = nullptr;  // AttentionItem [num_prompt]
    const void* combines = nullptr;
    std::vector<const int32_t*> others;
  };
  const Addresses& addresses() const { return addresses_; }

 private:
  StepLayers layers_;
  Device device_;
  PinnedBuffer here_[2];
  size_t turn_ = 0;  // of here_
  Buffer there_;
  Layout layout_;
  Addresses addresses_;
};

}  // namespace thinwire
