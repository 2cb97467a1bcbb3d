#include "kernels/attention/paged_sequences.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace thinwire {

absl::Status CheckSequences(const PagedSequences& seqs) {
  const size_t num_seqs = seqs.context_lens.size();
  if (seqs.token_offsets.size() != num_seqs + 1 || seqs.page_offsets.size() != num_seqs + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "paged_attention: ", num_seqs, " context_lens, ", seqs.token_offsets.size(),
        " token_offsets, ", seqs.page_offsets.size(), " page_offsets: expected one more of each"));
  }
  if (seqs.token_offsets.front() != 0 || seqs.token_offsets.back() != seqs.num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("paged_attention: token_offsets from ", seqs.token_offsets.front(), " to ",
                     seqs.token_offsets.back(), ": expected 0 to ", seqs.num_tokens));
  }
  for (size_t s = 0; s < num_seqs; ++s) {
    const int64_t num_tokens = int64_t{seqs.token_offsets[s + 1]} - seqs.token_offsets[s];
    const int64_t context = seqs.context_lens[s];
    if (num_tokens < 1 || context < num_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("paged_attention: sequence ", s, " has ",
                                                     num_tokens, " query tokens in a context of ",
                                                     context));
    }
    const int64_t begin = seqs.page_offsets[s];
    const int64_t end = seqs.page_offsets[s + 1];
    const int64_t needed = (context + seqs.page_size - 1) / seqs.page_size;
    if (begin < 0 || end - begin < needed || end > static_cast<int64_t>(seqs.page_ids.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "paged_attention: sequence ", s, " has page_ids [", begin, ", ", end, ") of ",
          seqs.page_ids.size(), ": expected ", needed, " pages for a context of ", context));
    }
    for (int64_t i = begin; i < begin + needed; ++i) {
      if (seqs.page_ids[i] < 0 || seqs.page_ids[i] >= seqs.num_pages) {
        return absl::InvalidArgumentError(absl::StrCat("paged_attention: sequence ", s,
                                                       " has page ", seqs.page_ids[i],
                                                       ": expected 0 to ", seqs.num_pages - 1));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
