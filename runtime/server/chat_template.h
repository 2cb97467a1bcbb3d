// How the turns of a conversation become one prompt.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// A template is data, not a program: text around each role's messages, as a JSON object
//   {"begin": "<s>", "system": ["<<SYS>>", "<</SYS>>"], "user": ["[INST] ", " [/INST]"],
//    "assistant": ["", "</s>"], "generate": "", "stop": ["[INST]"], "system_in_user": true}
// "begin" stands in front of all, "generate" where the answer is to begin. "system_in_user": the
// system's message goes inside the first user message instead of in front of it.
//
// Only the template itself may spell special tokens: a message that does is refused.
// Immutable.
class ChatTemplate {
 public:
  // The name of a built-in template (BuiltInNames), or a JSON file. NotFound names both choices.
  static absl::StatusOr<ChatTemplate> Load(absl::string_view name_or_path);

  // What dir/tokenizer_config.json has as its "chat_template".
  struct OwnTemplate;
  static absl::StatusOr<OwnTemplate> OfModel(const std::string& dir);

  // "chatml", "llama-2", "llama-3", "mistral", "plain".
  static std::vector<std::string> BuiltInNames();

  const std::string& name() const { return name_; }
  const std::vector<std::string>& stop() const { return stop_; }

  // The prompt up to where the answer begins. InvalidArgument: no messages, a role that the
  // template does not have, a system message that is not the first, a special token in a message.
  absl::StatusOr<std::vector<int32_t>> Encode(const std::vector<ChatMessage>& messages,
                                              const Tokenizer& tokenizer) const;

  // The prompt in pieces: text of the template, and text of messages.
  struct Piece {
    std::string text;
    bool trusted = false;

    friend bool operator==(const Piece& a, const Piece& b) = default;
  };
  absl::StatusOr<std::vector<Piece>> Render(const std::vector<ChatMessage>& messages) const;

 private:
  struct Around {
    std::string before, after;
  };

  static absl::StatusOr<ChatTemplate> Parse(absl::string_view json, std::string name);

  std::string name_;
  std::string begin_;
  std::string generate_;
  std::map<std::string, Around> roles_;
  std::vector<std::string> stop_;
  bool system_in_user_ = false;
};

struct ChatTemplate::OwnTemplate {
  bool exists = false;
  std::optional<ChatTemplate> known;  // the built-in one whose marks it uses
};

}  // namespace thinwire
