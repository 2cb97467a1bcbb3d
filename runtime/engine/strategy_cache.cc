#include "runtime/engine/strategy_cache.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "parallel/wire/message.h"
#include "runtime/checkpoint/sha256.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFormatVersion = 1;
constexpr size_t kMaxHostBytes = 256;
constexpr int64_t kMaxRows = int64_t{1} << 30;
constexpr double kMaxUs = 1e12;

// Clocks of hosts that differ by less are as good as equal.
constexpr absl::Duration kClockSkew = absl::Minutes(5);

using Host = std::array<char, kMaxHostBytes>;

// "node7 net:[4026531840]", with a GPU also its name.
Host ThisHost(Device device) {
  Host host = {};
  char name[128] = {};
  gethostname(name, sizeof(name) - 1);
  std::error_code error;
  const std::string network = fs::read_symlink("/proc/self/ns/net", error).string();
  std::string text = absl::StrCat(name, " ", network);
  if (device != Device::Cpu()) {
    const absl::StatusOr<DeviceProperties> gpu = GetDeviceProperties(device);
    absl::StrAppend(&text, " ", gpu.ok() ? gpu->name : DeviceName(device));
  }
  text = text.substr(0, kMaxHostBytes - 1);
  std::copy(text.begin(), text.end(), host.begin());
  return host;
}

bool IsOfTransports(absl::string_view variable) {
  for (const absl::string_view prefix :
       {"OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mtl", "OMPI_MCA_coll", "NCCL_ALGO", "NCCL_HOSTID",
        "NCCL_NET", "NCCL_P2P", "NCCL_PROTO", "NCCL_SHM"}) {
    if (variable.substr(0, prefix.size()) == prefix) return true;
  }
  return false;
}

std::vector<std::string> TransportSettings() {
  std::vector<std::string> settings;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (IsOfTransports(*entry)) settings.emplace_back(*entry);
  }
  std::sort(settings.begin(), settings.end());
  return settings;
}

absl::StatusOr<StrategyTable> TableFromJson(const JsonFields& fields, int64_t width) {
  StrategyTable table = {.width = width, .times = {}};
  const nlohmann::json* times = fields.Get("times");
  if (times == nullptr || !times->is_array() || times->empty()) {
    return fields.Expected("times", "an array that is not empty");
  }
  for (const nlohmann::json& value : *times) {
    TW_ASSIGN_OR_RETURN(const JsonFields entry, JsonFields::Create(value, fields.context()));
    StrategyTimes& found = table.times.emplace_back();
    TW_ASSIGN_OR_RETURN(found.num_rows, entry.Int("rows", 1, kMaxRows));
    const nlohmann::json* us = entry.Get("us");
    if (us == nullptr || !us->is_array() || us->size() != AutoStrategies().size()) {
      return entry.Expected("us", "a time for each strategy");
    }
    for (const nlohmann::json& time : *us) {
      if (!time.is_number() || !(time.get<double>() >= 0.0 && time.get<double>() <= kMaxUs)) {
        return entry.Expected("us", "times in microseconds");
      }
      found.us.push_back(time.get<double>());
    }
    const size_t n = table.times.size();
    if (n > 1 && table.times[n - 2].num_rows >= found.num_rows) {
      return entry.Expected("rows", "more than in the entry before");
    }
  }
  return table;
}

absl::StatusOr<CachedStrategies> ReadFile(const std::string& path, const nlohmann::json& topology,
                                          int64_t width, absl::Duration max_age) {
  TW_ASSIGN_OR_RETURN(const nlohmann::json value, ReadJsonFile(path));
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, path));
  TW_ASSIGN_OR_RETURN(const int64_t version, fields.Int("format_version"));
  const nlohmann::json* found = fields.Get("topology");
  if (version != kFormatVersion || found == nullptr || *found != topology) {
    return absl::NotFoundError(absl::StrCat(path, ": is of another topology"));
  }
  TW_ASSIGN_OR_RETURN(const int64_t measured_at, fields.Int("measured_at"));
  CachedStrategies cached;
  const absl::Duration since = absl::Now() - absl::FromUnixSeconds(measured_at);
  cached.age = std::max(since, absl::Seconds(1));
  if (cached.age > max_age || since < -kClockSkew)
    return absl::NotFoundError(absl::StrCat(path, ": is too old, or of a time to come"));
  TW_ASSIGN_OR_RETURN(cached.table, TableFromJson(fields, width));
  return cached;
}

absl::Status WriteFile(const std::string& path, const nlohmann::json& topology,
                       const StrategyTable& table) {
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  nlohmann::ordered_json json = {{"format_version", kFormatVersion},
                                 {"measured_at", absl::ToUnixSeconds(absl::Now())},
                                 {"topology", topology},
                                 {"times", nlohmann::ordered_json::array()}};
  for (const StrategyTimes& entry : table.times) {
    json["times"].push_back({{"rows", entry.num_rows}, {"us", entry.us}});
  }
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  return WriteFileAtomically(path, absl::StrCat(json.dump(2, ' ', false, replace), "\n"));
}

// Rank 0's, to all: [age in seconds, or 0 where there is none; times], times of num_rows and us.
absl::StatusOr<std::optional<CachedStrategies>> Broadcast(
    const std::optional<CachedStrategies>& mine, int64_t width, Communicator& tp, Stream& stream) {
  const size_t num_strategies = AutoStrategies().size();
  int64_t header[2] = {};
  if (mine.has_value()) {
    header[0] = absl::ToInt64Seconds(mine->age);
    header[1] = static_cast<int64_t>(mine->table.times.size());
  }
  TW_RETURN_IF_ERROR(tp.Broadcast(TensorView(header, DType::kI64, {2}), 0, stream));
  if (header[1] == 0) return std::optional<CachedStrategies>();
  std::vector<int64_t> words;
  if (mine.has_value()) {
    for (const StrategyTimes& entry : mine->table.times) {
      words.push_back(entry.num_rows);
      // Their bits: on all ranks what one measured.
      for (const double us : entry.us) words.push_back(std::bit_cast<int64_t>(us));
    }
  }
  words.resize(static_cast<size_t>(header[1]) * (1 + num_strategies));
  TW_RETURN_IF_ERROR(tp.Broadcast(
      TensorView(words.data(), DType::kI64, {static_cast<int64_t>(words.size())}), 0, stream));
  CachedStrategies cached = {.table = {.width = width, .times = {}},
                             .age = absl::Seconds(header[0])};
  for (size_t i = 0; i < words.size(); i += 1 + num_strategies) {
    StrategyTimes& entry = cached.table.times.emplace_back();
    entry.num_rows = words[i];
    for (size_t s = 1; s <= num_strategies; ++s) {
      entry.us.push_back(std::bit_cast<double>(words[i + s]));
    }
  }
  return std::optional<CachedStrategies>(std::move(cached));
}

}  // namespace

absl::StatusOr<CachedStrategies> LoadOrMeasureStrategies(const StrategyCacheOptions& cache,
                                                         Communicator& tp, Communicator& control,
                                                         const WireOptions& options, int64_t width,
                                                         int64_t max_rows, DType dtype,
                                                         absl::Duration budget, Stream& stream) {
  const Host host = ThisHost(stream.device());
  std::vector<Host> hosts(tp.size());
  Stream host_stream = Stream::Cpu(&stream.pool());
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Host));
  TW_RETURN_IF_ERROR(control.AllGather(ConstTensorView(host.data(), DType::kU8, {kBytes}),
                                       TensorView(hosts.data(), DType::kU8, {kBytes * tp.size()}),
                                       host_stream));
  nlohmann::json topology = {{"wire_version", kWireVersion},
                             {"hosts", nlohmann::json::array()},
                             {"threads", stream.pool().num_threads()},
                             {"width", width},
                             {"max_rows", max_rows},
                             {"dtype", std::string(DTypeName(dtype))},
                             {"norm_bits", NormBits(options)},
                             {"strategies", nlohmann::json::array()},
                             {"transports", TransportSettings()}};
  for (const Host& rank_host : hosts) topology["hosts"].push_back(rank_host.data());
  for (const WireStrategy& strategy : AutoStrategies()) {
    topology["strategies"].push_back(WireStrategyName(strategy));
  }
  // Bytes of a host's name need not be UTF-8.
  const std::string text = topology.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  topology = nlohmann::json::parse(text);
  const std::string hash =
      Sha256Hex(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size()));
  const std::string path = absl::StrCat(cache.dir, "/wire-", hash.substr(0, 16), ".json");

  const bool keeps = tp.rank() == 0 && !cache.dir.empty();
  std::optional<CachedStrategies> found;
  if (keeps && !cache.measure_anew) {
    absl::StatusOr<CachedStrategies> read = ReadFile(path, topology, width, cache.max_age);
    if (read.ok()) found = *std::move(read);
  }
  TW_ASSIGN_OR_RETURN(found, Broadcast(found, width, control, host_stream));
  if (found.has_value()) return *std::move(found);
  CachedStrategies measured = {.table = {}, .age = absl::ZeroDuration()};
  TW_ASSIGN_OR_RETURN(measured.table,
                      MeasureStrategies(tp, options, width, max_rows, dtype, budget, stream));
  // A folder that cannot be written costs the next job two seconds, and this one nothing.
  if (keeps) WriteFile(path, topology, measured.table).IgnoreError();
  return measured;
}

}  // namespace thinwire
