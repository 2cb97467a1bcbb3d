#include "runtime/checkpoint/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

absl::Span<const std::byte> Bytes(const std::string& text) {
  return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size());
}

// The first three are of FIPS 180-4's published examples.
TEST(Sha256Test, KnowsThePublishedDigests) {
  EXPECT_EQ(Sha256Hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex(Bytes("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(Bytes("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(Bytes(std::string(1000000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, DoesNotDependOnHowTheBytesArrive) {
  std::string text;
  for (int size = 0; size < 200; ++size) {
    const std::string whole = Sha256Hex(Bytes(text));
    for (const size_t cut : {size_t{0}, text.size() / 3, text.size() / 2, text.size()}) {
      Sha256 hash;
      hash.Update(Bytes(text.substr(0, cut)));
      hash.Update(Bytes(text.substr(cut)));
      EXPECT_EQ(hash.HexDigest(), whole);
    }
    text.push_back(static_cast<char>(size * 37));
  }
}

}  // namespace
}  // namespace thinwire
