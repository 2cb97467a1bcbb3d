#include "runtime/checkpoint/synthetic_model.h"

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/vptq_linear/byte_book.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/folder_digest.h"
#include "runtime/checkpoint/gptq_tensors.h"
#include "runtime/checkpoint/known_shapes.h"
#include "runtime/checkpoint/rank_share.h"
#include "runtime/checkpoint/vptq_tensors.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<float> ReadFloats(const Checkpoint& checkpoint, const std::string& name,
                              std::vector<int64_t> shape, Range rows, Range columns) {
  std::vector<float> values(rows.size() * columns.size());
  const absl::Status status =
      checkpoint.Read(name, shape, {.rows = rows, .columns = columns},
                      TensorView(values.data(), DType::kF32, {rows.size(), columns.size()}));
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

TEST(SyntheticModelTest, EveryKnownShapeHasTheSizeOfItsName) {
  // Parameters in billions, as published (OPT-175B and 66B without positions differ by < 1 %).
  const std::map<std::string, double> billions = {
      {"opt-125m", 0.125},   {"opt-1.3b", 1.32},     {"opt-6.7b", 6.66},   {"opt-13b", 12.9},
      {"opt-30b", 30.0},     {"opt-66b", 65.7},      {"opt-175b", 174.6},  {"llama-2-7b", 6.74},
      {"llama-2-13b", 13.0}, {"llama-2-70b", 68.98}, {"llama-3-8b", 8.03}, {"llama-3-70b", 70.55},
      {"mistral-7b", 7.24}};
  for (const absl::string_view name : KnownShapeNames()) {
    const auto summary = SummarizeCheckpoint(absl::StrCat("synthetic:", name));
    ASSERT_TRUE(summary.ok()) << summary.status();
    const double expected = billions.at(std::string(name)) * 1e9;
    EXPECT_NEAR(summary->total.num_parameters, expected, 0.01 * expected) << name;
    EXPECT_EQ(summary->scheme, "w16a16");
  }
}

TEST(SyntheticModelTest, QuantisedShapesAreAsSmallAsTheySay) {
  const auto summary = SummarizeCheckpoint("synthetic:llama-2-70b:w4a4kv");
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->scheme, "w4a4kv");
  EXPECT_NEAR(summary->linear.total.bits_per_weight(), 4 + 20.0 / 128, 1e-3);
  const auto share = ShareOfRank("synthetic:llama-2-70b:w4a4kv", *summary, 2);
  ASSERT_TRUE(share.ok()) << share.status();
  // 80 layers x 4 KV heads x 128 channels x 2, half a byte each.
  EXPECT_EQ(share->kv.bytes_per_token(), 80 * 4 * 128);
}

TEST(SyntheticModelTest, BlocksAgreeHoweverTheyAreCut) {
  const auto checkpoint = Checkpoint::Open("synthetic:opt-125m:w16a16:7");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::string name = "model.decoder.layers.3.fc1.weight";
  const std::vector<float> whole = ReadFloats(*checkpoint, name, {3072, 768}, {0, 64}, {0, 768});
  const std::vector<float> block = ReadFloats(*checkpoint, name, {3072, 768}, {11, 20}, {5, 78});
  for (int64_t r = 0; r < 9; ++r) {
    for (int64_t c = 0; c < 73; ++c) ASSERT_EQ(block[r * 73 + c], whole[(11 + r) * 768 + 5 + c]);
  }
  double sum = 0.0, squares = 0.0;
  for (const float value : whole) {
    sum += value;
    squares += double{value} * value;
  }
  const auto n = static_cast<double>(whole.size());
  // 64 x 768 values of variance 1 / 768: means err by 1 / sqrt(n) of a deviation, variances by
  // sqrt(2 / n) of themselves; 5 of these, and 1 % for the table's 256 quantiles.
  const double deviation = 1.0 / std::sqrt(768.0);
  EXPECT_NEAR(sum / n, 0.0, 5 * deviation / std::sqrt(n));
  EXPECT_NEAR(squares / n, deviation * deviation,
              deviation * deviation * (5 * std::sqrt(2 / n) + 0.01));
}

TEST(SyntheticModelTest, SeedsAndTensorsDiffer) {
  const auto first = Checkpoint::Open("synthetic:opt-125m");
  const auto again = Checkpoint::Open("synthetic:opt-125m:w16a16:0");
  const auto other = Checkpoint::Open("synthetic:opt-125m:w16a16:1");
  ASSERT_TRUE(first.ok() && again.ok() && other.ok());
  const std::string prefix = "model.decoder.layers.0.self_attn.";
  const auto read = [&](const Checkpoint& checkpoint, const std::string& name) {
    return ReadFloats(checkpoint, prefix + name, {768, 768}, {0, 8}, {0, 768});
  };
  EXPECT_EQ(read(*first, "q_proj.weight"), read(*again, "q_proj.weight"));
  EXPECT_NE(read(*first, "q_proj.weight"), read(*other, "q_proj.weight"));
  EXPECT_NE(read(*first, "q_proj.weight"), read(*first, "k_proj.weight"));
  EXPECT_NE(DigestFolder("synthetic:opt-125m")->front().digest,
            DigestFolder("synthetic:opt-125m:w4a16")->front().digest);
}

TEST(SyntheticModelTest, CodedLayersAreReadLikeThoseOfAFolder) {
  for (const int bits : {4, 3}) {
    const std::string model = absl::StrCat("synthetic:opt-125m:w", bits, "a16");
    const auto config = LoadModelConfig(model);
    const auto checkpoint = Checkpoint::Open(model);
    ASSERT_TRUE(config.ok() && checkpoint.ok());
    const auto linear =
        GptqLinear::Open(&*checkpoint, "model.decoder.layers.1.fc2", 768, 3072, *config->gptq);
    ASSERT_TRUE(linear.ok()) << linear.status();
    std::vector<float> scales(768 * 24);
    std::vector<uint8_t> zeros(768 * 24);
    const absl::Status read =
        linear->ReadScales({0, 768}, TensorView(scales.data(), DType::kF32, {768, 24}),
                           TensorView(zeros.data(), DType::kU8, {768, 24}));
    ASSERT_TRUE(read.ok()) << read;
    // Of zeros and codes alike the mean is 2^(bits - 1) - 1/2, so that sums of outputs do not grow.
    const int half = 1 << (bits - 1);
    for (int64_t i = 0; i < 768 * 24; ++i) ASSERT_EQ(zeros[i], half - i / 24 % 2) << i;
  }
}

TEST(SyntheticModelTest, VectorsAreReadLikeThoseOfAFolder) {
  // 7 % of 768 and 3072 columns are 54 and 216; the rest divides by 2.
  for (const std::string scheme : {"vptq-v8-k256-r16", "vptq-v6-k64-g2-o7v4k32", "vptq-v4-k16-raw",
                                   "vptq-v8-k65536", "vptq-v8-k4096-r256-c8"}) {
    const std::string model = absl::StrCat("synthetic:opt-125m:", scheme);
    const auto config = LoadModelConfig(model);
    const auto checkpoint = Checkpoint::Open(model);
    ASSERT_TRUE(config.ok() && checkpoint.ok()) << config.status() << checkpoint.status();
    const std::string name = "model.decoder.layers.1.fc2";
    const auto linear = VptqLinear::Open(&*checkpoint, name, 768, 3072, *config->vptq->Find(name));
    ASSERT_TRUE(linear.ok()) << linear.status();
    const VptqWeights whole = linear->ReadBlock({0, 768}, {0, 3072}).value();
    const VptqWeights part = linear->ReadBlock({301, 320}, {1025, 2051}).value();
    std::vector<float> row(3072), cut(1026);
    double squares = 0.0;
    for (int64_t r = 0; r < 19; ++r) {
      whole.DequantizeRow(301 + r, absl::MakeSpan(row));
      part.DequantizeRow(r, absl::MakeSpan(cut));
      for (int64_t c = 0; c < 1026; ++c) ASSERT_EQ(cut[c], row[1025 + c]) << scheme;
      for (const float w : row) squares += double{w} * w;
    }
    // A variance of 1 / 3072 and, with a residual, 1/16 more; books of 16 vectors stray most.
    EXPECT_NEAR(squares / 19, 1.05, 0.35) << scheme;
  }
}

TEST(SyntheticModelTest, ByteBooksAreThatAndCountAsBytes) {
  const std::string model = "synthetic:opt-125m:vptq-v8-k4096-r256-c8-raw";
  const auto checkpoint = Checkpoint::Open(model);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [part, size] :
       {std::pair(".centroids.weight", 4096 * 8), std::pair(".res_centroids.weight", 256 * 8)}) {
    const std::vector<float> book =
        ReadFloats(*checkpoint, absl::StrCat("model.decoder.layers.1.fc2", part), {1, size}, {0, 1},
                   {0, size});
    EXPECT_TRUE(AsByteBook(ConstTensorView(book.data(), DType::kF32, {size / 8, 8}), 8).has_value())
        << part;
  }
  const auto summary = SummarizeCheckpoint(model);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->scheme, "vptq-v8-k4096-r256-c8-raw");
  EXPECT_EQ(summary->linear.codebook_bytes, 12 * 6 * ((4096 + 256) * 8 + 2 * 2 * 8));
  EXPECT_EQ(summary->linear.total.size_bytes,
            summary->linear.codes_bytes + summary->linear.codebook_bytes);
}

TEST(SyntheticModelTest, VectorsTakeTheMemoryThatIsPlanned) {
  const std::string model = "synthetic:opt-125m:vptq-v6-k4096-r4-g2-o7v3k32";
  const auto summary = SummarizeCheckpoint(model);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->scheme, "vptq-v6-k4096-r4-g2-o7v3k32");
  const auto checkpoint = Checkpoint::Open(model);
  const auto dense = SummarizeCheckpoint("synthetic:opt-125m");
  int64_t bytes = 0;
  for (const auto& [part, out, in] :
       std::vector<std::tuple<const char*, int64_t, int64_t>>{{"self_attn.q_proj", 768, 768},
                                                              {"self_attn.k_proj", 768, 768},
                                                              {"self_attn.v_proj", 768, 768},
                                                              {"self_attn.out_proj", 768, 768},
                                                              {"fc1", 3072, 768},
                                                              {"fc2", 768, 3072}}) {
    const std::string name = absl::StrCat("model.decoder.layers.0.", part);
    const auto linear =
        VptqLinear::Open(&*checkpoint, name, out, in, *summary->config.vptq->Find(name));
    ASSERT_TRUE(linear.ok()) << linear.status();
    bytes += linear->ReadBlock({0, out}, {0, in})->size_bytes();
  }
  EXPECT_EQ(ShareOfRank(model, *summary, 1)->weight_bytes,
            12 * bytes + dense->total.size_bytes - dense->linear.total.size_bytes);
}

TEST(SyntheticModelTest, AnyConfigIsAShape) {
  const std::string dir = absl::StrCat("synthetic:", THINWIRE_BUNDLED_MODELS, "/llama-nano");
  const auto summary = SummarizeCheckpoint(dir + ":w4a8");
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->config.family, ModelFamily::kLlama);
  EXPECT_EQ(summary->scheme, "w4a8");
}

TEST(SyntheticModelTest, WrongNamesSayWhatIsWrong) {
  const auto error = [](const std::string& model) {
    return std::string(LoadModelConfig(model).status().message());
  };
  EXPECT_THAT(error("synthetic:llama-9"), AllOf(HasSubstr("llama-2-70b"), HasSubstr("llama-9")));
  EXPECT_THAT(error("synthetic:opt-66b:w5"), HasSubstr("w5"));
  EXPECT_THAT(error("synthetic:opt-66b:vptq-b2.10"), HasSubstr("budget"));
  EXPECT_THAT(error("synthetic:opt-66b:vptq-v8-k256-g5"),
              AllOf(HasSubstr("5 equal groups"), HasSubstr("q_proj")));
  EXPECT_THAT(error("synthetic:opt-66b:w4a16:x"), HasSubstr("seed"));
  EXPECT_THAT(error("synthetic:"), HasSubstr("synthetic:SHAPE"));
  EXPECT_THAT(error("synthetic:a:b:c:d"), HasSubstr("synthetic:SHAPE"));
}

}  // namespace
}  // namespace thinwire
