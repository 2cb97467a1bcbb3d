#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/convert/element.h"
#include "kernels/core/status_macros.h"
#include "kernels/group_codes/group_codes.h"
#include "kernels/group_codes/group_codes_internal.h"

namespace thinwire {
namespace {

double Scale(int byte) { return std::exp2((byte - 128) / 8.0); }

std::vector<double> Levels(int bits) {
  const int n = 1 << bits;
  std::vector<double> levels;
  for (int k = 0; k < n; ++k) {
    if (bits == 4) {
      levels.push_back(k < 8 ? -double{kFourBitLevels[7 - k]} : double{kFourBitLevels[k - 8]});
    } else {
      levels.push_back((2.0 * k + 1.0 - n) / (n - 1.0));
    }
  }
  return levels;
}

// H x
std::vector<double> Rotated(const std::vector<double>& x) {
  std::vector<double> u(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) u[i] += std::popcount(i & j) % 2 == 0 ? x[j] : -x[j];
    u[i] /= std::sqrt(static_cast<double>(x.size()));
  }
  return u;
}

// Levels ascend and are nearly even: the search starts at the even one.
int NearestCode(double value, const std::vector<double>& levels) {
  const int last = static_cast<int>(levels.size()) - 1;
  int best =
      std::clamp(static_cast<int>(std::clamp(value, -1.0, 1.0) * last / 2 + last / 2.0), 0, last);
  const auto distance = [&](int k) { return std::fabs(value - levels[k]); };
  while (best < last && distance(best + 1) < distance(best)) ++best;
  while (best > 0 && distance(best - 1) < distance(best)) --best;
  return best;
}

// Where code i of a group of `size` has its bits.
struct Place {
  int64_t low_byte, low_shift, high_byte, high_shift;

  Place(int bits, int64_t size, int64_t i) {
    const int64_t half = (size + 1) / 2;
    low_byte = i < half ? i : i - half;
    low_shift = i < half ? 0 : 4;
    const int64_t per_byte = bits == 5 ? 8 : 4;
    high_byte = half + i / per_byte;
    high_shift = i % per_byte * (bits - 4);
  }
};

void StoreCode(int bits, int64_t size, int64_t i, int code, uint8_t* group) {
  if (bits == 8) {
    group[i] = static_cast<uint8_t>(code);
    return;
  }
  const Place place(bits, size, i);
  group[place.low_byte] |= static_cast<uint8_t>((code & 15) << place.low_shift);
  if (bits > 4) group[place.high_byte] |= static_cast<uint8_t>(code >> 4 << place.high_shift);
}

int LoadCode(int bits, int64_t size, int64_t i, const uint8_t* group) {
  if (bits == 8) return group[i];
  const Place place(bits, size, i);
  const int low = group[place.low_byte] >> place.low_shift & 15;
  if (bits == 4) return low;
  return low | (group[place.high_byte] >> place.high_shift & ((1 << (bits - 4)) - 1)) << 4;
}

double SquaredError(const std::vector<double>& u, double scale, const std::vector<double>& levels) {
  double sum = 0.0;
  for (const double value : u) {
    const double difference = value - scale * levels[NearestCode(value / scale, levels)];
    sum += difference * difference;
  }
  return sum;
}

int BestScaleByte(const std::vector<double>& u, int bits, const std::vector<double>& levels) {
  double largest = 0.0;
  for (const double value : u) largest = std::max(largest, std::fabs(value));
  if (largest == 0.0) return kZeroGroup;
  if (!std::isfinite(largest)) return kNanGroup;
  int first = kLeastScaleByte;
  while (first < kLargestScaleByte && Scale(first) < largest) ++first;
  int best = first;
  double least = std::numeric_limits<double>::infinity();
  for (int byte = first; byte > first - NumScaleCandidates(bits) && byte >= kLeastScaleByte;
       --byte) {
    const double error = SquaredError(u, Scale(byte), levels);
    if (error < least) {
      least = error;
      best = byte;
    }
  }
  return best;
}

}  // namespace

absl::Status EncodeGroupsReference(const EncodeGroupsArgs& args) {
  TW_RETURN_IF_ERROR(CheckEncodeGroupsArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("encode groups reference: x must be on the CPU");
  }
  const GroupCodesFormat& format = args.format;
  const int64_t size = format.group();
  const std::vector<double> levels = Levels(format.bits);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    uint8_t* const row = args.codes.mutable_data<uint8_t>() + t * format.row_bytes();
    std::fill_n(row, format.row_bytes(), uint8_t{0});
    for (int64_t g = 0; g < format.num_groups(); ++g) {
      std::vector<double> x(static_cast<size_t>(size));
      bool finite = true;
      for (int64_t i = 0; i < size; ++i) {
        x[i] = LoadElement(args.x, t * args.x.row_stride() + g * size + i);
        finite = finite && std::isfinite(x[i]);
      }
      const std::vector<double> u = Rotated(x);
      const int byte = finite ? BestScaleByte(u, format.bits, levels) : kNanGroup;
      row[g] = static_cast<uint8_t>(byte);
      if (byte == kZeroGroup || byte == kNanGroup) continue;
      for (int64_t i = 0; i < size; ++i) {
        StoreCode(format.bits, size, i, NearestCode(u[i] / Scale(byte), levels),
                  row + format.num_groups() + g * format.group_bytes());
      }
    }
  }
  return absl::OkStatus();
}

absl::Status DecodeGroupsReference(const DecodeGroupsArgs& args) {
  TW_RETURN_IF_ERROR(CheckDecodeGroupsArgs(args));
  if (args.y.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("decode groups reference: y must be on the CPU");
  }
  const GroupCodesFormat& format = args.format;
  const int64_t size = format.group();
  const std::vector<double> levels = Levels(format.bits);
  for (int64_t t = 0; t < args.y.dim(0); ++t) {
    for (int64_t g = 0; g < format.num_groups(); ++g) {
      std::vector<double> u(static_cast<size_t>(size));
      for (const ConstTensorView& part : args.parts) {
        const uint8_t* const row = part.data<uint8_t>() + t * format.row_bytes();
        const double scale = row[g] == kZeroGroup  ? 0.0
                             : row[g] == kNanGroup ? std::numeric_limits<double>::quiet_NaN()
                                                   : Scale(row[g]);
        const uint8_t* const codes = row + format.num_groups() + g * format.group_bytes();
        for (int64_t i = 0; i < size; ++i) {
          u[i] += scale * levels[LoadCode(format.bits, size, i, codes)];
        }
      }
      const std::vector<double> y = Rotated(u);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t at = t * args.y.row_stride() + g * size + i;
        StoreElement(args.y, at, args.accumulate ? LoadElement(args.y, at) + y[i] : y[i]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
