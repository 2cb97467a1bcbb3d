#include "kernels/attention/attention_items.h"

#include <algorithm>

namespace thinwire {
namespace {

// A sequence with more rows than this is a prompt.
constexpr int64_t kFewRows = 16;
// Blocks of rows beyond this are work enough without splits, whose partials would need memory.
constexpr int64_t kMostSplitBlocks = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Keys of a split of `keys`: enough for a block of threads to be worth its start and its partial
// result, few enough for a single long sequence to spread over the GPU. Blocks for codes have twice
// as many threads as those for floats.
int64_t SplitKeys(int64_t keys, bool coded) {
  const int64_t split = std::clamp<int64_t>(CeilDiv(keys, 4 * 256) * 256, 512, kMaxSplitKeys);
  return coded ? split : split / 2;
}

}  // namespace

bool HasPromptKernel(bool coded, DType page_dtype, int64_t head_dim) {
  return !coded && page_dtype != DType::kF32 && (head_dim == 64 || head_dim == 128);
}

AttentionItems CutIntoItems(const AttentionCut& cut, absl::Span<const int32_t> token_offsets,
                            absl::Span<const int32_t> context_lens) {
  AttentionItems items;
  for (size_t s = 0; s < context_lens.size(); ++s) {
    const int64_t num_tokens = token_offsets[s + 1] - token_offsets[s];
    const int64_t num_rows = num_tokens * cut.group;
    const int64_t before = context_lens[s] - num_tokens;
    const bool prompt = cut.has_prompts && num_rows > kFewRows;
    const int64_t most = prompt ? kPromptRows : kCudaRows;
    const int64_t num_blocks = CeilDiv(num_rows, most);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t first = b * most, count = std::min(most, num_rows - first);
      const int64_t end = before + (first + count - 1) / cut.group + 1;
      const int64_t first_end = before + first / cut.group + 1;
      int64_t begin = cut.window > 0 ? std::max<int64_t>(0, first_end - cut.window) : 0;
      begin = begin / 16 * 16;
      const int64_t split =
          prompt || num_blocks > kMostSplitBlocks ? end - begin : SplitKeys(end - begin, cut.coded);
      const int64_t num_splits = CeilDiv(end - begin, split);
      AttentionItem item = {static_cast<int32_t>(s),
                            static_cast<int32_t>(first),
                            static_cast<int32_t>(count),
                            0,
                            0,
                            -1};
      if (num_splits > 1) {
        items.combines.push_back({item.seq, item.first_row, item.num_rows,
                                  static_cast<int32_t>(items.num_partials),
                                  static_cast<int32_t>(num_splits)});
      }
      for (int64_t i = 0; i < num_splits; ++i) {
        item.key_begin = static_cast<int32_t>(begin + i * split);
        item.key_end = static_cast<int32_t>(std::min(end, begin + (i + 1) * split));
        if (num_splits > 1) item.partial = static_cast<int32_t>(items.num_partials++);
        (prompt ? items.prompt : items.few).push_back(item);
      }
    }
  }
  // The longest first, so that the last ones to run are short.
  std::stable_sort(items.prompt.begin(), items.prompt.end(),
                   [](const AttentionItem& a, const AttentionItem& b) {
                     return a.key_end - a.key_begin > b.key_end - b.key_begin;
                   });
  return items;
}

}  // namespace thinwire
