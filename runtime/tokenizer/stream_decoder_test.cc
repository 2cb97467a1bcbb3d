#include "runtime/tokenizer/stream_decoder.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/tokenizer/tokenizer_testing.h"

namespace thinwire {
namespace {

std::unique_ptr<Tokenizer> Load(absl::string_view name) {
  return LoadTokenizer(absl::StrCat(THINWIRE_TOKENIZER_TESTDATA, "/", name)).value();
}

TEST(StreamDecoderTest, ACharacterOfSeveralByteLevelTokensComesWhole) {
  const auto tokenizer = Load("gpt2");
  const std::vector<int32_t> ids = tokenizer->Encode("a😀", false).value();
  ASSERT_EQ(ids.size(), 5u);
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Push(ids[0]), "a");
  EXPECT_EQ(decoder.Push(ids[1]), "");
  EXPECT_EQ(decoder.Push(ids[2]), "");
  EXPECT_EQ(decoder.Push(ids[3]), "");
  EXPECT_EQ(decoder.Push(ids[4]), "😀");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(StreamDecoderTest, ACharacterThatIsNeverCompletedIsReplacedAtTheEnd) {
  const auto tokenizer = Load("gpt2");
  std::vector<int32_t> ids = tokenizer->Encode("😀", false).value();
  ids.resize(3);
  StreamDecoder decoder(*tokenizer, true);
  for (const int32_t id : ids) EXPECT_EQ(decoder.Push(id), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
  EXPECT_EQ(tokenizer->Decode(ids, true), "\uFFFD");
}

TEST(StreamDecoderTest, AByteThatDoesNotFitReleasesWhatWasHeldBack) {
  const auto tokenizer = Load("gpt2");
  std::vector<int32_t> ids = tokenizer->Encode("😀", false).value();
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Push(ids[0]), "");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("x")), "\uFFFDx");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(StreamDecoderTest, ARunOfByteTokensComesWhenItEnds) {
  const auto tokenizer = Load("llama2");
  StreamDecoder decoder(*tokenizer, true);
  for (const char* token : {"<0xE2>", "<0x82>", "<0xAC>"}) {
    EXPECT_EQ(decoder.Push(tokenizer->TokenToId(token)), "");
  }
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("x")), "€x");
  // One byte too many, and none of the run counts: this is what ByteFallback says.
  for (const char* token : {"<0xE2>", "<0x82>", "<0xAC>", "<0xFF>"}) {
    EXPECT_EQ(decoder.Push(tokenizer->TokenToId(token)), "");
  }
  EXPECT_EQ(decoder.Flush(), "\uFFFD\uFFFD\uFFFD\uFFFD");
}

TEST(StreamDecoderTest, SentencePieceBytesComeAsSoonAsTheyMakeACharacter) {
  const auto tokenizer = Load("sentencepiece_bpe");
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0xE2>")), "");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0x82>")), "");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0xAC>")), "€");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0xE2>")), "");
  EXPECT_EQ(decoder.Push(tokenizer->bos_id()), "\uFFFD");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0xF0>")), "");
  EXPECT_EQ(decoder.Push(tokenizer->TokenToId("<0x9F>")), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD\uFFFD");
}

TEST(StreamDecoderTest, OnlyTheFirstBlankIsStripped) {
  for (const char* name : {"llama2", "sentencepiece_bpe"}) {
    const auto tokenizer = Load(name);
    const int32_t the = tokenizer->TokenToId("▁the");
    ASSERT_GE(the, 0);
    StreamDecoder decoder(*tokenizer, true);
    EXPECT_EQ(decoder.Push(tokenizer->bos_id()), "");
    EXPECT_EQ(decoder.Push(the), "the");
    EXPECT_EQ(decoder.Push(the), " the");
    EXPECT_EQ(decoder.Flush(), "");
  }
}

TEST(StreamDecoderTest, SpecialTokensAreTextUnlessSkipped) {
  const auto tokenizer = Load("gpt2");
  StreamDecoder decoder(*tokenizer, false);
  EXPECT_EQ(decoder.Push(2), "</s>");
  StreamDecoder skipping(*tokenizer, true);
  EXPECT_EQ(skipping.Push(2), "");
}

TEST(StreamDecoderTest, IdsWithoutATokenHaveNoText) {
  for (const char* name : {"gpt2", "llama2", "sentencepiece_bpe"}) {
    const auto tokenizer = Load(name);
    for (const int64_t id : {int64_t{-1}, tokenizer->vocab_size(), int64_t{1} << 30}) {
      StreamDecoder decoder(*tokenizer, true);
      EXPECT_EQ(decoder.Push(static_cast<int32_t>(id)), "");
      EXPECT_FALSE(tokenizer->IsSpecial(static_cast<int32_t>(id)));
    }
  }
}

}  // namespace
}  // namespace thinwire
