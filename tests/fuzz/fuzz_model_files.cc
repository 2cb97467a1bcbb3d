// Files of a model folder.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/json/json_file.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_targets.h"

namespace thinwire {
namespace {

// A folder with one file, gone with this object.
class Folder {
 public:
  Folder(const char* name, const uint8_t* data, size_t size) {
    std::string path = std::filesystem::temp_directory_path() / "thinwire-fuzz-XXXXXX";
    TW_CHECK(mkdtemp(path.data()) != nullptr);
    path_ = path;
    std::ofstream(path_ + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void LoadAndEncode(const std::string& dir) {
  const auto tokenizer = LoadTokenizer(dir);
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode("Once upon a time,  caf\u00e9 12.5\n\xff", true);
  if (ids.ok()) (*tokenizer)->Decode(*ids, /*skip_special_tokens=*/false);
}

}  // namespace

void FuzzSafetensors(const uint8_t* data, size_t size) {
  ParseSafetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz").status().IgnoreError();
}

void FuzzModelConfig(const uint8_t* data, size_t size) {
  const Folder folder("config.json", data, size);
  LoadModelConfig(folder.path()).status().IgnoreError();
}

void FuzzTokenizerJson(const uint8_t* data, size_t size) {
  const Folder folder("tokenizer.json", data, size);
  LoadAndEncode(folder.path());
}

void FuzzSentencePiece(const uint8_t* data, size_t size) {
  const Folder folder("tokenizer.model", data, size);
  LoadAndEncode(folder.path());
}

}  // namespace thinwire
