// thinwire check: what every rank finds on its host, before a long job starts there.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/device.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/linear/blas.h"
#include "launcher/command.h"
#include "launcher/gpu_findings.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/wire/strategy_table.h"
#include "runtime/engine/memory_report.h"

namespace thinwire {
namespace {

// One rank's findings, exchanged as bytes.
struct Findings {
  char host[64] = {};
  char processor[64] = {};
  char problem[256] = {};  // empty: none
  int32_t num_processors = 0;
  int32_t num_threads = 0;
  int32_t num_gpus = 0;
  int32_t local_rank = 0;
  int64_t available_bytes = 0;
  double read_rate = 0.0;   // bytes/s
  double sgemm_rate = 0.0;  // flop/s
  GpuFindings gpu;
};

// What the table of strategies is measured with: rows as wide as a 7B model's.
constexpr int64_t kTableWidth = 4096;
constexpr int64_t kTableRows = 512;
constexpr absl::Duration kTableBudget = absl::Seconds(2);

struct LinkFindings {
  double small_us = 0.0;    // all-reduce of 8 KiB
  double large_rate = 0.0;  // of 16 MiB: bytes/s of the tensor
  StrategyTable strategies;
  absl::Status gpus_status;  // why the GPUs' are missing
  GpuLinkFindings gpus;
};

// "13.0" of 13000.
std::string CudaVersion(int32_t version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

template <size_t N>
void CopyText(absl::string_view text, char (&to)[N]) {
  const size_t length = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

Findings Look(Job& job, ThreadPool& pool) {
  Findings findings;
  char host[64] = {};
  (void)gethostname(host, sizeof(host) - 1);
  CopyText(host, findings.host);
  CopyText(ProcessorName(), findings.processor);
  findings.num_processors = static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  findings.num_threads = pool.num_threads();
  findings.num_gpus = NumCudaDevices();
  findings.local_rank = job.bootstrap().local_rank();
  findings.available_bytes = AvailableHostBytes();
  const absl::Status blas = BlasSelfTest();
  if (!blas.ok()) CopyText(blas.message(), findings.problem);
  findings.read_rate = MeasureReadRate(int64_t{256} << 20, pool);
  findings.sgemm_rate = MeasureSgemmRate(pool);
  findings.gpu = LookAtGpu(job);
  return findings;
}

// Median seconds of an all-reduce of `num_floats` fp32 over all ranks.
absl::StatusOr<double> TimeAllReduce(Communicator& world, int64_t num_floats, int repeats,
                                     Stream& stream) {
  std::vector<float> data(num_floats, 0.0f);
  const TensorView view(data.data(), DType::kF32, {num_floats});
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    TW_RETURN_IF_ERROR(world.Barrier(stream));
    const auto start = std::chrono::steady_clock::now();
    TW_RETURN_IF_ERROR(world.AllReduce(view, ReduceOp::kSum, stream));
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

class CheckCommand : public Command {
 public:
  explicit CheckCommand(CLI::App& app)
      : app_(app.add_subcommand("check", "Look at every rank's host: processors, memory, links")) {
    app_->add_option("--threads", threads_, "Threads of each rank; 0: its share of the host")
        ->type_name("N")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app_->add_flag("--json", json_, "One JSON object on standard output");
    app_->footer("Start it as the job will be started, e.g. mpirun -np 4 thinwire check");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    ThreadPool pool(job.NumThreads(threads_));
    Stream stream = Stream::Cpu(&pool);
    const Findings mine = Look(job, pool);
    constexpr auto kBytes = static_cast<int64_t>(sizeof(Findings));
    std::vector<Findings> all(job.size());
    TW_RETURN_IF_ERROR(
        job.world().AllGather(ConstTensorView(&mine, DType::kU8, {kBytes}),
                              TensorView(all.data(), DType::kU8, {kBytes * job.size()}), stream));
    LinkFindings link;
    if (job.size() > 1) {
      TW_ASSIGN_OR_RETURN(const double small, TimeAllReduce(job.world(), 2048, 200, stream));
      TW_ASSIGN_OR_RETURN(const double large, TimeAllReduce(job.world(), 4 << 20, 5, stream));
      link.small_us = small * 1e6;
      link.large_rate = (16 << 20) / large;
      TW_ASSIGN_OR_RETURN(link.strategies,
                          MeasureStrategies(job.world(), WireOptions(), kTableWidth, kTableRows,
                                            DType::kF32, kTableBudget, stream));
      if (BuiltWithCuda()) {
        const absl::StatusOr<GpuLinkFindings> gpus = MeasureGpuLinks(job);
        link.gpus_status = gpus.status();
        if (gpus.ok()) link.gpus = *gpus;
      }
    }
    if (job.leader()) {
      TW_RETURN_IF_ERROR(WriteOutput(json_ ? ToJson(job, all, link) : ToText(job, all, link)));
    }
    for (int rank = 0; rank < job.size(); ++rank) {
      if (all[rank].problem[0] != '\0') {
        return absl::InternalError(
            absl::StrCat("rank ", rank, " on ", all[rank].host, ": ", all[rank].problem));
      }
    }
    return absl::OkStatus();
  }

 private:
  static std::string ToText(Job& job, const std::vector<Findings>& all, const LinkFindings& link) {
    std::string text = absl::StrFormat(
        "thinwire %s, %d %s, %s\n"
        "BLAS: %s\n"
        "CUDA: %s\n"
        "rank  host              processors  threads  GPUs  free GiB  read GB/s  sgemm GF/s\n",
        THINWIRE_VERSION, job.size(), job.size() == 1 ? "rank" : "ranks",
        job.bootstrap().Description(), BlasDescription(),
        BuiltWithCuda() ? absl::StrCat("built in, NCCL ", NcclVersion()) : "not in this build");
    for (int rank = 0; rank < job.size(); ++rank) {
      const Findings& found = all[rank];
      absl::StrAppend(&text,
                      absl::StrFormat("%4d  %-16.16s  %10d  %7d  %4d  %8.1f  %9.1f  %10.1f\n", rank,
                                      found.host, found.num_processors, found.num_threads,
                                      found.num_gpus, found.available_bytes / 1073741824.0,
                                      found.read_rate / 1e9, found.sgemm_rate / 1e9));
    }
    if (BuiltWithCuda()) AppendGpus(all, link, text);
    if (job.size() > 1) {
      absl::StrAppend(&text,
                      absl::StrFormat("all-reduce over all ranks: 8 KiB in %.1f us, 16 MiB at "
                                      "%.2f GB/s\n",
                                      link.small_us, link.large_rate / 1e9));
      absl::StrAppend(&text, "sums of rows of ", kTableWidth,
                      " over all ranks, what --wire auto would pick:\n",
                      link.strategies.DebugString());
    }
    return text;
  }

  static void AppendGpus(const std::vector<Findings>& all, const LinkFindings& link,
                         std::string& text) {
    for (size_t rank = 0; rank < all.size(); ++rank) {
      const GpuFindings& gpu = all[rank].gpu;
      if (gpu.problem[0] != '\0') {
        absl::StrAppend(&text, "rank ", rank, ": no GPU: ", gpu.problem, "\n");
        continue;
      }
      absl::StrAppend(
          &text, absl::StrFormat("rank %d: cuda:%d, %s at %s, %.1f of %.1f GiB free, driver %s "
                                 "(CUDA %s, this program %s), peer access to %d of %d others\n",
                                 rank, gpu.index, gpu.name, gpu.bus_id,
                                 gpu.free_bytes / 1073741824.0, gpu.memory_bytes / 1073741824.0,
                                 gpu.driver[0] == '\0' ? "unknown" : gpu.driver,
                                 CudaVersion(gpu.driver_cuda), CudaVersion(gpu.runtime_cuda),
                                 gpu.peers, gpu.count - 1));
    }
    if (all.size() == 1) return;
    if (!link.gpus_status.ok()) {
      absl::StrAppend(&text, "no links between GPUs: ", link.gpus_status.message(), "\n");
      return;
    }
    absl::StrAppend(&text, absl::StrFormat("all-reduce over all GPUs: 8 KiB in %.1f us, 64 MiB at "
                                           "%.1f GB/s\n",
                                           link.gpus.small_us, link.gpus.large_rate / 1e9));
  }

  static nlohmann::ordered_json GpuJson(const GpuFindings& gpu) {
    if (gpu.problem[0] != '\0') return {{"problem", gpu.problem}};
    return {{"index", gpu.index},
            {"name", gpu.name},
            {"bus_id", gpu.bus_id},
            {"memory_bytes", gpu.memory_bytes},
            {"free_bytes", gpu.free_bytes},
            {"driver", gpu.driver},
            {"driver_cuda", CudaVersion(gpu.driver_cuda)},
            {"runtime_cuda", CudaVersion(gpu.runtime_cuda)},
            {"seen", gpu.count},
            {"peers", gpu.peers}};
  }

  static std::string ToJson(Job& job, const std::vector<Findings>& all, const LinkFindings& link) {
    nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
    for (int rank = 0; rank < job.size(); ++rank) {
      const Findings& found = all[rank];
      ranks.push_back({{"rank", rank},
                       {"host", found.host},
                       {"local_rank", found.local_rank},
                       {"processor", found.processor},
                       {"processors", found.num_processors},
                       {"threads", found.num_threads},
                       {"gpus", found.num_gpus},
                       {"available_bytes", found.available_bytes},
                       {"read_bytes_per_second", found.read_rate},
                       {"sgemm_flops", found.sgemm_rate},
                       {"gpu", GpuJson(found.gpu)},
                       {"problem", found.problem}});
    }
    nlohmann::ordered_json strategies = nlohmann::ordered_json::array();
    for (const StrategyTimes& times : link.strategies.times) {
      nlohmann::ordered_json entry = {{"rows", times.num_rows}};
      for (size_t i = 0; i < times.us.size(); ++i) {
        entry[WireStrategyName(AutoStrategies()[i]) + "_us"] = times.us[i];
      }
      entry["picked"] = WireStrategyName(link.strategies.Pick(times.num_rows));
      strategies.push_back(std::move(entry));
    }
    const nlohmann::ordered_json json = {
        {"version", THINWIRE_VERSION},
        {"launcher", job.bootstrap().Description()},
        {"blas", BlasDescription()},
        {"cuda", BuiltWithCuda()},
        {"all_reduce_8k_us", link.small_us},
        {"all_reduce_16m_bytes_per_second", link.large_rate},
        {"nccl", NcclVersion()},
        {"gpus_all_reduce_8k_us", link.gpus.small_us},
        {"gpus_all_reduce_64m_bytes_per_second", link.gpus.large_rate},
        {"ranks", std::move(ranks)},
        {"strategies_width", kTableWidth},
        {"strategies", std::move(strategies)}};
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }

  CLI::App* app_;
  int threads_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeCheckCommand(CLI::App& app) {
  return std::make_unique<CheckCommand>(app);
}

}  // namespace thinwire
