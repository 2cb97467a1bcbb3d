#include "launcher/bench_comm.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/output.h"
#include "parallel/comm/agreement.h"
#include "parallel/wire/strategy_timing.h"

namespace thinwire {
namespace {

// Gbit/s of `bytes` in `us`.
double Gbps(int64_t bytes, double us) { return static_cast<double>(bytes) * 8e-3 / us; }

std::string SizeText(int64_t bytes) {
  return bytes >= 1 << 20 ? absl::StrCat(bytes >> 20, " MiB") : absl::StrCat(bytes >> 10, " KiB");
}

}  // namespace

void BenchComm::AddTo(CLI::App& app) {
  app.add_option("--strategies", strategies_,
                 "Values of --wire but auto and exact, separated by commas")
      ->type_name("NAMES")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--norm-codes", norm_codes_,
                 "Bits in which token-owner shares norms: 8, 6, 5 or 4; auto: 8")
      ->type_name("BITS")
      ->capture_default_str();
  app.add_option("--min-bytes", min_bytes_, "Smallest message, as fp16, e.g. 16K")
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-bytes", max_bytes_, "Largest message, as fp16; sizes grow by 4")
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--width", width_, "Elements of a row: the model's hidden size")
      ->type_name("N")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--dtype", dtype_, "Of the partial sums")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}))
      ->capture_default_str();
  app.add_option("--seconds", seconds_, "For each strategy and size")
      ->type_name("S")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--threads", threads_, "Threads of each rank; 0: its share of the host")
      ->type_name("N")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--json", json_, "One JSON object per line, for 'thinwire report'");
  app.footer(
      "What half a decoder layer exchanges: every rank's partial sums become sums and, with\n"
      "token-owner, the next norm reaches all ranks. Times are the slowest rank's, codec "
      "included;\n"
      "of fp16: bytes sent over those of an fp16 ring all-reduce; effective: fp16 bytes of the\n"
      "message over the median; wire: bytes that a rank sends over "
      "it;\n"
      "error: of the sums, root mean square, against fp32.\n\n"
      "  mpirun -np 2 thinwire bench comm --json > comm.json; thinwire report comm.json -o c.html");
}

absl::Status BenchComm::Run(Job& job) {
  if (job.size() < 2) {
    return UsageError(absl::InvalidArgumentError(
        "bench comm measures what ranks send each other: expected several, as in mpirun -np 2 "
        "thinwire bench comm"));
  }
  const auto min_bytes = ParseBytes(min_bytes_);
  if (!min_bytes.ok()) return UsageError(Annotate(min_bytes.status(), "--min-bytes"));
  const auto max_bytes = ParseBytes(max_bytes_);
  if (!max_bytes.ok()) return UsageError(Annotate(max_bytes.status(), "--max-bytes"));
  std::vector<WireOptions> options;
  for (const std::string& name : strategies_) {
    auto parsed = ParseWireOptions(name, "auto", norm_codes_);
    if (parsed.ok() && parsed->automatic) {
      parsed = absl::InvalidArgumentError(
          "--strategies auto: expected strategies by name, such as fp16,one-shot-q5");
    }
    if (parsed.ok() && parsed->strategy.kind == WireStrategy::Kind::kExact) {
      parsed = absl::InvalidArgumentError(
          "--strategies exact: expected strategies that add up over ranks, such as native");
    }
    if (!parsed.ok()) return UsageError(parsed.status());
    options.push_back(*parsed);
  }
  if (*min_bytes > *max_bytes) {
    return UsageError(absl::InvalidArgumentError(
        absl::StrCat("--max-bytes ", max_bytes_, ": expected at least --min-bytes, ", min_bytes_)));
  }
  TW_ASSIGN_OR_RETURN(const DType dtype, ParseDType(dtype_));
  ThreadPool pool(job.NumThreads(threads_));
  Stream stream = Stream::Cpu(&pool);
  TW_RETURN_IF_ERROR(AgreeOnValues({{"the command", "bench comm"},
                                    {"--strategies", absl::StrJoin(strategies_, ",")},
                                    {"--norm-codes", norm_codes_},
                                    {"--min-bytes", absl::StrCat(*min_bytes)},
                                    {"--max-bytes", absl::StrCat(*max_bytes)},
                                    {"--width", absl::StrCat(width_)},
                                    {"--dtype", dtype_},
                                    {"--seconds", absl::StrCat(seconds_)}},
                                   job.world(), stream));
  if (job.leader() && !json_) {
    TW_RETURN_IF_ERROR(WriteOutput(
        absl::StrFormat("%10s  %-15s  %10s  %10s  %8s  %14s  %9s  %8s\n", "fp16 size", "strategy",
                        "p50 us", "p99 us", "of fp16", "effective Gb/s", "wire Gb/s", "error")));
  }
  for (int64_t bytes = *min_bytes; bytes <= *max_bytes; bytes *= 4) {
    const int64_t num_rows = std::max<int64_t>(1, bytes / (2 * width_));
    for (const WireOptions& option : options) {
      TW_ASSIGN_OR_RETURN(const StrategyTiming timing,
                          TimeStrategy(job.world(), option, num_rows, width_, dtype,
                                       absl::Seconds(seconds_), stream));
      if (!job.leader()) continue;
      const std::string name = WireStrategyName(option.strategy);
      const int64_t message_bytes = 2 * num_rows * width_;
      const double effective = Gbps(message_bytes, timing.p50_us);
      const int64_t sent_bytes = timing.wire_bytes / job.size();
      const double wire = Gbps(sent_bytes, timing.p50_us);
      const double share = static_cast<double>(timing.wire_bytes) /
                           static_cast<double>(std::max<int64_t>(timing.logical_bytes, 1));
      if (json_) {
        const nlohmann::ordered_json line = {
            {"strategy", name},         {"ranks", job.size()},     {"width", width_},
            {"rows", num_rows},         {"dtype", dtype_},         {"logical_bytes", message_bytes},
            {"p50_us", timing.p50_us},  {"p99_us", timing.p99_us}, {"calls", timing.calls},
            {"wire_bytes", sent_bytes}, {"of_fp16", share},        {"effective_gbps", effective},
            {"wire_gbps", wire},        {"error", timing.error}};
        TW_RETURN_IF_ERROR(WriteOutput(line.dump() + "\n"));
        continue;
      }
      TW_RETURN_IF_ERROR(WriteOutput(absl::StrFormat(
          "%10s  %-15s  %10.1f  %10.1f  %8.3f  %14.3f  %9.3f  %8.1e\n", SizeText(message_bytes),
          name, timing.p50_us, timing.p99_us, share, effective, wire, timing.error)));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
