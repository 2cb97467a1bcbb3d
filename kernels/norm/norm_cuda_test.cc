#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_rows.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

class NormCudaTest : public GpuTest {};

struct Case {
  NormKind kind = NormKind::kLayerNorm;
  DType dtype = DType::kF32;
  int64_t num_tokens = 1;
  int64_t hidden = 1;
  int64_t gap = 0;  // elements between rows
  bool delta = false;
  bool weight = false;
  bool bias = false;
  bool order = false;
  bool in_place = false;

  std::string Name() const {
    return absl::StrCat(kind == NormKind::kLayerNorm ? "LayerNorm " : "RMSNorm ", DTypeName(dtype),
                        "[", num_tokens, ", ", hidden, "] gap ", gap, " delta ", delta, " weight ",
                        weight, " bias ", bias, " order ", order, " in place ", in_place);
  }
};

// Rows of `values` in host memory and on the GPU.
struct Pair {
  Pair(const std::vector<float>& values, DType dtype, int64_t rows, int64_t columns, Stream& stream)
      : host(RoundedTensor(values, dtype, rows, columns)), device(OnDevice(host.view(), stream)) {}

  Tensor host;
  Tensor device;
};

// The longest chain of additions is shorter than norm_rows.h allows for: at most 4 vectors a
// thread, or hidden / threads, then 10 stages.
void CompareNorm(const Case& c, std::mt19937& random, Stream& stream) {
  SCOPED_TRACE(c.Name());
  const int64_t stride = c.hidden + c.gap;
  Pair x(Activations(c.num_tokens, stride, random), c.dtype, c.num_tokens, stride, stream);
  Pair delta(Activations(c.num_tokens, stride, random), c.dtype, c.num_tokens, stride, stream);
  Pair out(Activations(c.num_tokens, stride, random), c.dtype, c.num_tokens, stride, stream);
  const std::vector<float> before = Floats(c.in_place ? x.host : out.host);
  const std::vector<float> weight = Activations(1, c.hidden, random);
  const std::vector<float> bias = Activations(1, c.hidden, random);
  const std::vector<int32_t> order = Shuffled(c.hidden, random);
  const Tensor device_weight = VectorOnDevice(weight, stream);
  const Tensor device_bias = VectorOnDevice(bias, stream);
  const Tensor device_order = VectorOnDevice(order, stream);
  const auto args = [&](bool device) {
    NormArgs a;
    a.kind = c.kind;
    a.x = (device ? x.device : x.host).mutable_view().Columns(0, c.hidden);
    if (c.delta) a.delta = (device ? delta.device : delta.host).view().Columns(0, c.hidden);
    if (c.weight) {
      a.weight =
          device ? device_weight.view() : ConstTensorView(weight.data(), DType::kF32, {c.hidden});
    }
    if (c.bias) {
      a.bias = device ? device_bias.view() : ConstTensorView(bias.data(), DType::kF32, {c.hidden});
    }
    if (c.order) {
      a.order =
          device ? device_order.view() : ConstTensorView(order.data(), DType::kI32, {c.hidden});
    }
    a.out = c.in_place && device
                ? a.x
                : (device ? out.device : out.host).mutable_view().Columns(0, c.hidden);
    return a;
  };
  ASSERT_TRUE(NormReference(args(false)).ok());
  const absl::Status status = Norm(args(true), stream);
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<float> sums = Floats(x.host);
  const std::vector<float> want = Floats(out.host);
  const std::vector<float> got =
      Floats(OnHost((c.in_place ? x.device : out.device).view(), stream));
  if (!c.in_place) {
    ASSERT_EQ(Floats(OnHost(x.device.view(), stream)), sums);
  }
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const RowBound row(c.kind, sums.data() + t * stride, c.hidden, 1e-5);
    for (int64_t i = 0; i < stride; ++i) {
      const auto at = static_cast<size_t>(t * stride + i);
      if (i >= c.hidden) {
        ASSERT_EQ(got[at], before[at]) << "gap overwritten";
        continue;
      }
      const double w = c.weight ? std::fabs(weight[static_cast<size_t>(i)]) : 1.0;
      const double b = c.bias ? bias[static_cast<size_t>(i)] : 0.0;
      const double scaled = std::fabs(want[at] - b) + UnitRoundoff(c.dtype) * std::fabs(want[at]);
      const double bound = w * row.shift + row.relative * scaled +
                           2 * (UnitRoundoff(c.dtype) + kEps) * std::fabs(want[at]) + 0x1p-24;
      ASSERT_NEAR(got[at], want[at], bound) << "token " << t << ", channel " << i;
    }
  }
}

TEST_F(NormCudaTest, AgreesWithTheDefinition) {
  // One warp, whole vectors, one element too many, rows apart; 1, 2 and 4 vectors a thread and more
  // than those; more rows than blocks.
  const int64_t shapes[][3] = {{1, 1, 0},     {2, 3, 1},     {3, 64, 0},     {5, 129, 7},
                               {3, 4096, 64}, {2, 4097, 0},  {2, 8192, 8},   {1, 12288, 0},
                               {2, 16384, 0}, {1, 24576, 8}, {1500, 768, 0}, {700, 2048, 16}};
  std::mt19937 random(std::random_device{}());
  int turn = 0;
  for (const auto& shape : shapes) {
    for (const DType dtype : kFloatDTypes) {
      for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
        for (int i = 0; i < 2; ++i) {
          ++turn;
          Case c{kind, dtype, shape[0], shape[1], shape[2]};
          c.delta = turn & 1;
          c.weight = turn & 2;
          c.bias = kind == NormKind::kLayerNorm && (turn / 3 & 1);
          c.order = turn % 5 < 2;
          c.in_place = !c.order && turn % 5 == 2;
          CompareNorm(c, random, stream());
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

void CompareCodes(const Case& c, std::mt19937& random, Stream& stream) {
  SCOPED_TRACE(c.Name());
  const int64_t stride = c.hidden + c.gap;
  Pair x(Activations(c.num_tokens, stride, random), c.dtype, c.num_tokens, stride, stream);
  Pair delta(Activations(c.num_tokens, c.hidden, random), c.dtype, c.num_tokens, c.hidden, stream);
  const std::vector<int32_t> order = Shuffled(c.hidden, random);
  std::vector<float> weight, bias;
  std::vector<uint8_t> max_code;
  for (int64_t j = 0; j < c.hidden; ++j) {
    // Codes of 8 and 4 bits that span about +-2.
    const float most = j % 2 == 0 ? 255.0f : 15.0f;
    weight.push_back(most / 4.0f * std::uniform_real_distribution<float>(0.7f, 1.3f)(random));
    bias.push_back(most / 2.0f + std::normal_distribution<float>(0.0f, 1.0f)(random));
    max_code.push_back(static_cast<uint8_t>(most));
  }
  const std::vector<uint8_t> poison(static_cast<size_t>(c.num_tokens * stride), 77);
  Tensor codes =
      OnDevice(ConstTensorView(poison.data(), DType::kU8, {c.num_tokens, stride}), stream);
  const Tensor device_order = VectorOnDevice(order, stream);
  const Tensor device_weight = VectorOnDevice(weight, stream);
  const Tensor device_bias = VectorOnDevice(bias, stream);
  const Tensor device_max_code = VectorOnDevice(max_code, stream);
  NormCodesArgs args;
  args.kind = c.kind;
  args.x = x.device.mutable_view().Columns(0, c.hidden);
  if (c.delta) args.delta = delta.device.view();
  if (c.order) args.order = device_order.view();
  args.weight = device_weight.view();
  args.bias = device_bias.view();
  args.max_code = device_max_code.view();
  args.codes = codes.mutable_view().Columns(0, c.hidden);
  const absl::Status status = NormCodes(args, stream);
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<uint8_t> got = Values<uint8_t>(codes.view(), stream);
  const std::vector<float> sums = Floats(OnHost(x.device.view(), stream));
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const float* row = sums.data() + t * stride;
    const RowBound bound(c.kind, row, c.hidden, 1e-5);
    double variance = 0.0;
    for (int64_t i = 0; i < c.hidden; ++i) {
      const double centered = row[i] - bound.mean;
      variance += centered * centered / static_cast<double>(c.hidden);
    }
    for (int64_t j = 0; j < stride; ++j) {
      const auto at = static_cast<size_t>(t * stride + j);
      if (j >= c.hidden) {
        ASSERT_EQ(got[at], 77) << "gap overwritten";
        continue;
      }
      const auto i = static_cast<size_t>(j);
      const double y = (row[c.order ? order[i] : j] - bound.mean) / std::sqrt(variance + 1e-5);
      const double value = y * weight[i] + bias[i];
      const double error =
          weight[i] * (bound.shift + bound.relative * std::fabs(y)) + 2 * kEps * std::fabs(value);
      const auto code = [&](double v) {
        return std::clamp(std::nearbyint(v), 0.0, static_cast<double>(max_code[i]));
      };
      ASSERT_GE(got[at], code(value - error)) << "token " << t << ", code " << j;
      ASSERT_LE(got[at], code(value + error)) << "token " << t << ", code " << j;
    }
  }
}

TEST_F(NormCudaTest, CodesAgreeWithTheDefinition) {
  const int64_t shapes[][3] = {{1, 1, 0},     {3, 64, 3},    {5, 129, 7},   {3, 4096, 64},
                               {2, 4100, 0},  {2, 8192, 8},  {1, 12288, 0}, {2, 16384, 16},
                               {1, 24576, 8}, {1500, 768, 0}};
  std::mt19937 random(std::random_device{}());
  int turn = 0;
  for (const auto& shape : shapes) {
    for (const DType dtype : kFloatDTypes) {
      for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
        ++turn;
        Case c{kind, dtype, shape[0], shape[1], shape[2]};
        c.delta = turn % 2 == 0;
        c.order = turn % 3 != 0;
        CompareCodes(c, random, stream());
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Blocks take many rows each, in the two sets of shared memory in turns.
TEST_F(NormCudaTest, ManyReorderedRowsAgreeWithTheDefinition) {
  const int64_t shapes[][3] = {{2049, 264, 8}, {2052, 520, 0}, {2049, 4104, 8}};
  std::mt19937 random(std::random_device{}());
  for (const auto& shape : shapes) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      Case c{NormKind::kLayerNorm, dtype, shape[0], shape[1], shape[2]};
      c.delta = c.weight = c.bias = c.order = true;
      CompareNorm(c, random, stream());
      if (HasFatalFailure()) return;
      c.kind = NormKind::kRmsNorm;
      CompareCodes(c, random, stream());
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(NormCudaTest, AdditionAndScalingRoundOnceLikeTheCpu) {
  std::mt19937 random(std::random_device{}());
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t columns : {1, 19, 64, 4096, 70001}) {
      for (const int64_t gap : {0, 2, 8}) {
        const int64_t rows = columns > 4096 ? 2 : 67;
        SCOPED_TRACE(absl::StrCat(DTypeName(dtype), " ", columns, " gap ", gap));
        Pair x(Activations(rows, columns + gap, random), dtype, rows, columns + gap, stream());
        Pair delta(Activations(rows, columns, random), dtype, rows, columns, stream());
        const auto part = [&](Tensor& tensor) { return tensor.mutable_view().Columns(0, columns); };
        ASSERT_TRUE(AddInPlace(part(x.host), delta.host.view(), host()).ok());
        ASSERT_TRUE(AddInPlace(part(x.device), delta.device.view(), stream()).ok());
        const std::vector<float> sums = Floats(x.host);
        ASSERT_EQ(Floats(OnHost(x.device.view(), stream())), sums);

        const std::vector<float> weight = Activations(1, columns, random);
        const std::vector<float> bias = Activations(1, columns, random);
        const Tensor device_weight = VectorOnDevice(weight, stream());
        const Tensor device_bias = VectorOnDevice(bias, stream());
        ASSERT_TRUE(ScaleInPlace(part(x.host),
                                 ConstTensorView(weight.data(), DType::kF32, {columns}),
                                 ConstTensorView(bias.data(), DType::kF32, {columns}), host())
                        .ok());
        ASSERT_TRUE(
            ScaleInPlace(part(x.device), device_weight.view(), device_bias.view(), stream()).ok());
        const std::vector<float> want = Floats(x.host);
        const std::vector<float> got = Floats(OnHost(x.device.view(), stream()));
        for (size_t i = 0; i < got.size(); ++i) {
          if (got[i] == want[i]) continue;  // infinities, too
          // The CPU may fuse the product and the sum or not: one rounding of fp32, which may end in
          // a neighbour of the dtype's.
          const auto column = static_cast<int64_t>(i) % (columns + gap);
          ASSERT_LT(column, columns) << "gap overwritten";
          const double product = std::fabs(sums[i] * weight[static_cast<size_t>(column)]);
          ASSERT_NEAR(got[i], want[i],
                      2 * UnitRoundoff(dtype) * std::fabs(want[i]) + 2 * kEps * product + 0x1p-24);
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
