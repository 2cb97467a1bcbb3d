// SentencePiece's library and gRPC's each have their own Protobuf in one program.
#include "gtest/gtest.h"
#include "proto/thinwire/v1/inference.pb.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {
namespace {

TEST(TokenizerBesideGrpcTest, BothReadTheirMessages) {
  v1::GenerateRequest request;
  request.set_prompt("Once upon a time");
  v1::GenerateRequest copy;
  ASSERT_TRUE(copy.ParseFromString(request.SerializeAsString()));
  const auto tokenizer = LoadTokenizer(THINWIRE_TOKENIZER_TESTDATA "/sentencepiece_bpe");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(copy.prompt(), /*add_special_tokens=*/false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ((*tokenizer)->Decode(*ids, /*skip_special_tokens=*/true), request.prompt());
}

}  // namespace
}  // namespace thinwire
