// What was recorded of runs, read back: reports of `thinwire run --report`, and lines of
// `thinwire bench comm --json`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace thinwire {

// The traffic of one site, all ranks together. See LedgerEntry for what is counted.
struct SiteTraffic {
  std::string site;
  int64_t logical_bytes = 0;
  int64_t payload_bytes = 0;
  int64_t metadata_bytes = 0;
  int64_t calls = 0;
  double transfer_us = 0.0;
  std::optional<double> codec_us;  // older files do not know it

  int64_t sent_bytes() const { return payload_bytes + metadata_bytes; }
};

// Of the time that all ranks spent in steps.
struct StepShares {
  double transfer = 0.0;
  double codec = 0.0;
};

// One report of a run.
struct RunRecord {
  std::string file;
  std::string model;  // a folder
  std::string architecture;
  std::string scheme;  // empty: not known
  std::string dtype;
  std::string wire;  // the strategy
  int64_t tp = 1;
  int64_t pp = 1;
  int64_t decode_tp = 0;  // of a job split in groups: `tp` is the prefill group's; 0: not split
  std::optional<int64_t> num_layers;
  int64_t prompts = 0;
  int64_t failed_prompts = 0;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  double tokens_per_second = 0.0;  // generated
  double ttft_ms = 0.0;            // median; 0: not known
  double step_us = 0.0;            // sum over steps, on rank 0
  std::vector<SiteTraffic> sites;  // in the order of a step, others after them by name

  int64_t num_ranks() const { return (tp + decode_tp) * pp; }
  int64_t num_tokens() const { return prompt_tokens + generated_tokens; }
  // The sum over sites; codec_us where any site has it.
  SiteTraffic Total() const;
  // `bytes` over the number of tokens; 0 if there were none.
  double PerToken(int64_t bytes) const;
  // Ranks wait between steps, too: where time in the communicator and in codecs exceeds that in
  // steps, the shares add up to 1.
  StepShares Shares() const;
  // Null where the site sent nothing.
  const SiteTraffic* Find(const std::string& site) const;
};

// One measurement of a collective.
struct CommRecord {
  std::string strategy;
  int64_t ranks = 0;
  int64_t logical_bytes = 0;
  std::optional<double> p50_us;  // absent where it failed
  std::optional<double> p99_us;
  std::optional<int64_t> wire_bytes;
  std::optional<double> effective_gbps;
  std::optional<double> wire_gbps;
  std::string error;  // as in the file: of the result, or why there is none; may be empty
};

// Puts sites in the order of a step, unknown ones after the others as they are.
void SortSites(std::vector<SiteTraffic>& sites);

struct Recordings {
  std::vector<std::string> files;
  std::vector<RunRecord> runs;
  std::vector<CommRecord> comm;
};

// Appends what is in the file at `path`. Fields that older files do not have may be missing. Errors
// name the file, the field, what was expected and what was found.
absl::Status ReadRecording(const std::string& path, Recordings& recordings);

}  // namespace thinwire
