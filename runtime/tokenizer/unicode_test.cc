#include "runtime/tokenizer/unicode.h"

#include <string>

#include "gtest/gtest.h"
#include "runtime/tokenizer/byte_alphabet.h"

namespace thinwire {
namespace {

std::string Lossy(std::string bytes) {
  std::string text;
  unicode::TakeLossy(/*finish=*/true, &bytes, &text);
  return text;
}

TEST(UnicodeTest, EveryScalarValueSurvivesUtf8AndNothingElseIsAccepted) {
  for (uint32_t c = 0; c <= 0x110000; ++c) {
    std::string text;
    unicode::AppendChar(c, &text);
    const bool valid = c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF);
    ASSERT_EQ(unicode::CharSize(text), valid ? text.size() : 0) << c;
    if (!valid) continue;
    ASSERT_EQ(unicode::DecodeChar(text), c);
    for (size_t size = 1; size < text.size(); ++size) {
      ASSERT_EQ(unicode::CharSize(text.substr(0, size)), 0u) << c;
      ASSERT_TRUE(unicode::IsTruncatedChar(text.substr(0, size))) << c;
    }
    ASSERT_FALSE(unicode::IsTruncatedChar(text));
  }
}

TEST(UnicodeTest, OverlongFormsAreInvalid) {
  for (const char* text : {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\x80",
                           "\xF5\x80\x80\x80", "\xFF"}) {
    EXPECT_EQ(unicode::CharSize(text), 0u);
    EXPECT_FALSE(unicode::IsTruncatedChar(text));
  }
  EXPECT_EQ(unicode::FirstInvalidByte("ab\xC3\xA9\xC3"), 4u);
  EXPECT_EQ(unicode::FirstInvalidByte(""), 0u);
}

// The examples of the Unicode Standard 15, tables 3-8 to 3-11.
TEST(UnicodeTest, EachMaximalSubpartBecomesOneReplacementCharacter) {
  const std::string r = unicode::kReplacement;
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(UnicodeTest, ATruncatedCharacterWaitsForItsEnd) {
  std::string bytes = "a\xF0\x9F\x98";
  std::string text;
  unicode::TakeLossy(/*finish=*/false, &bytes, &text);
  EXPECT_EQ(text, "a");
  EXPECT_EQ(bytes, "\xF0\x9F\x98");
  bytes += "\x80";
  unicode::TakeLossy(/*finish=*/false, &bytes, &text);
  EXPECT_EQ(text, "a\xF0\x9F\x98\x80");
  EXPECT_TRUE(bytes.empty());
}

TEST(UnicodeTest, NormalFormsAndLowerCase) {
  EXPECT_EQ(unicode::Normalize("e\u0301\u212B", unicode::NormalForm::kNfc), "\u00E9\u00C5");
  EXPECT_EQ(unicode::Normalize("\u00E9", unicode::NormalForm::kNfd), "e\u0301");
  EXPECT_EQ(unicode::Normalize("\uFB01\u2460", unicode::NormalForm::kNfkc), "fi1");
  EXPECT_EQ(unicode::Normalize("\uFB01\u00C5", unicode::NormalForm::kNfkd), "fiA\u030A");
  EXPECT_EQ(unicode::Normalize("", unicode::NormalForm::kNfc), "");
  EXPECT_EQ(unicode::Normalize(std::string("a\0b", 3), unicode::NormalForm::kNfkc),
            std::string("a\0b", 3));
  EXPECT_EQ(unicode::Lowercase("AÉΣ\u0130ß"), "aéσi\u0307ß");
}

TEST(UnicodeTest, ClassesOfCharacters) {
  EXPECT_TRUE(unicode::IsWhitespace(0x3000));
  EXPECT_FALSE(unicode::IsWhitespace(0x180E));
  EXPECT_TRUE(unicode::IsNumeric(0xBD));
  EXPECT_FALSE(unicode::IsNumeric('x'));
  EXPECT_TRUE(unicode::IsPunctuation('$'));
  EXPECT_TRUE(unicode::IsPunctuation(0x3002));
  EXPECT_FALSE(unicode::IsPunctuation(0x20AC));
}

TEST(ByteAlphabetTest, AllBytesMakeTheTripAndOtherCharactersAreRefused) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  std::string characters;
  BytesToAlphabet(bytes, &characters);
  EXPECT_EQ(unicode::FirstInvalidByte(characters), characters.size());
  std::string back;
  EXPECT_TRUE(AlphabetToBytes(characters, &back));
  EXPECT_EQ(back, bytes);
  EXPECT_FALSE(AlphabetToBytes("a中", &back));
  EXPECT_FALSE(AlphabetToBytes("a b", &back));
  EXPECT_EQ(back, bytes);
  std::string space;
  BytesToAlphabet(" \n", &space);
  EXPECT_EQ(space, "ĠĊ");
}

}  // namespace
}  // namespace thinwire
