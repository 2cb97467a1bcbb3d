#include "launcher/report/run_label.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"

namespace thinwire {

std::string ModelName(const RunRecord& run) {
  // A folder may be given with a slash at its end.
  const std::string name =
      std::filesystem::path(run.model + "/.").lexically_normal().parent_path().filename();
  return name.empty() ? run.model : name;
}

std::string MeshName(const RunRecord& run) {
  return absl::StrCat("tp ", TpName(run), " × pp ", run.pp);
}

std::string TpName(const RunRecord& run) {
  return run.decode_tp == 0 ? absl::StrCat(run.tp) : absl::StrCat(run.tp, " + ", run.decode_tp);
}

std::vector<std::string> RunLabels(absl::Span<const RunRecord> runs) {
  const std::function<std::string(const RunRecord&)> parts[] = {
      [](const RunRecord& run) { return run.dtype; },
      [](const RunRecord& run) { return ModelName(run); },
      [](const RunRecord& run) { return run.scheme; },
      MeshName,
  };
  std::vector<std::string> labels;
  for (const RunRecord& run : runs) labels.push_back(run.wire);
  for (const auto& part : parts) {
    if (std::set<std::string>(labels.begin(), labels.end()).size() == labels.size()) break;
    std::set<std::string> values;
    for (const RunRecord& run : runs) values.insert(part(run));
    if (values.size() == 1) continue;
    for (size_t i = 0; i < labels.size(); ++i) {
      if (!part(runs[i]).empty()) absl::StrAppend(&labels[i], ", ", part(runs[i]));
    }
  }
  std::map<std::string, int> times;
  for (std::string& label : labels) {
    const int time = ++times[label];
    if (time > 1) absl::StrAppend(&label, " (", time, ")");
  }
  return labels;
}

std::vector<std::string> SeriesLabels(absl::Span<const CommRecord> comm) {
  const bool ranks_differ = std::any_of(comm.begin(), comm.end(), [&](const CommRecord& record) {
    return record.ranks != comm.front().ranks;
  });
  std::vector<std::string> labels;
  for (const CommRecord& record : comm) {
    labels.push_back(ranks_differ ? absl::StrCat(record.strategy, ", ", record.ranks, " ranks")
                                  : record.strategy);
  }
  return labels;
}

std::string Shortened(absl::string_view text, size_t max_chars) {
  size_t chars = 0;
  size_t cut = 0;  // where the last character that fits begins
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xc0) == 0x80) continue;
    if (++chars == max_chars) cut = i;
    if (chars > max_chars) return absl::StrCat(text.substr(0, cut), "…");
  }
  return std::string(text);
}

}  // namespace thinwire
