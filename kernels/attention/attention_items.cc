#include "kernels/attention/attention_items.h"

#include <algorithm>

#include "kernels/attention/invariant_attention.h"

namespace thinwire {
namespace {

// A sequence with more rows than this is a prompt.
constexpr int64_t kFewRows = 16;
// Blocks of rows beyond this are work enough without splits, whose partials would need memory.
constexpr int64_t kMostSplitBlocks = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of threads that occupy a large GPU, two on each multiprocessor.
constexpr int64_t kWantedBlocks = 264;

// Keys of a split of `keys`: enough for a block of threads to be worth its start and its partial
// result, fewer where the items of the call would leave multiprocessors idle. Blocks for codes have
// twice as many threads as those for floats, with fewer tiles of keys than `least` some would idle.
// call_keys: of all items of the call, times KV heads.
int64_t SplitKeys(int64_t keys, int64_t call_keys, bool coded) {
  const int64_t least = coded ? 256 : 128;
  if (keys <= 2 * least) return 2 * least;
  const int64_t most = std::clamp<int64_t>(CeilDiv(keys, 4 * 256) * 256, 512, kMaxSplitKeys);
  return std::min(CeilDiv(std::max(call_keys / kWantedBlocks, least), least) * least,
                  coded ? most : most / 2);
}

// What a sequence's blocks of rows are.
struct RowBlocks {
  int64_t num_rows = 0;
  int64_t before = 0;  // tokens
  bool prompt = false;
  int64_t most_rows = 0;
  int64_t count = 0;
};

RowBlocks BlocksOf(const AttentionCut& cut, int64_t num_tokens, int64_t context_len) {
  RowBlocks blocks = {.num_rows = num_tokens * cut.group, .before = context_len - num_tokens};
  blocks.prompt = cut.has_prompts && blocks.num_rows > kFewRows;
  blocks.most_rows = blocks.prompt ? kPromptRows : kCudaRows;
  blocks.count = CeilDiv(blocks.num_rows, blocks.most_rows);
  return blocks;
}

// Keys that the items of few rows read, times KV heads, about.
int64_t KeysOfFewRows(const AttentionCut& cut, absl::Span<const int32_t> token_offsets,
                      absl::Span<const int32_t> context_lens) {
  int64_t keys = 0;
  for (size_t s = 0; s < context_lens.size(); ++s) {
    const RowBlocks blocks =
        BlocksOf(cut, token_offsets[s + 1] - token_offsets[s], context_lens[s]);
    if (blocks.prompt) continue;
    const int64_t len = context_lens[s];
    keys += blocks.count * (cut.window > 0 ? std::min(cut.window, len) : len);
  }
  return keys * cut.num_kv_heads;
}

}  // namespace

bool HasPromptKernel(bool coded, DType page_dtype, int64_t head_dim) {
  return !coded && page_dtype != DType::kF32 && (head_dim == 64 || head_dim == 128);
}

namespace {

// Items of few rows for each split of [begin, end), and what combines them.
void AddSplits(AttentionItem item, int64_t begin, int64_t end, int64_t split,
               std::vector<AttentionItem>& to, AttentionItems& items) {
  const int64_t num_splits = CeilDiv(end - begin, split);
  if (num_splits > 1) {
    items.combines.push_back({item.seq, item.first_row, item.num_rows,
                              static_cast<int32_t>(items.num_partials),
                              static_cast<int32_t>(num_splits)});
  }
  for (int64_t i = 0; i < num_splits; ++i) {
    item.key_begin = static_cast<int32_t>(begin + i * split);
    item.key_end = static_cast<int32_t>(std::min(end, begin + (i + 1) * split));
    if (num_splits > 1) item.partial = static_cast<int32_t>(items.num_partials++);
    to.push_back(item);
  }
}

}  // namespace

AttentionItems CutIntoInvariantItems(const AttentionCut& cut,
                                     absl::Span<const int32_t> token_offsets,
                                     absl::Span<const int32_t> context_lens) {
  AttentionItems items;
  for (size_t s = 0; s < context_lens.size(); ++s) {
    const int64_t num_tokens = token_offsets[s + 1] - token_offsets[s];
    const int64_t before = context_lens[s] - num_tokens;
    const int64_t num_rows = num_tokens * cut.group;
    for (int64_t first = 0; first < num_rows; first += kCudaRows) {
      const int64_t count = std::min<int64_t>(kCudaRows, num_rows - first);
      const int64_t first_end = before + first / cut.group + 1;
      const int64_t end = before + (first + count - 1) / cut.group + 1;
      const int64_t seen = cut.window > 0 ? std::max<int64_t>(0, first_end - cut.window) : 0;
      AddSplits({static_cast<int32_t>(s), static_cast<int32_t>(first), static_cast<int32_t>(count),
                 0, 0, -1},
                seen / kInvariantSplitKeys * kInvariantSplitKeys, end, kInvariantSplitKeys,
                items.few, items);
    }
  }
  return items;
}

AttentionItems CutIntoItems(const AttentionCut& cut, absl::Span<const int32_t> token_offsets,
                            absl::Span<const int32_t> context_lens) {
  AttentionItems items;
  const int64_t call_keys = KeysOfFewRows(cut, token_offsets, context_lens);
  for (size_t s = 0; s < context_lens.size(); ++s) {
    const RowBlocks blocks =
        BlocksOf(cut, token_offsets[s + 1] - token_offsets[s], context_lens[s]);
    const bool prompt = blocks.prompt;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t first = b * blocks.most_rows;
      const int64_t count = std::min(blocks.most_rows, blocks.num_rows - first);
      const int64_t end = blocks.before + (first + count - 1) / cut.group + 1;
      const int64_t first_end = blocks.before + first / cut.group + 1;
      int64_t begin = cut.window > 0 ? std::max<int64_t>(0, first_end - cut.window) : 0;
      begin = begin / 16 * 16;
      const int64_t split = prompt || blocks.count > kMostSplitBlocks
                                ? end - begin
                                : SplitKeys(end - begin, call_keys, cut.coded);
      AddSplits({static_cast<int32_t>(s), static_cast<int32_t>(first), static_cast<int32_t>(count),
                 0, 0, -1},
                begin, end, split, prompt ? items.prompt : items.few, items);
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
