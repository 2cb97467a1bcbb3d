#include <cstddef>
#include <vector>

#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/convert/element.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::Status CodedLinearReference(const CodedLinearArgs& args) {
  TW_RETURN_IF_ERROR(CheckCodedLinearArgs(args, Device::Cpu()));
  const CodedWeights& weights = *args.weights;
  std::vector<float> row(static_cast<size_t>(weights.in_features()));
  for (int64_t o = 0; o < weights.out_features(); ++o) {
    weights.DequantizeRow(o, absl::MakeSpan(row));
    for (int64_t t = 0; t < args.x.dim(0); ++t) {
      double sum = args.bias.empty() ? 0.0 : static_cast<double>(args.bias.data<float>()[o]);
      for (int64_t i = 0; i < weights.in_features(); ++i) {
        sum += LoadElement(args.x, t * args.x.row_stride() + i) * static_cast<double>(row[i]);
      }
      StoreElement(args.y, t * args.y.row_stride() + o, sum);
    }
  }
  return absl::OkStatus();
}

absl::Status IntegerLinearReference(const IntegerLinearArgs& args) {
  TW_RETURN_IF_ERROR(CheckIntegerLinearArgs(args, Device::Cpu()));
  const CodedWeights& weights = *args.weights;
  const auto value = [](const ConstTensorView& view, int64_t i, double otherwise) {
    return view.empty() ? otherwise : static_cast<double>(view.data<float>()[i]);
  };
  std::vector<float> row(static_cast<size_t>(weights.in_features()));
  for (int64_t o = 0; o < weights.out_features(); ++o) {
    weights.DequantizeRow(o, absl::MakeSpan(row));
    for (int64_t t = 0; t < args.codes.dim(0); ++t) {
      const uint8_t* codes = args.codes.data<uint8_t>() + t * args.codes.row_stride();
      double sum = 0.0;
      for (size_t s = 0; s < args.segment_step.size(); ++s) {
        // Products of 8 by 20 bits, so that the sum over a segment is as exact as one of integers.
        double segment = 0.0;
        for (int64_t i = args.segment_offsets[s]; i < args.segment_offsets[s + 1]; ++i) {
          segment += static_cast<double>(codes[i]) * static_cast<double>(row[i]);
        }
        sum += static_cast<double>(args.segment_step[s]) * segment;
      }
      sum =
          value(args.gains, t, 1.0) * (sum - value(args.offset, o, 0.0)) + value(args.bias, o, 0.0);
      StoreElement(args.y, t * args.y.row_stride() + o, sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
