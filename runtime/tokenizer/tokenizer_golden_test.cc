// Encoding, decoding and streaming against what Hugging Face tokenizers and SentencePiece did
// (testdata/README.md) and against the ids recorded with the models.
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/stream_decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_testing.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string Testdata(absl::string_view name) {
  return absl::StrCat(THINWIRE_TOKENIZER_TESTDATA, "/", name);
}

json ReadJson(const std::string& path) { return json::parse(ReadFile(path)); }

// Checks the stream against `text`, and its pieces for being well-formed.
void ExpectStreamsAs(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens,
                     const std::string& text) {
  StreamDecoder decoder(tokenizer, skip_special_tokens);
  std::string streamed;
  const auto take = [&](const std::string& piece) {
    EXPECT_EQ(unicode::FirstInvalidByte(piece), piece.size()) << absl::CEscape(piece);
    streamed += piece;
  };
  for (const int32_t id : ids) take(decoder.Push(id));
  take(decoder.Flush());
  EXPECT_EQ(streamed, text);
}

void ExpectDecodes(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens,
                   const std::string& text) {
  EXPECT_EQ(tokenizer.Decode(ids, skip_special_tokens), text) << json(ids).dump();
  ExpectStreamsAs(tokenizer, ids, skip_special_tokens, text);
}

void ExpectEncodes(const Tokenizer& tokenizer, const json& cases) {
  for (const json& c : cases) {
    const auto text = c[0].get<std::string>();
    SCOPED_TRACE(c[0].dump());
    EXPECT_EQ(tokenizer.Encode(text, /*add_special_tokens=*/false).value(), c[1].get<Ids>());
    const Ids ids = tokenizer.Encode(text, /*add_special_tokens=*/true).value();
    EXPECT_EQ(ids, c[2].get<Ids>());
    ExpectStreamsAs(tokenizer, ids, false, tokenizer.Decode(ids, false));
  }
}

class HuggingFaceTest : public testing::TestWithParam<const char*> {};

TEST_P(HuggingFaceTest, EveryVariantDoesWhatHuggingFaceDoes) {
  const std::string folder = Testdata(GetParam());
  const json base = ReadJson(folder + "/tokenizer.json");
  for (const json& variant : ReadJson(folder + "/golden.json")) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    json changed = base;
    for (const auto& [key, value] : variant["patch"]["members"].items()) changed[key] = value;
    for (const auto& [key, value] : variant["patch"]["model"].items())
      changed["model"][key] = value;
    const TempFolder temp;
    temp.Write("tokenizer.json", changed.dump());
    const auto tokenizer = LoadTokenizer(temp.path());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectEncodes(**tokenizer, variant["encode"]);
    for (const json& c : variant["decode"]) {
      ExpectDecodes(**tokenizer, c[0].get<Ids>(), false, c[1].get<std::string>());
      ExpectDecodes(**tokenizer, c[0].get<Ids>(), true, c[2].get<std::string>());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, HuggingFaceTest,
                         testing::Values("gpt2", "llama3", "llama2", "affixes"),
                         [](const auto& info) { return std::string(info.param); });

class SentencePieceTest : public testing::TestWithParam<const char*> {};

TEST_P(SentencePieceTest, DoesWhatTheLibraryDoes) {
  const auto tokenizer = LoadTokenizer(Testdata(GetParam()));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const json golden = ReadJson(Testdata(GetParam()) + "/golden.json");
  ExpectEncodes(**tokenizer, golden["encode"]);
  for (const json& c : golden["decode"]) {
    ExpectDecodes(**tokenizer, c[0].get<Ids>(), true, c[1].get<std::string>());
    const std::string with_specials = (*tokenizer)->Decode(c[0].get<Ids>(), false);
    ExpectStreamsAs(**tokenizer, c[0].get<Ids>(), false, with_specials);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SentencePieceTest,
                         testing::Values("sentencepiece_bpe", "sentencepiece_unigram"),
                         [](const auto& info) { return std::string(info.param); });

// Texts without added tokens in them come back as they were.
TEST(RoundTripTest, ByteLevelAndByteFallbackLoseNothing) {
  const json texts = ReadJson(Testdata("gpt2/golden.json"))[0]["encode"];
  for (const char* name : {"gpt2", "llama3", "llama2", "sentencepiece_bpe"}) {
    const auto tokenizer = LoadTokenizer(Testdata(name)).value();
    for (const json& c : texts) {
      const auto text = c[0].get<std::string>();
      // llama2 has no normaliser here, so nothing puts the blank in front that its decoder strips.
      if (std::string(name) == "llama2" && (text.rfind(' ', 0) == 0)) continue;
      // "▁" in the text is indistinguishable from a blank where blanks are written so, and there is
      // no way to encode a byte token that is spelt out.
      const bool blanks = std::string(name) == "llama2" || std::string(name) == "sentencepiece_bpe";
      if (blanks && text.find("\u2581") != std::string::npos) continue;
      const Ids ids = tokenizer->Encode(text, false).value();
      EXPECT_EQ(tokenizer->Decode(ids, false), text) << name << " " << c[0].dump();
    }
  }
}

// FIPS 180-4.
std::string Sha256Hex(absl::string_view bytes) {
  // The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
  std::array<uint32_t, 64> k = {};
  std::array<uint32_t, 8> h = {};
  const auto fraction_bits = [](long double root) {
    return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L);
  };
  for (int n = 2, found = 0; found < 64; ++n) {
    bool prime = true;
    for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    if (!prime) continue;
    k[found] = fraction_bits(std::cbrt(static_cast<long double>(n)));
    if (found < 8) h[found] = fraction_bits(std::sqrt(static_cast<long double>(n)));
    ++found;
  }
  std::string padded(bytes);
  padded.push_back('\x80');
  while (padded.size() % 64 != 56) padded.push_back('\0');
  for (int shift = 56; shift >= 0; shift -= 8) {
    padded.push_back(static_cast<char>(uint64_t{bytes.size()} * 8 >> shift));
  }
  for (size_t block = 0; block < padded.size(); block += 64) {
    std::array<uint32_t, 64> w = {};
    for (size_t i = 0; i < 64; ++i) {
      if (i < 16) {
        for (size_t j = 0; j < 4; ++j) {
          w[i] = w[i] << 8 | static_cast<uint8_t>(padded[block + 4 * i + j]);
        }
      } else {
        const uint32_t a = w[i - 15];
        const uint32_t b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
      }
    }
    std::array<uint32_t, 8> s = h;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t t1 = s[7] + (std::rotr(s[4], 6) ^ std::rotr(s[4], 11) ^ std::rotr(s[4], 25)) +
                          ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      const uint32_t t2 = (std::rotr(s[0], 2) ^ std::rotr(s[0], 13) ^ std::rotr(s[0], 22)) +
                          ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
    }
    for (size_t i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::string hex;
  for (const uint32_t word : h) absl::StrAppend(&hex, absl::Hex(word, absl::kZeroPad8));
  return hex;
}

TEST(Sha256Test, KnowsTheStandardsExample) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// Prompts and the sample text of a model's golden.json.
void ExpectEncodesAsRecorded(const Tokenizer& tokenizer, const json& golden) {
  for (const json& prompt : golden["prompts"]) {
    // The recorded text begins with the bos token, spelt out.
    const auto text = prompt["text"].get<std::string>();
    const auto ids = prompt["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.Encode(text, false).value(), ids) << text;
    const std::string plain = tokenizer.Decode(absl::MakeConstSpan(ids).subspan(1), false);
    EXPECT_EQ(tokenizer.Encode(plain, true).value(), ids) << text;
    ExpectDecodes(tokenizer, ids, false, text);
  }
  const json& sample = golden["tokenizer"];
  EXPECT_EQ(tokenizer.Encode(sample["text"].get<std::string>(), true).value(),
            sample["ids_with_special"].get<Ids>());
}

TEST(BundledModelTest, PromptsHaveTheRecordedIds) {
  for (const char* name : {"opt-nano", "llama-nano"}) {
    SCOPED_TRACE(name);
    const std::string folder = absl::StrCat(THINWIRE_BUNDLED_MODELS, "/", name);
    const auto tokenizer = LoadTokenizer(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->vocab_size(), 1024);
    EXPECT_TRUE((*tokenizer)->IsSpecial(2));
    EXPECT_FALSE((*tokenizer)->IsSpecial(4));
    EXPECT_EQ((*tokenizer)->eos_id(), 2);
    const json golden = ReadJson(folder + "/golden.json");
    EXPECT_EQ((*tokenizer)->bos_id(), golden["bos_token_id"].get<int32_t>());
    ExpectEncodesAsRecorded(**tokenizer, golden);
  }
}

// Where the larger models and the evaluation text are at hand.
TEST(EvaluationTextTest, HasTheRecordedIdsWithEveryModel) {
  const char* models = std::getenv("THINWIRE_MODELS");
  if (models == nullptr) GTEST_SKIP() << "THINWIRE_MODELS names no folder";
  const char* eval = std::getenv("THINWIRE_EVAL");
  const std::string text = ReadFile(
      absl::StrCat(eval != nullptr ? eval : absl::StrCat(models, "/../eval"), "/wiki.test.raw"));
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(models)) {
    const std::string folder = entry.path().string();
    if (!std::filesystem::exists(folder + "/golden.json")) continue;
    SCOPED_TRACE(folder);
    const auto tokenizer = LoadTokenizer(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const json golden = ReadJson(folder + "/golden.json");
    ExpectEncodesAsRecorded(**tokenizer, golden);
    const json& recorded = golden["tokenizer"]["corpora"]["wikitext2-test"];
    ASSERT_EQ(text.size(), recorded["bytes"].get<size_t>());
    const Ids ids = (*tokenizer)->Encode(text, false).value();
    ASSERT_EQ(ids.size(), recorded["tokens"].get<size_t>());
    EXPECT_EQ(Ids(ids.begin(), ids.begin() + 16), recorded["first16"].get<Ids>());
    std::string bytes;
    for (const int32_t id : ids) {
      bytes.push_back(static_cast<char>(id & 0xFF));
      bytes.push_back(static_cast<char>(id >> 8));
    }
    EXPECT_EQ(Sha256Hex(bytes), recorded["sha256_u16le"].get<std::string>());
    EXPECT_EQ((*tokenizer)->Decode(ids, false), text);
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

TEST(ConcurrencyTest, ThreadsShareATokenizer) {
  for (const char* name : {"gpt2", "llama2", "sentencepiece_bpe"}) {
    const auto tokenizer = LoadTokenizer(Testdata(name)).value();
    const std::string text = "Once upon a time, 日本語 😀 \n the end. ";
    const Ids expected = tokenizer->Encode(text, true).value();
    const std::string decoded = tokenizer->Decode(expected, true);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int round = 0; round < 20; ++round) {
          EXPECT_EQ(tokenizer->Encode(text, true).value(), expected);
          EXPECT_EQ(tokenizer->Decode(expected, true), decoded);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

}  // namespace
}  // namespace thinwire
