#include "launcher/config_file.h"

#include <CLI/CLI.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace thinwire {
namespace {

// The library cuts lines at the first '#', wherever it is.
bool HasQuotedComment(absl::string_view line) {
  while (true) {
    const size_t mark = line.find_first_of("'\"#");
    if (mark == absl::string_view::npos || line[mark] == '#') return false;
    const size_t end = line.find(line[mark], mark + 1);
    if (end == absl::string_view::npos) return false;
    if (line.substr(mark, end - mark).find('#') != absl::string_view::npos) return true;
    line.remove_prefix(end + 1);
  }
}

class ConfigFormat final : public CLI::ConfigBase {
 public:
  explicit ConfigFormat(const CLI::App* app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::stringstream lines;
    std::string line;
    for (int number = 1; std::getline(input, line); ++number) {
      if (HasQuotedComment(line)) {
        throw CLI::ConfigError(
            absl::StrCat("--config: line ", number, ": expected no '#' in quotes"));
      }
      lines << line << '\n';
    }
    std::vector<CLI::ConfigItem> items = CLI::ConfigBase::from_config(lines);
    std::set<std::string> names;
    for (CLI::ConfigItem& item : items) {
      if (item.parents.empty() && !names.insert(item.name).second) {
        throw CLI::ConfigError(absl::StrCat("--config: '", item.name, "' is there twice"));
      }
      if (!item.parents.empty()) {
        throw CLI::ConfigError(absl::StrCat("--config: expected options of one command, found [",
                                            item.parents.front(), "]"));
      }
      item.parents = OwnerOf(item.name);
    }
    return items;
  }

 private:
  // The commands on the way to the innermost one that has this option.
  std::vector<std::string> OwnerOf(const std::string& name) const {
    std::vector<std::string> path, owner;
    bool found = false;
    const CLI::App* at = app_;
    while (true) {
      const CLI::Option* option = at->get_option_no_throw("--" + name);
      if (option != nullptr && option != at->get_help_ptr() && option != app_->get_version_ptr() &&
          option != app_->get_config_ptr()) {
        owner = path;
        found = true;
      }
      if (at->get_subcommands().empty()) break;
      at = at->get_subcommands().back();
      path.push_back(at->get_name());
    }
    if (!found) {
      throw CLI::ConfigError(
          absl::StrCat("--config: ", at->get_name(), " has no option '", name, "'"));
    }
    return owner;
  }

  const CLI::App* const app_;
};

}  // namespace

std::shared_ptr<CLI::Config> MakeConfigFormat(const CLI::App* app) {
  return std::make_shared<ConfigFormat>(app);
}

}  // namespace thinwire
