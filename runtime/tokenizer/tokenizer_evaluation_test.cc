// The evaluation text with the models that lie outside of the repository: in the folder
// THINWIRE_MODELS, the text in THINWIRE_EVAL or else in the folder eval beside it.
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/golden_testing.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {
namespace {

using nlohmann::json;

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

}  // namespace
}  // namespace thinwire
