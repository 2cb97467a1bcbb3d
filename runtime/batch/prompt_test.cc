#include "runtime/batch/prompt.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

TEST(PromptTest, LineOverridesDefaults) {
  GenerationParams defaults;
  defaults.max_tokens = 9;
  defaults.sampling.temperature = 0.7f;
  const Prompt prompt =
      ParsePrompt(R"({"id":"a","prompt":"hi","max_tokens":3,"top_k":5,"seed":11,"stop":"."})",
                  defaults, "1")
          .value();
  EXPECT_EQ(prompt.id, "a");
  EXPECT_EQ(prompt.text, "hi");
  EXPECT_EQ(prompt.params.max_tokens, 3);
  EXPECT_EQ(prompt.params.sampling.temperature, 0.7f);
  EXPECT_EQ(prompt.params.sampling.top_k, 5);
  EXPECT_EQ(prompt.params.sampling.seed, 11u);
  EXPECT_EQ(prompt.params.stop, std::vector<std::string>({"."}));
}

TEST(PromptTest, TokenIdsAndNullsAndIntegerIds) {
  const Prompt prompt =
      ParsePrompt(R"({"id":7,"token_ids":[1,2],"max_tokens":null,"stop":["x","yz"]})", {}, "1")
          .value();
  EXPECT_EQ(prompt.id, "7");
  EXPECT_FALSE(prompt.text.has_value());
  EXPECT_EQ(prompt.token_ids, std::vector<int32_t>({1, 2}));
  EXPECT_EQ(prompt.params.max_tokens, GenerationParams().max_tokens);
  EXPECT_EQ(prompt.params.stop.size(), 2u);
  EXPECT_EQ(ParsePrompt(R"({"prompt":""})", {}, "12")->id, "12");
}

TEST(PromptTest, ErrorsNameMemberExpectedAndFound) {
  const struct {
    const char* line;
    const char* expected;
  } cases[] = {
      {"{", "not valid JSON"},
      {"[1]", "expected a JSON object, found [1]"},
      {"{}", "found neither"},
      {R"({"prompt":"a","token_ids":[1]})", "found both"},
      {R"({"prompt":3})", R"("prompt": expected a string, found 3)"},
      {R"({"token_ids":"x"})", "expected a list of integers"},
      {R"({"token_ids":[-1]})", "expected token ids, found -1"},
      {R"({"token_ids":[1.5]})", "found 1.5"},
      {R"({"prompt":"a","max_tokens":0})", R"("max_tokens": expected an integer from 1)"},
      {R"({"prompt":"a","seed":18446744073709551615})", "\"seed\""},
      {R"({"prompt":"a","temperature":"hot"})", "\"temperature\""},
      {R"({"prompt":"a","temperature":-1})", "temperature"},
      {R"({"prompt":"a","top_p":0})", "top_p"},
      {R"({"prompt":"a","stop":""})", "\"stop\""},
      {R"({"prompt":"a","id":[]})", "\"id\""},
  };
  for (const auto& test : cases) {
    const absl::Status status = ParsePrompt(test.line, {}, "1").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.line;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.expected)) << test.line;
  }
}

TEST(PromptFileTest, BadLinesAreNumberedAndTheOthersRead) {
  const TestFolder folder;
  const std::string path =
      folder.Write("p.jsonl", "{\"prompt\":\"one\"}\n\n{oops\n  \r\n{\"prompt\":\"two\"}");
  PromptFile file = PromptFile::Open(path, {}).value();
  std::optional<PromptFile::Line> line = file.Next();
  EXPECT_EQ(line->prompt->id, "1");
  line = file.Next();
  EXPECT_EQ(line->number, 3);
  EXPECT_EQ(line->prompt.status().message(), path + ":3: not valid JSON");
  line = file.Next();
  EXPECT_EQ(line->prompt->text, "two");
  EXPECT_EQ(line->prompt->id, "5");
  EXPECT_FALSE(file.Next().has_value());
}

TEST(PromptFileTest, BadLinesKeepTheirId) {
  const TestFolder folder;
  PromptFile file =
      PromptFile::Open(folder.Write("p.jsonl", "{\"id\":\"a\"}\n{\"id\":[]}"), {}).value();
  std::optional<PromptFile::Line> line = file.Next();
  EXPECT_FALSE(line->prompt.ok());
  EXPECT_EQ(line->id, "a");
  line = file.Next();
  EXPECT_FALSE(line->prompt.ok());
  EXPECT_EQ(line->id, "2");
}

TEST(PromptFileTest, DeepNestingIsAnErrorNotAnOverflow) {
  const std::string deep(1000000, '[');
  for (const std::string& line :
       {deep, "{\"stop\":" + deep + std::string(deep.size(), ']') + "}", "{\"id\":" + deep}) {
    EXPECT_EQ(ParsePrompt(line, {}, "1").status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(PromptFileTest, MissingFilesAndFoldersAreNamed) {
  const TestFolder folder;
  EXPECT_EQ(PromptFile::Open("/no/such/file", {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(PromptFile::Open(folder.path(), {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace thinwire
