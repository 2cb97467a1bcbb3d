// What a user asks for: a prompt and how to continue it. One line of a JSONL file.
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/sampling/sampling.h"

namespace thinwire {

struct GenerationParams {
  int64_t max_tokens = 128;
  SamplingParams sampling;
  std::vector<std::string> stop;  // generation ends before the first of these
  bool ignore_eos = false;
};

struct Prompt {
  std::string id;
  std::optional<std::string> text;  // or:
  std::vector<int32_t> token_ids;   // used as they are, nothing is put in front
  GenerationParams params;
};

// Parses {"id": "a", "prompt": "..."} or {"id": "a", "token_ids": [..]}, optionally with
// max_tokens, temperature, top_p, top_k, seed and stop (a string or a list of strings); what is not
// given comes from `defaults`. "id" may be a string or an integer, and is `default_id` where
// absent. Other members are ignored. InvalidArgument names the member, what was expected and what
// was found.
// Where it fails, `id` is what the line says all the same, or default_id.
absl::StatusOr<Prompt> ParsePrompt(absl::string_view json, const GenerationParams& defaults,
                                   absl::string_view default_id, std::string* id = nullptr);

// Reads a JSONL file line by line; blank lines are passed over. Move-only.
class PromptFile {
 public:
  struct Line {
    int64_t number = 0;             // from 1
    std::string id;                 // the prompt's, also where the rest of the line is wrong
    absl::StatusOr<Prompt> prompt;  // errors start with "FILE:NUMBER: "
  };

  // NotFound, PermissionDenied, FailedPrecondition (a folder).
  static absl::StatusOr<PromptFile> Open(const std::string& path, const GenerationParams& defaults);

  // The next line, or nothing at the end of the file.
  std::optional<Line> Next();

 private:
  PromptFile() = default;

  std::string path_;
  GenerationParams defaults_;
  std::ifstream file_;
  int64_t line_number_ = 0;
};

}  // namespace thinwire
