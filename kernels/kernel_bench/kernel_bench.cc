#include "kernels/kernel_bench/kernel_bench.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/core/copy.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/event.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/vptq_linear/vptq_linear.h"

namespace thinwire {
namespace {

constexpr int kRounds = 5;
constexpr int64_t kCpuCacheBytes = int64_t{256} << 20;  // more than the caches of most hosts
constexpr int64_t kMostSets = 256;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kPageSize = 16;
constexpr int64_t kGroup = 128;  // columns of a group of weights
constexpr int64_t kTokens[] = {1, 16, 512};

// A call with set `i` of the operands.
using Call = absl::FunctionRef<absl::Status(int64_t i)>;

// Median seconds of a call.
absl::StatusOr<double> TimeCalls(double seconds, Stream& stream, Call call) {
  TW_ASSIGN_OR_RETURN(Event start, Event::Create(stream.device(), Event::Kind::kTimed));
  TW_ASSIGN_OR_RETURN(Event end, Event::Create(stream.device(), Event::Kind::kTimed));
  int64_t next = 0;
  const auto round = [&](int64_t calls) -> absl::StatusOr<double> {
    TW_RETURN_IF_ERROR(start.Record(stream));
    for (int64_t i = 0; i < calls; ++i) TW_RETURN_IF_ERROR(call(next++));
    TW_RETURN_IF_ERROR(end.Record(stream));
    TW_RETURN_IF_ERROR(stream.Synchronize());
    TW_ASSIGN_OR_RETURN(const double milliseconds, end.MillisecondsSince(start));
    return milliseconds * 1e-3 / static_cast<double>(calls);
  };
  TW_RETURN_IF_ERROR(round(1).status());  // handles, plans, memory
  TW_ASSIGN_OR_RETURN(const double once, round(2));
  const auto calls =
      static_cast<int64_t>(std::clamp(seconds / kRounds / std::max(once, 1e-7), 1.0, 1e4));
  std::vector<double> times;
  for (int i = 0; i < kRounds; ++i) {
    TW_ASSIGN_OR_RETURN(const double time, round(calls));
    times.push_back(time);
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2];
}

// Random bytes, or fp16 below 1 in magnitude, in host memory.
absl::StatusOr<Tensor> RandomOnHost(DType dtype, std::initializer_list<int64_t> shape) {
  TW_ASSIGN_OR_RETURN(Tensor host, Tensor::Allocate(dtype, shape, Device::Cpu()));
  // Of one block again and again: what caches see are addresses.
  std::vector<uint8_t> block(1 << 20);
  uint32_t random = 1;
  for (size_t i = 0; i < block.size(); i += 2) {
    random = random * 1664525u + 1013904223u;
    auto bits = static_cast<uint16_t>(random >> 16);
    if (dtype == DType::kF16) {
      bits = ToHalf(static_cast<float>(static_cast<int16_t>(bits)) * 0x1p-15f).bits;
    }
    std::memcpy(block.data() + i, &bits, 2);
  }
  auto* const to = static_cast<uint8_t*>(host.mutable_view().mutable_raw());
  for (int64_t i = 0; i < host.size_bytes(); i += static_cast<int64_t>(block.size())) {
    const int64_t size = std::min<int64_t>(host.size_bytes() - i, std::ssize(block));
    std::memcpy(to + i, block.data(), static_cast<size_t>(size));
  }
  return host;
}

// The same on the device.
absl::StatusOr<Tensor> Random(DType dtype, std::initializer_list<int64_t> shape, Stream& stream) {
  TW_ASSIGN_OR_RETURN(Tensor host, RandomOnHost(dtype, shape));
  if (stream.device() == Device::Cpu()) return host;
  TW_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, shape, stream.device()));
  TW_RETURN_IF_ERROR(Copy(host.view(), tensor.mutable_view(), stream));
  TW_RETURN_IF_ERROR(stream.Synchronize());
  return tensor;
}

absl::StatusOr<std::vector<Tensor>> RandomSets(int64_t count, DType dtype,
                                               std::initializer_list<int64_t> shape,
                                               Stream& stream) {
  std::vector<Tensor> sets;
  for (int64_t i = 0; i < count; ++i) {
    TW_ASSIGN_OR_RETURN(Tensor tensor, Random(dtype, shape, stream));
    sets.push_back(std::move(tensor));
  }
  return sets;
}

// Multiples of kGroup to `columns`.
std::vector<int32_t> Groups(int64_t columns) {
  std::vector<int32_t> offsets;
  for (int64_t c = 0; c <= columns; c += kGroup) offsets.push_back(static_cast<int32_t>(c));
  return offsets;
}

absl::StatusOr<CodedWeights> RandomWeights(int64_t width, int bits, Device device) {
  TW_ASSIGN_OR_RETURN(CodedWeights weights,
                      CodedWeights::Allocate(width, width, bits, Groups(width), Device::Cpu()));
  std::vector<uint8_t> codes(static_cast<size_t>(16 * width));
  uint32_t random = 1;
  for (uint8_t& code : codes) {
    random = random * 1664525u + 1013904223u;
    code = static_cast<uint8_t>(random >> (32 - bits));
  }
  const std::vector<float> scales(static_cast<size_t>(16 * weights.num_groups()), 0.01f);
  const std::vector<uint8_t> zeros(scales.size(), static_cast<uint8_t>(1 << (bits - 1)));
  for (int64_t row = 0; row < width; row += 16) {
    TW_RETURN_IF_ERROR(
        weights.SetRows(row, ConstTensorView(codes.data(), DType::kU8, {16, width}),
                        ConstTensorView(scales.data(), DType::kF32, {16, weights.num_groups()}),
                        ConstTensorView(zeros.data(), DType::kU8, {16, weights.num_groups()})));
  }
  return weights.CopyTo(device);
}

// Vectors of `length` out of 2^index_bits, plus one out of 2^residual_bits unless that is 1.
absl::StatusOr<VptqWeights> RandomVectors(int64_t width, int length, int index_bits,
                                          int residual_bits) {
  std::vector<VptqPart> parts(1);
  VptqPart& part = parts[0];
  part.length = length;
  part.index_bits = index_bits;
  part.residual_bits = residual_bits;
  VptqGroup& group = part.groups.emplace_back();
  group.num_columns = width;
  const int64_t stride = VptqStride(length);
  TW_ASSIGN_OR_RETURN(group.centroids,
                      RandomOnHost(DType::kF16, {int64_t{1} << index_bits, stride}));
  if (residual_bits > 0) {
    TW_ASSIGN_OR_RETURN(group.residual,
                        RandomOnHost(DType::kF16, {int64_t{1} << residual_bits, stride}));
  }
  TW_ASSIGN_OR_RETURN(group.codes,
                      RandomOnHost(DType::kU8, {VptqCodeBytes(part.num_vectors(width), width,
                                                              part.code_bits(group))}));
  return VptqWeights::Create(width, std::move(parts), {},
                             std::vector<float>(static_cast<size_t>(width), 0.01f),
                             std::vector<float>(static_cast<size_t>(width), 0.001f));
}

// One run of TimeKernel.
class KernelBench {
 public:
  KernelBench(const KernelBenchOptions& options, Stream& stream,
              absl::FunctionRef<absl::Status(const KernelTiming&)> each)
      : options_(options), width_(options.width), stream_(stream), each_(each) {}

  absl::Status Copies(absl::string_view name) {
    const int64_t bytes = 2 * width_ * width_;
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(2 * bytes));
    TW_ASSIGN_OR_RETURN(std::vector<Tensor> from, RandomSets(count, DType::kU8, {bytes}, stream_));
    TW_ASSIGN_OR_RETURN(std::vector<Tensor> to, RandomSets(count, DType::kU8, {bytes}, stream_));
    return Report(name, absl::StrCat(bytes), 2 * bytes, 0, [&](int64_t i) {
      const auto set = static_cast<size_t>(i % count);
      return Copy(from[set].view(), to[set].mutable_view(), stream_);
    });
  }

  absl::Status Norms(absl::string_view name) {
    const int64_t tokens = kTokens[2], bytes = 2 * 2 * tokens * width_;
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(bytes));
    TW_ASSIGN_OR_RETURN(std::vector<Tensor> x,
                        RandomSets(count, DType::kF16, {tokens, width_}, stream_));
    TW_ASSIGN_OR_RETURN(std::vector<Tensor> out,
                        RandomSets(count, DType::kF16, {tokens, width_}, stream_));
    NormArgs args;
    args.kind = NormKind::kRmsNorm;
    return Report(name, absl::StrCat(tokens, " x ", width_), bytes, 0, [&](int64_t i) {
      const auto set = static_cast<size_t>(i % count);
      args.x = x[set].mutable_view();
      args.out = out[set].mutable_view();
      return Norm(args, stream_);
    });
  }

  absl::Status Linears(absl::string_view name) {
    const int64_t weight_bytes = 2 * width_ * width_;
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(weight_bytes));
    TW_ASSIGN_OR_RETURN(const std::vector<Tensor> weights,
                        RandomSets(count, DType::kF16, {width_, width_}, stream_));
    return ForTokens(name, weight_bytes, DType::kF16, [&](const Tensor& x, Tensor& y, int64_t i) {
      LinearArgs args;
      args.x = x.view();
      args.weight = weights[static_cast<size_t>(i % count)].view();
      args.y = y.mutable_view();
      return Linear(args, stream_);
    });
  }

  // x in fp16 or, `integers`, codes of 8 bits.
  absl::Status CodedLinears(absl::string_view name, int bits, bool integers) {
    TW_ASSIGN_OR_RETURN(const CodedWeights host, RandomWeights(width_, bits, Device::Cpu()));
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(host.size_bytes()));
    std::vector<CodedWeights> weights;
    for (int64_t i = 0; i < count; ++i) {
      TW_ASSIGN_OR_RETURN(CodedWeights copy, host.CopyTo(stream_.device()));
      weights.push_back(std::move(copy));
    }
    const std::vector<int32_t> segments = Groups(width_);
    const std::vector<float> steps(segments.size() - 1, 0.01f);
    return ForTokens(name, host.size_bytes(), integers ? DType::kU8 : DType::kF16,
                     [&](const Tensor& x, Tensor& y, int64_t i) {
                       const CodedWeights* const set = &weights[static_cast<size_t>(i % count)];
                       if (!integers) {
                         CodedLinearArgs args;
                         args.x = x.view();
                         args.weights = set;
                         args.y = y.mutable_view();
                         return CodedLinear(args, stream_);
                       }
                       IntegerLinearArgs args;
                       args.codes = x.view();
                       args.segment_offsets = segments;
                       args.segment_step = steps;
                       args.weights = set;
                       args.y = y.mutable_view();
                       return IntegerLinear(args, stream_);
                     });
  }

  absl::Status VptqLinears(absl::string_view name, int length, int index_bits, int residual_bits) {
    const auto make = [&] { return RandomVectors(width_, length, index_bits, residual_bits); };
    TW_ASSIGN_OR_RETURN(const VptqWeights host, make());
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(host.size_bytes()));
    std::vector<VptqWeights> weights;
    for (int64_t i = 0; i < count; ++i) {
      TW_ASSIGN_OR_RETURN(VptqWeights copy, stream_.device() == Device::Cpu()
                                                ? make()
                                                : host.CopyTo(stream_.device()));
      weights.push_back(std::move(copy));
    }
    return ForTokens(name, host.size_bytes(), DType::kF16,
                     [&](const Tensor& x, Tensor& y, int64_t i) {
                       VptqLinearArgs args;
                       args.x = x.view();
                       args.weights = &weights[static_cast<size_t>(i % count)];
                       args.y = y.mutable_view();
                       return VptqLinear(args, stream_);
                     });
  }

  // A decoding step of 8 sequences; `bits` of the units of K and V, empty: fp16 pages.
  absl::Status Attentions(absl::string_view name, const std::vector<uint8_t>& bits) {
    const int64_t heads = width_ / kHeadDim, num_seqs = 8, context = 2048;
    const int64_t seq_pages = context / kPageSize, num_pages = num_seqs * seq_pages;
    std::vector<int32_t> token_offsets, page_offsets, page_ids(static_cast<size_t>(num_pages));
    for (int64_t s = 0; s <= num_seqs; ++s) {
      token_offsets.push_back(static_cast<int32_t>(s));
      page_offsets.push_back(static_cast<int32_t>(s * seq_pages));
    }
    const std::vector<int32_t> context_lens(num_seqs, static_cast<int32_t>(context));
    std::iota(page_ids.begin(), page_ids.end(), 0);
    TW_ASSIGN_OR_RETURN(const Tensor q, Random(DType::kF16, {num_seqs, width_}, stream_));
    TW_ASSIGN_OR_RETURN(Tensor out, Random(DType::kF16, {num_seqs, width_}, stream_));
    const auto set = [&](auto& args, const Tensor& k, const Tensor& v) {
      args.q = q.view();
      args.out = out.mutable_view();
      args.token_offsets = token_offsets;
      args.context_lens = context_lens;
      args.page_offsets = page_offsets;
      args.page_ids = page_ids;
      args.k_pages = k.view();
      args.v_pages = v.view();
      args.num_heads = heads;
      args.scale = 0.088f;
    };
    KvHeadCodes head;
    head.order.resize(kHeadDim);
    std::iota(head.order.begin(), head.order.end(), 0);
    head.bits = bits;
    head.step.assign(kHeadDim, 0.01f);
    head.zero.assign(kHeadDim, 2.5f);
    int64_t row_elements = kHeadDim;
    std::optional<KvCodes> codes;
    if (!bits.empty()) {
      TW_ASSIGN_OR_RETURN(codes, KvCodes::Create(kHeadDim, std::vector<KvHeadCodes>(heads, head),
                                                 stream_.device()));
      row_elements = codes->row_bytes();
    }
    const DType dtype = bits.empty() ? DType::kF16 : DType::kU8;
    const int64_t bytes = 2 * DTypeBytes(dtype, num_pages * heads * kPageSize * row_elements);
    TW_ASSIGN_OR_RETURN(const int64_t count, NumSets(bytes));
    const auto pages = [&] {
      return RandomSets(count, dtype, {num_pages, heads, kPageSize, row_elements}, stream_);
    };
    TW_ASSIGN_OR_RETURN(const std::vector<Tensor> k, pages());
    TW_ASSIGN_OR_RETURN(const std::vector<Tensor> v, pages());
    return Report(name, absl::StrCat(num_seqs, " x ", context, " x ", heads, " heads"), bytes,
                  4 * num_seqs * context * width_, [&](int64_t i) {
                    const auto at = static_cast<size_t>(i % count);
                    if (bits.empty()) {
                      PagedAttentionArgs args;
                      set(args, k[at], v[at]);
                      return PagedAttention(args, stream_);
                    }
                    CodedPagedAttentionArgs args;
                    set(args, k[at], v[at]);
                    args.k_codes = &*codes;
                    args.v_codes = &*codes;
                    return CodedPagedAttention(args, stream_);
                  });
  }

 private:
  // Of `bytes` each, so many that they outgrow the caches.
  absl::StatusOr<int64_t> NumSets(int64_t bytes) const {
    int64_t cache = options_.cache_bytes > 0 ? options_.cache_bytes : kCpuCacheBytes;
    if (options_.cache_bytes == 0 && stream_.device().kind != DeviceKind::kCpu) {
      TW_ASSIGN_OR_RETURN(const DeviceProperties found, GetDeviceProperties(stream_.device()));
      cache = 3 * found.l2_bytes;
    }
    return std::min<int64_t>(cache / bytes + 1, kMostSets);
  }

  absl::Status Report(absl::string_view name, std::string shape, int64_t bytes, int64_t operations,
                      Call call) {
    TW_ASSIGN_OR_RETURN(const double seconds, TimeCalls(options_.seconds, stream_, call));
    return each_({std::string(name), std::move(shape), seconds * 1e6, bytes, operations});
  }

  absl::Status ForTokens(
      absl::string_view name, int64_t weight_bytes, DType x_dtype,
      absl::FunctionRef<absl::Status(const Tensor& x, Tensor& y, int64_t i)> call) {
    for (const int64_t tokens : kTokens) {
      TW_ASSIGN_OR_RETURN(const Tensor x, Random(x_dtype, {tokens, width_}, stream_));
      TW_ASSIGN_OR_RETURN(Tensor y, Random(DType::kF16, {tokens, width_}, stream_));
      TW_RETURN_IF_ERROR(Report(name, absl::StrCat(tokens, " x ", width_, " x ", width_),
                                weight_bytes + x.size_bytes() + y.size_bytes(),
                                2 * tokens * width_ * width_,
                                [&](int64_t i) { return call(x, y, i); }));
    }
    return absl::OkStatus();
  }

  const KernelBenchOptions options_;
  const int64_t width_;
  Stream& stream_;
  absl::FunctionRef<absl::Status(const KernelTiming&)> each_;
};

struct NamedKernel {
  const char* name;
  absl::Status (*time)(absl::string_view name, KernelBench& bench);
};

// As the quantiser mixes them, 4 bits on average.
const uint8_t kMixedBits[] = {8, 5, 5, 4, 3, 3, 2, 2};

constexpr NamedKernel kKernels[] = {
    {"copy", [](absl::string_view name, KernelBench& b) { return b.Copies(name); }},
    {"norm", [](absl::string_view name, KernelBench& b) { return b.Norms(name); }},
    {"linear", [](absl::string_view name, KernelBench& b) { return b.Linears(name); }},
    {"coded-linear-4",
     [](absl::string_view name, KernelBench& b) { return b.CodedLinears(name, 4, false); }},
    {"coded-linear-3",
     [](absl::string_view name, KernelBench& b) { return b.CodedLinears(name, 3, false); }},
    {"integer-linear-4",
     [](absl::string_view name, KernelBench& b) { return b.CodedLinears(name, 4, true); }},
    {"integer-linear-3",
     [](absl::string_view name, KernelBench& b) { return b.CodedLinears(name, 3, true); }},
    {"vptq-v8-k4096-r256",
     [](absl::string_view name, KernelBench& b) { return b.VptqLinears(name, 8, 12, 8); }},
    {"vptq-v6-k4096",
     [](absl::string_view name, KernelBench& b) { return b.VptqLinears(name, 6, 12, 0); }},
    {"attention", [](absl::string_view name, KernelBench& b) { return b.Attentions(name, {}); }},
    {"attention-4",
     [](absl::string_view name, KernelBench& b) {
       return b.Attentions(name, std::vector<uint8_t>(kHeadDim / kKvUnit, 4));
     }},
    {"attention-3",
     [](absl::string_view name, KernelBench& b) {
       return b.Attentions(name, std::vector<uint8_t>(kHeadDim / kKvUnit, 3));
     }},
    {"attention-mixed",
     [](absl::string_view name, KernelBench& b) {
       return b.Attentions(name,
                           std::vector<uint8_t>(std::begin(kMixedBits), std::end(kMixedBits)));
     }},
};

}  // namespace

std::vector<std::string> KernelNames() {
  std::vector<std::string> names;
  for (const NamedKernel& kernel : kKernels) names.emplace_back(kernel.name);
  return names;
}

absl::StatusOr<DeviceLimits> MeasureDeviceLimits(Stream& stream) {
  if (stream.device().kind == DeviceKind::kCpu) {
    return DeviceLimits{MeasureReadRate(kCpuCacheBytes, stream.pool()),
                        MeasureSgemmRate(stream.pool())};
  }
  constexpr double kSeconds = 0.2;
  constexpr int64_t kBytes = int64_t{512} << 20, kSize = 8192;
  DeviceLimits limits;
  {
    TW_ASSIGN_OR_RETURN(const Tensor from, Random(DType::kU8, {kBytes}, stream));
    TW_ASSIGN_OR_RETURN(Tensor to, Tensor::Allocate(DType::kU8, {kBytes}, stream.device()));
    TW_ASSIGN_OR_RETURN(const double seconds, TimeCalls(kSeconds, stream, [&](int64_t) {
                          return Copy(from.view(), to.mutable_view(), stream);
                        }));
    limits.byte_rate = 2.0 * static_cast<double>(kBytes) / seconds;
  }
  TW_ASSIGN_OR_RETURN(const Tensor x, Random(DType::kF16, {kSize, kSize}, stream));
  TW_ASSIGN_OR_RETURN(const Tensor weight, Random(DType::kF16, {kSize, kSize}, stream));
  TW_ASSIGN_OR_RETURN(Tensor y, Tensor::Allocate(DType::kF16, {kSize, kSize}, stream.device()));
  LinearArgs args;
  args.x = x.view();
  args.weight = weight.view();
  args.y = y.mutable_view();
  TW_ASSIGN_OR_RETURN(const double seconds,
                      TimeCalls(kSeconds, stream, [&](int64_t) { return Linear(args, stream); }));
  limits.operation_rate = 2.0 * static_cast<double>(kSize * kSize * kSize) / seconds;
  return limits;
}

absl::Status TimeKernel(absl::string_view name, const KernelBenchOptions& options, Stream& stream,
                        absl::FunctionRef<absl::Status(const KernelTiming&)> each) {
  if (options.width < kHeadDim || options.width > 65536 || options.width % kHeadDim != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "width ", options.width, ": expected a multiple of ", kHeadDim, " in 128 to 65536"));
  }
  for (const NamedKernel& kernel : kKernels) {
    if (name != kernel.name) continue;
    KernelBench bench(options, stream, each);
    return Annotate(kernel.time(name, bench), absl::StrCat("timing ", name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kernel '", name, "': expected one of ", absl::StrJoin(KernelNames(), ", ")));
}

}  // namespace thinwire
