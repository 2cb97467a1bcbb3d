// thinwire.json: what was done to make a quantised checkpoint. It lies beside config.json:
//   {"format_version": 1, "tool_version": "0.1.0", "scheme": "w4a4kv",
//    "weight_bits": 4, "act_bits": 16, "kv_bits": 4, "group_size": 128, "algorithm": "default",
//    "act_order": true, "first_token_exact": true, "tp": 4, "seed": 0,
//    "calibration": {"source": "wiki.txt", "sha256": "e3b0...", "nsamples": 256, "seqlen": 512}}
// Fields that a reader does not know are left alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/quant_scheme.h"

namespace thinwire {

struct CalibrationInfo {
  std::string source;  // a file name, or "self": text that the model made
  std::string sha256;  // of the source's bytes (self: of the token ids); 64 hex digits
  int64_t nsamples = 0;
  int64_t seqlen = 0;  // tokens of a sample

  friend bool operator==(const CalibrationInfo&, const CalibrationInfo&) = default;
};

struct ThinwireFile {
  QuantScheme scheme;
  // "default"; "reference": as RPTQ was published; "per-tensor": that with one cluster a site;
  // "vptq-reference": weights as the published VPTQ makes them; "vptq-no-scaling",
  // "vptq-no-invariances", "vptq-no-feedback": as by default, without one step.
  std::string algorithm = "default";
  int64_t group_size = 128;  // of weight scales, in input channels; -1: one group
  // Whether channels were put in order of their importance; else they are as in the model.
  bool act_order = true;
  // Whether K and V of a sequence's first token are kept as they are (a sink would spoil the codes
  // of all others).
  bool first_token_exact = true;
  CalibrationInfo calibration;
  int64_t seed = 0;  // >= 0
  // The input channels of fc2 or down are ordered inside as many equal blocks, so that a cut into
  // tp or a divisor of it parts no cluster. 0: they are in their own order, any cut will do.
  int tp = 0;
  std::string tool_version;

  friend bool operator==(const ThinwireFile&, const ThinwireFile&) = default;
};

inline constexpr char kThinwireFileName[] = "thinwire.json";
inline constexpr int64_t kThinwireFormatVersion = 1;

// Reads dir/thinwire.json. Errors name file, field, expected and found: ReadJsonFile's (NotFound:
// no such file); InvalidArgument: a field that is missing, malformed or contradicts another;
// Unimplemented: a newer format version (naming both) or an unknown algorithm.
absl::StatusOr<ThinwireFile> ReadThinwireFile(const std::string& dir);

// Writes dir/thinwire.json, all or nothing; equal content gives equal bytes.
absl::Status WriteThinwireFile(const std::string& dir, const ThinwireFile& file);

// Whether the checkpoint may be cut over `tp` ranks: OK, or InvalidArgument that names --tp and the
// sizes that will do. `context` (a folder) begins the message.
absl::Status CheckTpAllowed(const ThinwireFile& file, int tp, absl::string_view context);

}  // namespace thinwire
