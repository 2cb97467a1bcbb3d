// Reads the model folders that THINWIRE_MODELS holds. A program of its own, because it may be
// skipped as a whole.
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/model_config.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;

TEST(RealModelsTest, ConfigsLoad) {
  const char* models = std::getenv("THINWIRE_MODELS");
  if (models == nullptr) GTEST_SKIP() << "THINWIRE_MODELS names no folder of models";
  const ModelConfig opt = LoadModelConfig(absl::StrCat(models, "/opt-mini")).value();
  EXPECT_EQ(opt.family, ModelFamily::kOpt);
  EXPECT_EQ(opt.hidden, 512);
  EXPECT_EQ(opt.num_layers, 4);
  EXPECT_THAT(opt.eos_token_ids, ElementsAre(2));
  const ModelConfig llama = LoadModelConfig(absl::StrCat(models, "/llama-mini")).value();
  EXPECT_EQ(llama.family, ModelFamily::kLlama);
  EXPECT_EQ(llama.num_kv_heads, 4);
  EXPECT_EQ(llama.ffn, 704);
  EXPECT_EQ(llama.bos_token_id, 0);
}

}  // namespace
}  // namespace thinwire
