// What LoadTokenizer says about files that are missing, broken or beyond what is supported.
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_testing.h"

namespace thinwire {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

json Minimal() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3},
              "merges": [["a", "b"], "ab b"]}})");
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const json& tokenizer) {
  const TempFolder folder;
  folder.Write("tokenizer.json", tokenizer.dump());
  return LoadTokenizer(folder.path());
}

// One line, with the file's name and `part`.
void ExpectError(const json& tokenizer, absl::StatusCode code, absl::string_view part) {
  const absl::Status status = Load(tokenizer).status();
  EXPECT_EQ(status.code(), code) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("tokenizer.json: "));
  EXPECT_THAT(message, HasSubstr(std::string(part)));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

TEST(LoadTokenizerTest, AMinimalFileWorks) {
  const auto tokenizer = Load(Minimal());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("abbab<s>?b", true).value(), ElementsAre(3, 2, 4, 1));
  EXPECT_EQ((*tokenizer)->vocab_size(), 5);
  EXPECT_EQ((*tokenizer)->TokenToId("ab"), 2);
  EXPECT_EQ((*tokenizer)->TokenToId("zz"), -1);
  EXPECT_EQ((*tokenizer)->bos_id(), -1);
}

TEST(LoadTokenizerTest, NotFoundNamesBothFiles) {
  const TempFolder folder;
  const absl::Status status = LoadTokenizer(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder.path() + "/tokenizer.json"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder.path() + "/tokenizer.model"));
}

TEST(LoadTokenizerTest, BrokenFilesAreInvalid) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}) {
    const TempFolder folder;
    folder.Write(name, "{\"model\": ");
    const absl::Status status = LoadTokenizer(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
}

TEST(LoadTokenizerTest, WrongStructureIsInvalidAndNamed) {
  const auto with = [](const char* pointer, const json& value) {
    json changed = Minimal();
    changed[json::json_pointer(pointer)] = value;
    return changed;
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(json::array(), invalid, "expected an object");
  ExpectError(json::object(), invalid, "no key \"model\"");
  json no_vocab = Minimal();
  no_vocab["model"].erase("vocab");
  ExpectError(no_vocab, invalid, "model: no key \"vocab\"");
  ExpectError(with("/model/vocab/b", "x"), invalid, "vocab[\"b\"]: expected an id");
  ExpectError(with("/model/vocab/\n", "x"), invalid, "vocab[\"\\n\"]: expected an id");
  ExpectError(with("/model/vocab/b", -1), invalid, "found -1");
  ExpectError(with("/model/vocab/b", 4000000000), invalid, "expected an id");
  ExpectError(with("/model/vocab/b", 0), invalid, "both have id 0");
  ExpectError(with("/model/merges/1", json::array({"ab", "c"})), invalid,
              "merges[1]: token \"c\" is not in the vocabulary");
  ExpectError(with("/model/merges/0", "b a"), invalid, "\"ba\" is not in the vocabulary");
  ExpectError(with("/model/merges/0", "a b b"), invalid, "merges[0]: expected");
  ExpectError(with("/model/merges/0", 7), invalid, "merges[0]: expected");
  ExpectError(with("/model/merges", json::object()), invalid, "model.merges: expected an array");
  ExpectError(with("/model/unk_token", "<unk>"), invalid, "unk_token: \"<unk>\"");
  ExpectError(with("/model/byte_fallback", 1), invalid, "expected true or false, found 1");
  ExpectError(with("/added_tokens/0/id", 1), invalid, "belongs to \"b\"");
  ExpectError(with("/added_tokens/0/id", "x"), invalid, "added_tokens[0].id: expected an integer");
  ExpectError(with("/added_tokens/1", {{"id", 4}, {"content", "y"}}), invalid,
              "two tokens have id 4");
  ExpectError(with("/pre_tokenizer",
                   {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}),
              invalid, "pre_tokenizer.pattern: regular expression \"(a\"");
  ExpectError(with("/post_processor", {{"type", "TemplateProcessing"},
                                       {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}},
                                       {"special_tokens", json::object()}}),
              invalid, "no key \"<s>\"");
}

TEST(LoadTokenizerTest, UnknownComponentsAreUnimplementedWithAListOfTheKnown) {
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  for (const char* member : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    json changed = Minimal();
    changed[member] = {{"type", "Mystery"}};
    ExpectError(changed, unimplemented,
                absl::StrCat(member, ": Mystery is not supported; supported: "));
  }
  json changed = Minimal();
  changed["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Precompiled"}}}}};
  ExpectError(changed, unimplemented, "normalizer.normalizers[0]: Precompiled");
  changed = Minimal();
  changed["model"]["type"] = "Unigram";
  ExpectError(changed, unimplemented, "model type Unigram is not supported; supported: BPE");
  changed = Minimal();
  changed["model"]["dropout"] = 0.1;
  ExpectError(changed, unimplemented, "dropout");
  changed["model"]["dropout"] = 0.0;
  EXPECT_TRUE(Load(changed).ok());
}

TEST(EncodeTest, TextThatIsNotUtf8IsInvalidWithItsOffset) {
  const auto tokenizer = Load(Minimal()).value();
  for (const char* text : {"ab\xFF", "ab\xED\xA0\x80", "ab\xC3"}) {
    const absl::Status status = tokenizer->Encode(text, false).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("offset 2"));
  }
}

TEST(EncodeTest, TheEmptyTextHasOnlySpecialTokens) {
  json tokenizer = Minimal();
  EXPECT_TRUE(Load(tokenizer).value()->Encode("", true)->empty());
  EXPECT_TRUE(Load(tokenizer).value()->Encode(absl::string_view(), false)->empty());
  tokenizer["post_processor"] = {
      {"type", "BertProcessing"}, {"cls", {"<s>", 4}}, {"sep", {"a", 0}}};
  EXPECT_THAT(Load(tokenizer).value()->Encode("", true).value(), ElementsAre(4, 0));
}

TEST(TokenizerConfigTest, BosAndEosComeFromTheFirstFileThatNamesThem) {
  const TempFolder folder;
  folder.Write("tokenizer.json", Minimal().dump());
  folder.Write("tokenizer_config.json", R"({"bos_token": {"content": "<s>"}, "eos_token": null})");
  folder.Write("special_tokens_map.json", R"({"bos_token": "a", "eos_token": "ab"})");
  const auto tokenizer = LoadTokenizer(folder.path()).value();
  EXPECT_EQ(tokenizer->bos_id(), 4);
  EXPECT_EQ(tokenizer->eos_id(), 2);
}

TEST(TokenizerConfigTest, TokenizerModelTakesBosEosAndAddedTokensFromTheFilesBesideIt) {
  const TempFolder folder;
  folder.Write("tokenizer.model", ReadFile(absl::StrCat(THINWIRE_TOKENIZER_TESTDATA,
                                                        "/sentencepiece_bpe/tokenizer.model")));
  auto tokenizer = LoadTokenizer(folder.path()).value();
  const int64_t size = tokenizer->vocab_size();
  EXPECT_EQ(tokenizer->Encode("", true).value(), std::vector<int32_t>({tokenizer->bos_id()}));
  // Without a file that says so, "</s>" is text like any other.
  EXPECT_GT(tokenizer->Encode("</s>", false)->size(), 1u);

  folder.Write("tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true,
    "added_tokens_decoder": {"2": {"content": "</s>", "special": true}}})");
  folder.Write("added_tokens.json", absl::StrCat("{\"<mine>\": ", size, "}"));
  tokenizer = LoadTokenizer(folder.path()).value();
  EXPECT_EQ(tokenizer->vocab_size(), size + 1);
  const int32_t mine = tokenizer->TokenToId("<mine>");
  EXPECT_EQ(mine, size);
  EXPECT_FALSE(tokenizer->IsSpecial(mine));
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  EXPECT_EQ(tokenizer->Encode("<mine></s>", true).value(), std::vector<int32_t>({mine, 2, 2}));
  EXPECT_EQ(tokenizer->Decode({mine, 2}, false), "<mine></s>");
  EXPECT_EQ(tokenizer->Decode({mine, 2}, true), "<mine>");

  folder.Write("added_tokens.json", R"({"<mine>": 5})");
  const absl::Status status = LoadTokenizer(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"<mine>\" has id 5"));
}

}  // namespace
}  // namespace thinwire
