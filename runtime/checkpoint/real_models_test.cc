// Reads the model folders that THINWIRE_MODELS holds. A program of its own, because it may be
// skipped as a whole.
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "runtime/checkpoint/checkpoint.h"
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

TEST(RealModelsTest, CheckpointsOpenAndTheirWeightsAreFinite) {
  const char* models = std::getenv("THINWIRE_MODELS");
  if (models == nullptr) GTEST_SKIP() << "THINWIRE_MODELS names no folder of models";
  for (const char* name : {"opt-nano", "opt-mini", "llama-nano", "llama-mini"}) {
    const Checkpoint checkpoint = Checkpoint::Open(absl::StrCat(models, "/", name)).value();
    EXPECT_GT(checkpoint.total_bytes(), 0);
    for (const absl::string_view tensor : checkpoint.Names()) {
      const TensorInfo& info = *checkpoint.Find(tensor);
      const int64_t rows = info.shape[0];
      const int64_t columns = info.shape.size() == 2 ? info.shape[1] : 1;
      Tensor out = Tensor::Allocate(DType::kF32, {rows * columns}, Device::Cpu()).value();
      float* values = out.mutable_view().mutable_data<float>();
      const TensorView view = info.shape.size() == 2
                                  ? TensorView(values, DType::kF32, {rows, columns})
                                  : TensorView(values, DType::kF32, {rows});
      ASSERT_TRUE(checkpoint.Read(tensor, info.shape, {}, view).ok()) << name << " " << tensor;
      int64_t not_finite = 0;
      for (int64_t i = 0; i < rows * columns; ++i) not_finite += !std::isfinite(values[i]);
      EXPECT_EQ(not_finite, 0) << name << " " << tensor;
    }
  }
}

}  // namespace
}  // namespace thinwire
