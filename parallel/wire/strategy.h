// How a job encodes what crosses its ranks: the values of --wire and --hop.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/wire/row_codec.h"

namespace thinwire {

// How partial sums become sums on all ranks of a tensor-parallel group.
struct WireStrategy {
  enum class Kind {
    kNative,      // all-reduce in the activations' dtype: nothing is lost
    kFp16,        // all-reduce of fp16, sums in fp32
    kOneShot,     // all-gather of encoded partial sums; every rank adds all of them in rank order
    kTokenOwner,  // encoded partial sums to the rank that owns the token; it adds them in rank
                  // order to the residual, which stays there, and shares what comes of the next
                  // norm
    kExact,       // no sums over ranks: layers are cut by output features, their inputs gathered
                  // and their outputs collected by the token's owner; every bit of the result is
                  // that of one rank
  };

  Kind kind = Kind::kNative;
  int bits = 16;  // of codes, with kOneShot and kTokenOwner: 8, 6, 5 or 4

  friend bool operator==(const WireStrategy& a, const WireStrategy& b) = default;
};

struct WireOptions {
  WireStrategy strategy;
  RowCodec hop;  // of the residual from one pipeline stage to the next
  // Bits of codes in which owners share norms that have no codes of their own; 0: see NormBits.
  int norm_bits = 0;
  // The strategy is what a table says for the rows of a step (strategy_table.h).
  bool automatic = false;
};

// Bits in which owners share the outputs of norms that are not coded for the linears behind them:
// options.norm_bits or, with 0, 8. (A norm's output has the error of a whole residual, a sum's only
// that of what a layer adds: at equal bits the norms cost several times the perplexity; README.md.)
int NormBits(const WireOptions& options);

// Of all options: "auto", or the strategy's name.
std::string WireName(const WireOptions& options);

// "native", "fp16", "one-shot-q8", ..., "token-owner-q4", "exact".
std::string WireStrategyName(const WireStrategy& strategy);

// `name`: of a strategy, or "auto"; `hop`: "auto", "native", "fp16" or "q8". With "auto", hops are
// native or fp16 as the strategy is (native with "exact"), and of 8 bits with the coded ones and
// with "auto". `norm_codes`: "auto", "8", "6", "5" or "4". InvalidArgument names the flag and lists
// what is accepted, which with "exact" is nothing that rounds.
absl::StatusOr<WireOptions> ParseWireOptions(absl::string_view name, absl::string_view hop,
                                             absl::string_view norm_codes = "auto");

}  // namespace thinwire
