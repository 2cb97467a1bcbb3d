#include "launcher/bench_comm.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/output.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/wire/strategy_table.h"

namespace thinwire {
namespace {

// Gbit/s of `bytes` in `us`.
double Gbps(int64_t bytes, double us) { return static_cast<double>(bytes) * 8e-3 / us; }

std::string SizeText(int64_t bytes) {
  return bytes >= 1 << 20 ? absl::StrCat(bytes >> 20, " MiB") : absl::StrCat(bytes >> 10, " KiB");
}

// A strategy that measures as the best of AutoStrategies() would.
constexpr char kAuto[] = "auto";

}  // namespace

// A strategy over a communicator.
struct BenchComm::Way {
  std::string name;
  WireOptions options;
  Communicator* comm;
};

struct BenchComm::Gpus {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Communicator> plain;  // NCCL alone
  std::unique_ptr<Communicator> fast;
};

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
  app.add_option("--device", device_,
                 "cpu or cuda: a GPU for each rank, strategies through peer memory where there is\n"
                 "some, beside NCCL's all-reduce of fp16, all in CUDA graphs")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--seconds", seconds_, "For each strategy and size")
      ->type_name("S")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--threads", threads_, "Threads of each rank; 0: its share of the host")
      ->type_name("N")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option(
         "--stripes", stripes_,
         "Of NCCL's communicators that carry parts of the strategies' large messages between\n"
         "GPUs; 0: one, or over a network three if they are faster")
      ->type_name("N")
      ->check(CLI::Range(0, kMostNcclStripes))
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
  Stream host = Stream::Cpu(&pool);
  TW_RETURN_IF_ERROR(AgreeOnValues({{"the command", "bench comm"},
                                    {"--strategies", absl::StrJoin(strategies_, ",")},
                                    {"--norm-codes", norm_codes_},
                                    {"--min-bytes", absl::StrCat(*min_bytes)},
                                    {"--max-bytes", absl::StrCat(*max_bytes)},
                                    {"--width", absl::StrCat(width_)},
                                    {"--dtype", dtype_},
                                    {"--device", device_},
                                    {"--stripes", absl::StrCat(stripes_)},
                                    {"--seconds", absl::StrCat(seconds_)}},
                                   job.world(), host));
  const bool on_gpu = device_ == "cuda";
  Gpus gpus;
  std::vector<Way> ways;
  if (on_gpu) {
    absl::StatusOr<Gpus> connected = ConnectGpus(job);
    TW_RETURN_IF_ERROR(AgreeOnStatus(connected.status(), job.world(), host));
    gpus = *std::move(connected);
    WireOptions fp16;
    fp16.strategy.kind = WireStrategy::Kind::kFp16;
    ways.push_back({"nccl", fp16, gpus.plain.get()});
  }
  for (const WireOptions& option : options) {
    ways.push_back(
        {WireStrategyName(option.strategy), option, on_gpu ? gpus.fast.get() : &job.world()});
  }
  if (job.leader() && !json_) {
    TW_RETURN_IF_ERROR(
        WriteOutput(absl::StrFormat("%10s  %-15s  %10s  %10s  %8s  %14s  %9s  %8s%s\n", "fp16 size",
                                    "strategy", "p50 us", "p99 us", "of fp16", "effective Gb/s",
                                    "wire Gb/s", "error", on_gpu ? "  over NCCL  over fp16" : "")));
  }
  for (int64_t bytes = *min_bytes; bytes <= *max_bytes; bytes *= 4) {
    TW_RETURN_IF_ERROR(
        Measure(job, absl::MakeSpan(ways), bytes, dtype, on_gpu ? *gpus.stream : host));
  }
  return absl::OkStatus();
}

absl::StatusOr<BenchComm::Gpus> BenchComm::ConnectGpus(Job& job) const {
  const Device device = Device::Cuda(job.bootstrap().local_rank());
  Gpus gpus;
  gpus.pool = std::make_unique<ThreadPool>(job.NumThreads(threads_));
  // A rank without a GPU tells the others before they wait for it.
  absl::StatusOr<Stream> stream = Stream::Cuda(device, gpus.pool.get());
  Stream host = Stream::Cpu(gpus.pool.get());
  TW_RETURN_IF_ERROR(AgreeOnStatus(stream.status(), job.world(), host));
  gpus.stream = std::make_unique<Stream>(*std::move(stream));
  TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> plain, job.world().Split(0, job.rank()));
  TW_ASSIGN_OR_RETURN(
      gpus.plain,
      CreateNcclCommunicator(std::move(plain), device, {.uses_peer_memory = false, .stripes = 1}));
  TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> fast, job.world().Split(0, job.rank()));
  TW_ASSIGN_OR_RETURN(gpus.fast,
                      CreateNcclCommunicator(std::move(fast), device, {.stripes = stripes_}));
  const absl::Status peers = gpus.fast->Peers().status();
  if (job.leader() && !peers.ok()) spdlog::info("no peer memory: {}", std::string(peers.message()));
  return gpus;
}

absl::Status BenchComm::Measure(Job& job, absl::Span<Way> ways, int64_t bytes, DType dtype,
                                Stream& stream) {
  const int64_t num_rows = std::max<int64_t>(1, bytes / (2 * width_));
  const auto duration = absl::Seconds(seconds_);
  if (device_ != "cuda") {
    for (const Way& way : ways) {
      TW_ASSIGN_OR_RETURN(
          const StrategyTiming timing,
          TimeStrategy(*way.comm, way.options, num_rows, width_, dtype, duration, stream));
      if (job.leader()) TW_RETURN_IF_ERROR(WriteLine(job, way, num_rows, timing, {}));
    }
    return absl::OkStatus();
  }
  // In turns, since clocks and temperatures change.
  constexpr int kMostSamples = 50;
  std::vector<StrategyTimer> timers;
  for (const Way& way : ways) {
    // The reference is fp16 whatever the sums are.
    const DType as = way.comm == ways[0].comm ? DType::kF16 : dtype;
    TW_ASSIGN_OR_RETURN(StrategyTimer timer, StrategyTimer::Create(*way.comm, way.options, num_rows,
                                                                   width_, as, stream));
    timers.push_back(std::move(timer));
  }
  Stream host = Stream::Cpu(&stream.pool());
  const absl::Time start = absl::Now();
  float more = 1.0f;
  for (int i = 0; i < kMostSamples && more > 0.0f; ++i) {
    for (StrategyTimer& timer : timers) TW_RETURN_IF_ERROR(timer.Sample());
    more = absl::Now() - start < duration * static_cast<int64_t>(ways.size()) ? 1.0f : 0.0f;
    TW_RETURN_IF_ERROR(
        job.world().AllReduce(TensorView(&more, DType::kF32, {1}), ReduceOp::kMax, host));
  }
  if (!job.leader()) return absl::OkStatus();
  References references = {.nccl = timers[0].Timing().p50_us};
  for (size_t i = 1; i < ways.size(); ++i) {
    if (ways[i].options.strategy.kind == WireStrategy::Kind::kFp16)
      references.fp16 = timers[i].Timing().p50_us;
  }
  StrategyTimes times = {.num_rows = num_rows, .us = {}};
  std::vector<size_t> found;
  for (size_t i = 0; i < ways.size(); ++i) {
    TW_RETURN_IF_ERROR(WriteLine(job, ways[i], num_rows, timers[i].Timing(), references));
  }
  // What --wire auto would take of these.
  for (const WireStrategy& strategy : AutoStrategies()) {
    for (size_t i = 1; i < ways.size(); ++i) {
      if (!(ways[i].options.strategy == strategy)) continue;
      times.us.push_back(timers[i].Timing().p50_us);
      found.push_back(i);
    }
  }
  if (found.size() != AutoStrategies().size()) return absl::OkStatus();
  const StrategyTable table = {.width = width_, .times = {times}};
  const WireStrategy picked = table.Pick(num_rows);
  for (const size_t i : found) {
    if (!(ways[i].options.strategy == picked)) continue;
    Way automatic = ways[i];
    automatic.name = kAuto;
    return WriteLine(job, automatic, num_rows, timers[i].Timing(), references);
  }
  return absl::OkStatus();
}

absl::Status BenchComm::WriteLine(Job& job, const Way& way, int64_t num_rows,
                                  const StrategyTiming& timing,
                                  const References& references) const {
  const int64_t message_bytes = 2 * num_rows * width_;
  const double effective = Gbps(message_bytes, timing.p50_us);
  const int64_t sent_bytes = timing.wire_bytes / job.size();
  const double wire = Gbps(sent_bytes, timing.p50_us);
  const double share = static_cast<double>(timing.wire_bytes) /
                       static_cast<double>(std::max<int64_t>(timing.logical_bytes, 1));
  if (json_) {
    nlohmann::ordered_json line = {
        {"strategy", way.name},     {"ranks", job.size()},     {"width", width_},
        {"rows", num_rows},         {"dtype", dtype_},         {"logical_bytes", message_bytes},
        {"p50_us", timing.p50_us},  {"p99_us", timing.p99_us}, {"calls", timing.calls},
        {"wire_bytes", sent_bytes}, {"of_fp16", share},        {"effective_gbps", effective},
        {"wire_gbps", wire},        {"error", timing.error}};
    if (references.nccl > 0.0) {
      line["device"] = "cuda";
      line["peer_memory"] = way.comm->Peers().ok();
      line["times_nccl"] = references.nccl / timing.p50_us;
      if (references.fp16 > 0.0) line["times_fp16"] = references.fp16 / timing.p50_us;
    }
    return WriteOutput(line.dump() + "\n");
  }
  std::string over;
  for (const double us : {references.nccl, references.fp16}) {
    if (us > 0.0) over += absl::StrFormat("  %8.2fx", us / timing.p50_us);
  }
  return WriteOutput(absl::StrFormat("%10s  %-15s  %10.1f  %10.1f  %8.3f  %14.3f  %9.3f  %8.1e%s\n",
                                     SizeText(message_bytes), way.name, timing.p50_us,
                                     timing.p99_us, share, effective, wire, timing.error, over));
}

}  // namespace thinwire
