// What goes in and out of the OpenAI endpoints, without a network.
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/server/openai/openai_request.h"
#include "runtime/server/openai/openai_response.h"

namespace thinwire {
namespace {

using Json = nlohmann::json;

class OpenAiTest : public testing::Test {
 protected:
  absl::StatusOr<OpenAiRequest> Parse(const std::string& body, bool chat = false) {
    return ParseOpenAiRequest(body, chat, model_);
  }

  void ExpectRefused(const std::string& body, absl::string_view part, bool chat = false) {
    const absl::Status status = Parse(body, chat).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << body << ": " << status;
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << body << ": " << status;
  }

  ServedModel model_ = *LoadServedModel(THINWIRE_BUNDLED_MODELS "/opt-nano", "", "");
};

TEST_F(OpenAiTest, DefaultsAreOpenAis) {
  const auto request = *Parse(R"({"model": "opt-nano", "prompt": "The"})");
  ASSERT_EQ(request.generations.size(), 1u);
  const GenerationRequest& generation = request.generations[0];
  EXPECT_EQ(generation.params.max_tokens, 16);
  EXPECT_EQ(generation.params.sampling.temperature, 1.0f);
  EXPECT_EQ(generation.params.sampling.top_p, 1.0f);
  EXPECT_EQ(generation.prompt_ids, *model_.tokenizer->Encode("The", true));
  EXPECT_FALSE(request.stream);
  // Sampled answers differ from call to call unless a seed is given.
  EXPECT_NE(Parse(R"({"prompt": "The"})")->generations[0].params.sampling.seed,
            Parse(R"({"prompt": "The"})")->generations[0].params.sampling.seed);
}

TEST_F(OpenAiTest, EveryChoiceOfEveryPromptHasItsSeed) {
  const auto request = *Parse(R"({"prompt": ["a", "b"], "n": 3, "seed": 7, "stop": "x"})");
  ASSERT_EQ(request.generations.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(request.generations[i].params.sampling.seed, 7 + i % 3);
    EXPECT_EQ(request.generations[i].prompt_ids, request.generations[i / 3 * 3].prompt_ids);
    EXPECT_EQ(request.generations[i].params.stop, std::vector<std::string>{"x"});
  }
}

TEST_F(OpenAiTest, PromptsMayBeTokenIds) {
  EXPECT_EQ(Parse(R"({"prompt": [1, 2, 3]})")->generations[0].prompt_ids,
            (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(Parse(R"({"prompt": [[1, 2], [3]]})")->num_prompts, 2);
}

TEST_F(OpenAiTest, WhatIsWrongIsNamed) {
  ExpectRefused("", "not valid JSON");
  ExpectRefused("[]", "JSON object");
  ExpectRefused("{}", "\"prompt\"");
  ExpectRefused(R"({"prompt": 7})", "\"prompt\"");
  ExpectRefused(R"({"prompt": [1, "a"]})", "token ids");
  ExpectRefused(R"({"prompt": [-1]})", "token ids");
  ExpectRefused(R"({"prompt": "a", "max_tokens": 0})", "\"max_tokens\"");
  ExpectRefused(R"({"prompt": "a", "temperature": "hot"})", "\"temperature\"");
  ExpectRefused(R"({"prompt": "a", "temperature": -1})", "temperature");
  ExpectRefused(R"({"prompt": "a", "top_p": 0})", "top_p");
  ExpectRefused(R"({"prompt": "a", "n": 1000})", "\"n\"");
  ExpectRefused(R"({"prompt": ["a", "b", "c"], "n": 100})", "128");
  ExpectRefused(R"({"prompt": "a", "stop": [""]})", "\"stop\"");
  ExpectRefused(R"({"prompt": "a", "stream": 1})", "\"stream\"");
  ExpectRefused(R"({"prompt": "a", "logprobs": 21})", "\"logprobs\"");
  ExpectRefused(R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})",
                "\"logprobs\" to be true", true);
  ExpectRefused(R"({"prompt": "a", "presence_penalty": 0.5})", "\"presence_penalty\"");
  ExpectRefused(R"({"prompt": "a", "best_of": 3})", "\"best_of\"");
  ExpectRefused(R"({"messages": []})", "at least one", true);
  ExpectRefused(R"({"messages": [{"role": "robot", "content": "a"}]})", "role 'robot'", true);
  ExpectRefused(R"({"messages": [{"content": "a"}]})", "\"role\"", true);
  ExpectRefused(R"({"messages": [{"role": "user", "content": "</s>"}]})", "special", true);
  ExpectRefused(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", "text",
                true);
  EXPECT_TRUE(absl::IsNotFound(Parse(R"({"model": "gpt", "prompt": "a"})").status()));
  EXPECT_TRUE(Parse(R"({"prompt": "a", "presence_penalty": 0, "echo": false})").ok());
}

TEST_F(OpenAiTest, DeepBodiesAreRefusedBeforeTheyAreParsed) {
  const std::string open(200000, '[');
  ExpectRefused(open, "levels");
  ExpectRefused(absl::StrCat(open, std::string(200000, ']')), "levels");
  ExpectRefused(absl::StrCat(R"({"prompt": )", open, std::string(200000, ']'), "}"), "levels");
  std::string objects;
  for (int i = 0; i < 100; ++i) objects += R"({"stop":)";
  ExpectRefused(objects, "levels");
  // What is in a string does not count.
  EXPECT_TRUE(Parse(absl::StrCat(R"({"prompt": "\"\\)", open.substr(0, 100), R"("})")).ok());
}

TEST_F(OpenAiTest, WhatIsTooMuchIsRefusedBeforeItIsCopied) {
  std::string ids = "1";
  for (int i = 1; i < 512; ++i) ids += ",1";
  ExpectRefused(absl::StrCat(R"({"n": 128, "prompt": [)", ids, "]}"), "expected at most 511");
  ExpectRefused(absl::StrCat(R"({"prompt": [[1], [)", ids, "]]}"), "expected at most 511");
  std::string words;
  for (int i = 0; i < 600; ++i) words += " family";
  ExpectRefused(absl::StrCat(R"({"prompt": ")", words, R"("})"), "longer than the context");
  ExpectRefused(absl::StrCat(R"({"messages": [{"role": "user", "content": ")", words, R"("}]})"),
                "longer than the context", true);
  EXPECT_TRUE(Parse(absl::StrCat(R"({"prompt": [)", ids.substr(2), "]}")).ok());
  ExpectRefused(absl::StrCat(R"({"prompt": "a", "stop": ")", std::string(5000, 'x'), R"("})"),
                "4096 bytes");
}

TEST_F(OpenAiTest, MessagesBecomeThePromptOfTheTemplate) {
  const auto request = *Parse(
      R"({"messages": [{"role": "system", "content": "Be brief."},
                       {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]})",
      true);
  EXPECT_EQ(request.generations[0].prompt_ids,
            *model_.tokenizer->Encode("Be brief.\n\nUser: Hi\nAssistant:", true));
  EXPECT_EQ(request.generations[0].params.stop, std::vector<std::string>{"\nUser:"});
}

TEST_F(OpenAiTest, TemplatesOfTheFamiliesRender) {
  const std::vector<ChatMessage> messages = {
      {"system", "S"}, {"user", "U"}, {"assistant", "A"}, {"user", "V"}};
  const auto text = [&](absl::string_view name) {
    std::string all;
    const auto pieces = ChatTemplate::Load(name)->Render(messages);
    for (const ChatTemplate::Piece& piece : *pieces) all += piece.text;
    return all;
  };
  EXPECT_EQ(text("llama-2"),
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]");
  EXPECT_EQ(text("mistral"), "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]");
  EXPECT_EQ(text("chatml"),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
            "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(text("llama-3"),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_TRUE(absl::IsNotFound(ChatTemplate::Load("no-such-template").status()));
}

TEST_F(OpenAiTest, AnswersHaveOpenAisMembers) {
  const auto request = *Parse(R"({"prompt": "a", "n": 2, "logprobs": 0})");
  std::vector<OpenAiChoice> choices(2);
  choices[0] = {"x", {5, 6}, {.reason = EndReason::kLength, .log_probs = {-1.0f, -2.0f}}};
  choices[1] = {"\xff", {7}, {.reason = EndReason::kStopString, .log_probs = {-3.0f}}};
  const OpenAiAnswer answer = {"cmpl-1", "opt-nano", 5, false};
  const Json body = Json::parse(OpenAiResponseJson(answer, request, choices, *model_.tokenizer));
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][1]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][0]["logprobs"]["token_logprobs"], Json({-1.0, -2.0}));
  const auto prompt = static_cast<int64_t>(request.generations[0].prompt_ids.size());
  EXPECT_EQ(body["usage"]["prompt_tokens"], prompt);
  EXPECT_EQ(body["usage"]["completion_tokens"], 3);
  const std::string chunk =
      OpenAiChunk({"c", "m", 5, true}, request, 1, {}, {.text = "hi"}, true, *model_.tokenizer);
  ASSERT_TRUE(absl::StartsWith(chunk, "data: ") && absl::EndsWith(chunk, "\n\n"));
  EXPECT_EQ(Json::parse(chunk.substr(6))["choices"][0]["delta"],
            Json({{"role", "assistant"}, {"content", "hi"}}));
  const Json error = Json::parse(OpenAiErrorJson(absl::ResourceExhaustedError("full")))["error"];
  EXPECT_EQ(error["type"], "rate_limit_error");
  EXPECT_EQ(error["message"], "full");
  const Json large = Json::parse(OpenAiErrorJson(413, "too long"))["error"];
  EXPECT_EQ(large["type"], "invalid_request_error");
  EXPECT_EQ(large["code"], 413);
  EXPECT_EQ(Json::parse(OpenAiErrorJson(500, "bad"))["error"]["type"], "server_error");
}

TEST_F(OpenAiTest, TheMostProbableTokensStandBesideTheChosen) {
  const auto request = *Parse(R"({"prompt": "a", "logprobs": 2, "stream": true})");
  EXPECT_EQ(request.generations[0].num_top_log_probs, 2);
  const auto text = [&](int32_t id) { return model_.tokenizer->Decode({&id, 1}, false); };
  const float never = -std::numeric_limits<float>::infinity();
  OpenAiChoice choice = {"x", {300, 301}, {.reason = EndReason::kLength, .log_probs = {-1, -2}}};
  choice.end.top_log_probs = {{300, -1.0f}, {302, -3.0f}, {303, -0.5f}, {304, never}};
  const GenerationDelta last = {.text = "x", .token_ids = {301}, .end = choice.end};
  const auto log_probs = [&](bool chat, const GenerationDelta& delta) {
    const std::string event =
        OpenAiChunk({"c", "m", 5, chat}, request, 0, choice, delta, false, *model_.tokenizer);
    return Json::parse(event.substr(6))["choices"][0]["logprobs"];
  };
  EXPECT_TRUE(log_probs(true, {.text = "x"}).is_null());
  EXPECT_EQ(log_probs(false, last)["top_logprobs"],
            Json({{{text(300), -1.0}, {text(302), -3.0}},
                  {{text(301), -2.0}, {text(303), -0.5}, {text(304), -9999.0}}}));
  const Json content = log_probs(true, last)["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[1]["token"], text(301));
  EXPECT_EQ(content[1]["logprob"], -2.0);
  ASSERT_EQ(content[1]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[1]["top_logprobs"][0]["token"], text(303));
  EXPECT_EQ(content[1]["top_logprobs"][1]["logprob"], -9999.0);
}

TEST_F(OpenAiTest, DamagedBodiesAreErrorsNotCrashes) {
  const std::string whole =
      R"({"model": "opt-nano", "messages": [{"role": "user", "content": "Hi"}], "n": 2,
          "prompt": ["a", [1, 2]], "stop": ["a"], "logprobs": true, "seed": 3, "top_k": 4,
          "stream_options": {"include_usage": true}, "max_tokens": 3, "temperature": 0.5})";
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    std::string body = whole;
    for (uint32_t flips = 1 + random() % 4; flips > 0; --flips) {
      const size_t at = random() % body.size();
      switch (random() % 3) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, 1 + random() % 8);
          break;
        default:
          body = absl::StrCat(body.substr(0, at),
                              body.substr(random() % body.size(), random() % 12), body.substr(at));
      }
      if (body.empty()) body.assign(1, 'x');
    }
    Parse(body, i % 2 == 0).status().IgnoreError();
  }
}

}  // namespace
}  // namespace thinwire
