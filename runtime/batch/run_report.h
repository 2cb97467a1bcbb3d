// The JSON report of a run: speed, bytes between ranks, memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"

namespace thinwire {

struct RunSummary {
  std::string model_dir;
  double seconds = 0.0;  // from the first prompt to the last answer; loading excluded
  int64_t num_prompts = 0;
  int64_t num_failed = 0;
  std::vector<double> ttft_ms;  // of each prompt that was answered
};

// One line of text for people: bytes that crossed ranks, against fp16.
std::string DescribeWire(const Ledger& total);

// Of a split job one line for each group, what it did, and one about what went from one to the
// other; otherwise nothing.
std::vector<std::string> DescribeGroups(const Engine& engine, const Ledger& total);

// {"tokens_per_second", "ttft_ms", "wire": {"total": {...}, "sites": {...}}, "memory": {...}, ...}:
// wire counts are sums over ranks, "memory" has totals and "ranks", a list by rank. ttft_ms is the
// median. A split job has "groups", a list of what each is and did, "kv_handoff", and for "tp" and
// "pp" those of its first group. Indented, ends with a newline.
std::string RunReportJson(const RunSummary& summary, const Engine& engine,
                          const std::vector<RankReport>& reports);

}  // namespace thinwire
