#include "kernels/attention/attention_items.h"

#include <algorithm>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/invariant_attention.h"
#include "kernels/attention/step_sequences.h"

namespace thinwire {
namespace {

struct Sequences {
  std::vector<int32_t> token_offsets = {0};
  std::vector<int32_t> context_lens;

  void Add(int32_t num_tokens, int32_t context) {
    token_offsets.push_back(token_offsets.back() + num_tokens);
    context_lens.push_back(context);
  }
};

// Each row's keys are those of the definition, each in one item of the row, in order.
void ExpectCovered(const AttentionCut& cut, const Sequences& seqs, bool invariant) {
  const AttentionItems items = (invariant ? CutIntoInvariantItems : CutIntoItems)(
      cut, seqs.token_offsets, seqs.context_lens);
  std::vector<std::vector<int32_t>> ends(seqs.context_lens.size());  // by row: keys done so far
  for (size_t s = 0; s < ends.size(); ++s) {
    ends[s].assign((seqs.token_offsets[s + 1] - seqs.token_offsets[s]) * cut.group, -1);
  }
  std::set<int32_t> partials;
  for (const bool prompt : {false, true}) {
    for (const AttentionItem& item : prompt ? items.prompt : items.few) {
      ASSERT_GT(item.num_rows, 0);
      ASSERT_LE(item.num_rows, prompt ? kPromptRows : kCudaRows);
      ASSERT_EQ(item.key_begin % (invariant ? kInvariantSplitKeys : 16), 0);
      if (invariant) {
        ASSERT_FALSE(prompt);
        ASSERT_LE(item.key_end - item.key_begin, kInvariantSplitKeys);
      }
      ASSERT_LT(item.key_begin, item.key_end);
      if (prompt) {
        ASSERT_EQ(item.partial, -1);
      }
      if (item.partial >= 0) {
        ASSERT_TRUE(partials.insert(item.partial).second);
      }
      const int32_t num_tokens = seqs.token_offsets[item.seq + 1] - seqs.token_offsets[item.seq];
      for (int32_t r = item.first_row; r < item.first_row + item.num_rows; ++r) {
        int32_t& done = ends[item.seq].at(r);
        const int32_t end =
            seqs.context_lens[item.seq] - num_tokens + r / static_cast<int32_t>(cut.group) + 1;
        const int32_t begin =
            cut.window > 0 ? std::max<int32_t>(0, end - static_cast<int32_t>(cut.window)) : 0;
        if (done < 0) {
          ASSERT_LE(item.key_begin, begin);
        } else {
          ASSERT_EQ(item.key_begin, done);
        }
        done = item.key_end;
      }
    }
  }
  EXPECT_EQ(static_cast<int64_t>(partials.size()), items.num_partials);
  for (size_t s = 0; s < ends.size(); ++s) {
    const auto num_rows = static_cast<int32_t>(ends[s].size());
    for (int32_t r = 0; r < num_rows; ++r) {
      const int32_t end =
          seqs.context_lens[s] - (num_rows - r - 1) / static_cast<int32_t>(cut.group);
      EXPECT_GE(ends[s][r], end);
    }
  }
  int64_t combined = 0;
  for (const AttentionCombine& combine : items.combines) {
    EXPECT_EQ(combine.first_partial, combined);
    EXPECT_GT(combine.num_partials, 1);
    combined += combine.num_partials;
  }
  EXPECT_EQ(combined, items.num_partials);
}

TEST(AttentionItemsTest, EachRowGetsItsKeysOnce) {
  std::minstd_rand random(5);
  for (int turn = 0; turn < 300; ++turn) {
    Sequences seqs;
    const auto count = 1 + random() % 6;
    for (size_t s = 0; s < count; ++s) {
      const auto tokens = static_cast<int32_t>(1 + (random() % 3 == 0 ? random() % 300 : 0));
      seqs.Add(tokens, tokens + static_cast<int32_t>(random() % (turn % 10 == 0 ? 40000 : 3000)));
    }
    const AttentionCut cut = {
        .group = int64_t{1} << random() % 4,
        .num_kv_heads = int64_t{1} << random() % 4,
        .window = random() % 2 == 0 ? 0 : 1 + static_cast<int64_t>(random() % 5000),
        .coded = random() % 2 == 0,
        .has_prompts = random() % 2 == 0};
    for (const bool invariant : {false, true}) ExpectCovered(cut, seqs, invariant);
    if (HasFailure()) return;
  }
}

TEST(AttentionItemsTest, FewKeysAreSpreadOverTheGpuAndManyAreNot) {
  const auto items = [](int count, bool coded) {
    Sequences seqs;
    for (int s = 0; s < count; ++s) seqs.Add(1, 4000);
    return CutIntoItems({.group = 8, .num_kv_heads = 4, .coded = coded}, seqs.token_offsets,
                        seqs.context_lens)
        .few.size();
  };
  EXPECT_EQ(items(1, false), 32);       // 128 keys each, 128 blocks of threads
  EXPECT_EQ(items(1, true), 16);        // 256 keys each
  EXPECT_EQ(items(64, false), 64 * 8);  // 512 each
  EXPECT_EQ(items(64, true), 64 * 4);   // 1024 each
}

// On the CPU, where device memory is memory.
TEST(StepSequencesTest, HasAllArraysAndFillsItemsUp) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  StepSequences step({.num_heads = 8, .num_kv_heads = 2, .head_dim = 64}, Device::Cpu());
  const auto upload = [&](int32_t context) {
    Sequences seqs;
    for (int s = 0; s < 5; ++s) seqs.Add(1, context);
    const std::vector<int32_t> page_offsets = {0, 1, 2, 3, 4, 5};
    const std::vector<int32_t> page_ids = {9, 8, 7, 6, 5};
    const std::vector<int64_t> slots = {3, 1, 4, 1, 5};
    const std::vector<int32_t> ids = {2, 7, 1, 8, 2};
    EXPECT_TRUE(step.Upload({.token_offsets = seqs.token_offsets,
                             .context_lens = seqs.context_lens,
                             .page_offsets = page_offsets,
                             .page_ids = page_ids,
                             .slots = slots,
                             .exact_rows_of_seqs = {},
                             .exact_rows_of_tokens = {},
                             .others = {ids, {}}},
                            stream)
                    .ok());
    const StepSequences::Addresses& there = step.addresses();
    EXPECT_TRUE(std::equal(slots.begin(), slots.end(), there.slots));
    EXPECT_TRUE(std::equal(page_ids.begin(), page_ids.end(), there.page_ids));
    EXPECT_TRUE(std::equal(seqs.context_lens.begin(), seqs.context_lens.end(), there.context_lens));
    EXPECT_EQ(there.exact_rows_of_seqs, nullptr);
    EXPECT_EQ(step.other(0).data<int32_t>()[3], 8);
    EXPECT_EQ(step.other(1).num_elements(), 0);
    return step.layout();
  };
  // 5 items of their own, filled up to 6.
  const StepSequences::Layout layout = upload(100);
  EXPECT_EQ(layout.num_few, 6);
  EXPECT_EQ(layout.num_combines, 0);
  const auto* items = static_cast<const AttentionItem*>(step.addresses().few);
  EXPECT_EQ(items[4].seq, 4);
  EXPECT_EQ(items[4].key_end, 100);
  EXPECT_EQ(items[5].num_rows, 0);
  // A longer context changes nothing before it needs splits: three of 128 keys each.
  EXPECT_EQ(upload(256), layout);
  const StepSequences::Layout longer = upload(257);
  EXPECT_EQ(longer.num_few, 16);
  EXPECT_EQ(longer.num_combines, 6);
  EXPECT_EQ(upload(384), longer);
  EXPECT_NE(upload(385), longer);
}

}  // namespace
}  // namespace thinwire
