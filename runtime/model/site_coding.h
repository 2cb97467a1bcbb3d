// A site's codes as one rank runs them. Private to this folder.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/kv_codes.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// The channels of positions [part.begin, part.end): order itself, or all in sequence where the site
// is left alone.
std::vector<int32_t> ChannelsOf(const SiteCodes& codes, Range part);

// Bits of each position of the part.
std::vector<uint8_t> BitsOf(const SiteCodes& codes, Range part);

// Parameters of the part by position, or (by_channel) by channel, the part's first channel being 0.
// Without `order`. Empty where the site is not coded.
absl::StatusOr<SiteCoding> MakeSiteCoding(const SiteCodes& codes, Range part, bool by_channel);

// K or V codes of heads `heads`, head_dim channels each. `stored`: [heads.size() * head_dim] or
// empty: the channel (of the whole model) that lies at each place of the rank's rows when they are
// written; empty: all in sequence.
absl::StatusOr<KvCodes> MakeKvCodes(const SiteCodes& codes, Range heads, int64_t head_dim,
                                    const std::vector<int32_t>& stored);

}  // namespace thinwire
