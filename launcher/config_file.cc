#include "launcher/config_file.h"

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

class ConfigFormat final : public CLI::ConfigBase {
 public:
  explicit ConfigFormat(const CLI::App* app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> items = CLI::ConfigBase::from_config(input);
    for (CLI::ConfigItem& item : items) {
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
