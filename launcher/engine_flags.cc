#include "launcher/engine_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/core/device.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/log.h"
#include "launcher/progress.h"
#include "parallel/comm/agreement.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/engine/gpu_placement.h"

namespace thinwire {

namespace {

// $XDG_CACHE_HOME/thinwire, or ~/.cache/thinwire; "" without a home.
std::string CacheDir() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return absl::StrCat(cache, "/thinwire");
  const char* home = std::getenv("HOME");
  return home != nullptr && *home == '/' ? absl::StrCat(home, "/.cache/thinwire") : "";
}

// The device of this rank for --device; kinds are alike on all ranks.
absl::StatusOr<Device> ChooseDevice(const EngineFlags& flags, Job& job) {
  if (flags.device == "cpu") return Device::Cpu();
  if (job.size() > 1) {
    // A kernel that is loaded when it is first launched may wait for all that the GPU is doing, and
    // so for other ranks. Read by the driver when it starts.
    setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
    // The same for connections: all of them now, none in the first steps.
    setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0);
    // Ranks need not capture a step at the same time, as NCCL wants to register its buffers.
    setenv("NCCL_GRAPH_REGISTER", "0", /*overwrite=*/0);
  }
  const Device gpu = Device::Cuda(job.bootstrap().local_rank() % std::max(1, NumCudaDevices()));
  if (flags.share_gpus) {
    // NCCL wants a GPU for each rank of a host: it takes each rank for a host.
    setenv("NCCL_HOSTID", absl::StrCat("thinwire-", job.rank()).c_str(), /*overwrite=*/0);
    setenv("NCCL_NET", "Socket", /*overwrite=*/0);
  }
  if (flags.device == "cuda") {
    TW_RETURN_IF_ERROR(UsageError(Annotate(CheckDeviceUsable(gpu), "--device cuda")));
    return gpu;
  }
  ThreadPool pool(1);
  Stream host = Stream::Cpu(&pool);
  absl::Status usable = CheckGpusDistinct(gpu, job.world(), host);
  if (!usable.ok() && flags.share_gpus) {
    usable = AgreeOnStatus(CheckDeviceUsable(gpu), job.world(), host);
  }
  if (usable.ok()) return gpu;
  if (job.leader() && BuiltWithCuda()) LogInfo(absl::StrCat("on the CPU: ", usable.message()));
  return Device::Cpu();
}

}  // namespace

void EngineFlags::AddTo(CLI::App& app) {
  app.add_option("--model", model,
                 "Folder with config.json, *.safetensors and a tokenizer;\n"
                 "or synthetic:SHAPE[:SCHEME[:SEED]], random weights of a known shape")
      ->type_name("DIR")
      ->required();
  app.add_option("--tp", tp, "Tensor-parallel ranks: every layer is cut into this many parts")
      ->type_name("N")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--pp", pp, "Pipeline stages: layers are dealt out to this many groups of ranks")
      ->type_name("N")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--dtype", dtype, "Activations and KV cache (weights stay as stored)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}))
      ->capture_default_str();
  app.add_option(
         "--wire", wire,
         "How tensor-parallel ranks send partial sums: native (the activations' dtype, "
         "nothing lost), fp16, one-shot-qB (everyone gets everyone's codes) or "
         "token-owner-qB (codes to the token's owner, which shares the next norm), B being 8, 6, "
         "5 or 4 bits; exact (no sums between ranks: the same bits for every --tp, --pp and "
         "batch); auto: of fp16 and the two with 5 bits the fastest, as measured at "
         "start for the number of tokens")
      ->type_name("STRATEGY")
      ->capture_default_str();
  app.add_option(
         "--norm-codes", norm_codes,
         "Bits in which token-owner shares norms that the model does not code itself: 8, 6, "
         "5 or 4; auto: 8")
      ->type_name("BITS")
      ->capture_default_str();
  app.add_option(
         "--hop", hop,
         "How stages send the residual on: native, fp16, q8 (8-bit codes); auto: as --wire, "
         "q8 with its codes")
      ->type_name("CODEC")
      ->capture_default_str();
  app.add_option("--wire-table", wire_table,
                 "What --wire auto goes by: cached (what an earlier job measured on these hosts, "
                 "for up to a week, in $XDG_CACHE_HOME/thinwire or ~/.cache/thinwire) or new")
      ->check(CLI::IsMember({"cached", "new"}))
      ->capture_default_str();
  app.add_option("--device", device,
                 "Where the model runs; cuda: each rank on a GPU of its own, the n-th of a host on "
                 "the n-th; auto: that, where every rank has one, else cpu")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_flag("--share-gpus", share_gpus,
               "Let ranks of a host share GPUs where there are fewer: slow, for tests; what ranks "
               "send goes through sockets");
  app.add_flag("--no-cuda-graphs", no_cuda_graphs,
               "On GPUs, enqueue every kernel of a decode step anew instead of replaying graphs");
  app.add_option(
         "--steps-ahead", steps_ahead,
         "1: the next step is launched before the tokens of the last one are known, so that "
         "a GPU need not wait for the host; 0: after; auto: 1 on GPUs, but 0 with several "
         "stages or groups of ranks, which allow no other")
      ->check(CLI::IsMember({"auto", "0", "1"}))
      ->capture_default_str();
  app.add_option("--threads", threads, "Threads of each rank; 0: its share of the host")
      ->type_name("N")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option(
         "--kv-memory", kv_memory,
         "KV cache of each rank, e.g. 2G; default: room for --max-seqs full contexts, at most "
         "a quarter of the host's free memory for all ranks, or 9/10 of a GPU's")
      ->type_name("BYTES");
  app.add_option("--page-size", page_size, "Tokens of a KV page")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}))
      ->capture_default_str();
  app.add_option("--prefix-cache", prefix_cache,
                 "on: prompts that begin alike share full KV pages, and pages stay for later ones "
                 "while there is room; answers may differ in the rounding of sums, but with --wire "
                 "exact")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--max-seqs", max_seqs, "Prompts that run at the same time")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
  app.add_option("--max-step-tokens", max_step_tokens,
                 "Tokens of one step; longer prompts are computed in chunks")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1 << 20}))
      ->capture_default_str();
  app.add_option("--step-timeout", step_timeout_s,
                 "Seconds that a rank waits for another before the job is given up")
      ->type_name("S")
      ->check(CLI::Range(int64_t{1}, int64_t{86400}))
      ->capture_default_str();
}

void EngineFlags::AddGroupsTo(CLI::App& app) {
  app.add_option("--prefill-ranks", prefill_ranks,
                 "Ranks that compute prompts and their first tokens, in --pp stages; the rest is "
                 "done by --decode-ranks others, which take over a prompt's KV pages. Instead of "
                 "--tp, which is ranks / --pp in each group")
      ->type_name("N")
      ->check(CLI::Range(1, 65536));
  app.add_option("--decode-ranks", decode_ranks,
                 "Ranks that decode; --max-seqs, --kv-memory and the like hold for each group")
      ->type_name("N")
      ->check(CLI::Range(1, 65536));
}

absl::StatusOr<RankLayout> EngineFlags::Layout(int num_ranks) const {
  if (prefill_ranks == 0 && decode_ranks == 0) {
    TW_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(tp, pp, num_ranks));
    return RankLayout::OneMesh(mesh);
  }
  if (prefill_ranks == 0 || decode_ranks == 0) {
    const bool prefill = decode_ranks == 0;
    return absl::InvalidArgumentError(absl::StrCat(
        prefill ? "--prefill-ranks " : "--decode-ranks ", prefill ? prefill_ranks : decode_ranks,
        " without ", prefill ? "--decode-ranks" : "--prefill-ranks",
        ": a job has both groups of ranks, or neither"));
  }
  if (tp != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tp ", tp, " with --prefill-ranks ", prefill_ranks, " and --decode-ranks ",
                     decode_ranks, ": in each group, --tp is its ranks / --pp; leave it away"));
  }
  return RankLayout::PrefillAndDecode(prefill_ranks, decode_ranks, pp, num_ranks);
}

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  absl::string_view digits = text;
  int shift = 0;
  constexpr absl::string_view kSuffixes = "KMGT";
  if (!digits.empty()) {
    const size_t index = kSuffixes.find(digits.back());
    if (index != absl::string_view::npos) {
      shift = 10 * (static_cast<int>(index) + 1);
      digits.remove_suffix(1);
    }
  }
  int64_t count = 0;
  if (!absl::SimpleAtoi(digits, &count) || count < 1 ||
      count > (std::numeric_limits<int64_t>::max() >> shift)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no size; expected bytes such as 512M or 2G"));
  }
  return count << shift;
}

absl::StatusOr<std::unique_ptr<EngineSession>> EngineSession::Open(const EngineFlags& flags,
                                                                   Job& job) {
  const auto layout = flags.Layout(job.size());
  if (!layout.ok()) return UsageError(layout.status());
  const auto wire = ParseWireOptions(flags.wire, flags.hop, flags.norm_codes);
  if (!wire.ok()) return UsageError(wire.status());
  EngineOptions options;
  TW_ASSIGN_OR_RETURN(options.device, ChooseDevice(flags, job));
  options.share_gpus = flags.share_gpus;
  options.captures_steps = !flags.no_cuda_graphs;
  const bool one_stage = layout->num_groups() == 1 && layout->mesh(0).pp_size == 1;
  options.steps_ahead = flags.steps_ahead == "auto"
                            ? (options.device != Device::Cpu() && one_stage ? 1 : 0)
                            : (flags.steps_ahead == "1" ? 1 : 0);
  if (options.steps_ahead > 0 && !one_stage) {
    return UsageError(absl::InvalidArgumentError(
        absl::StrCat("--steps-ahead 1 with ", layout->Description(),
                     ": several stages or groups of ranks have no steps ahead; leave it away")));
  }
  options.on_hang = [&job](const absl::Status& why) {
    PrintError(absl::StrCat("rank ", job.rank(), ": ", why.message()));
    job.bootstrap().Abort(1);
  };
  options.model_dir = flags.model;
  TW_ASSIGN_OR_RETURN(options.dtype, ParseDType(flags.dtype));
  options.wire = *wire;
  options.strategy_cache.dir = CacheDir();
  options.strategy_cache.measure_anew = flags.wire_table == "new";
  options.page_size = flags.page_size;
  options.share_pages = flags.prefix_cache == "on";
  options.max_seqs = flags.max_seqs;
  options.max_step_tokens = flags.max_step_tokens;
  options.step_timeout = absl::Seconds(flags.step_timeout_s);
  if (!flags.kv_memory.empty()) {
    const auto bytes = ParseBytes(flags.kv_memory);
    if (!bytes.ok()) return UsageError(Annotate(bytes.status(), "--kv-memory"));
    options.kv_cache_bytes = *bytes;
  }
  std::unique_ptr<EngineSession> session(new EngineSession());
  session->pool_ = std::make_unique<ThreadPool>(job.NumThreads(flags.threads));
  Progress progress("loading", job.leader());
  TW_ASSIGN_OR_RETURN(
      session->rank_,
      EngineRank::Create(options, *layout, &job.world(), session->pool_.get(),
                         [&](int64_t done, int64_t total) { progress.Update(done, total); }));
  progress.Finish();
  if (job.leader()) {
    session->engine_ = std::make_unique<Engine>(session->rank_.get());
    const ModelConfig& config = session->rank_->config();
    std::string pages;
    for (int group = 0; group < layout->num_groups(); ++group) {
      absl::StrAppend(&pages, group == 0 ? "" : " and ",
                      session->rank_->scheduler_limits(group).num_pages);
    }
    LogInfo(absl::StrCat(
        config.architecture, ", ", config.num_layers, " layers, hidden ", config.hidden, ", ",
        layout->Description(), ", ", session->pool_->num_threads(), " threads a rank, ",
        session->rank_->Report().memory.weight_bytes / 1000000, " MB of weights on rank 0, ", pages,
        " KV pages of ", flags.page_size, " tokens"));
    if (const StrategyTable* table = session->rank_->strategy_table()) {
      std::string picks;
      for (const StrategyTimes& times : table->times) {
        absl::StrAppend(&picks, picks.empty() ? "" : ", ", times.num_rows, ": ",
                        WireStrategyName(table->Pick(times.num_rows)));
      }
      const absl::Duration age = session->rank_->strategies_age();
      LogInfo(absl::StrCat(
          "--wire auto, ", layout->split() ? "prefill group, " : "", "by tokens of a step: ", picks,
          "; measured ",
          age == absl::ZeroDuration() ? "now" : absl::StrCat(absl::FormatDuration(age), " ago")));
    }
  }
  return session;
}

}  // namespace thinwire
