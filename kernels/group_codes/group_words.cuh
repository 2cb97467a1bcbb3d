// Where the codes of a group that threads share (group_lanes.cuh) lie in its bytes (group_codes.h).
#pragma once

#include <cstdint>

namespace thinwire {
namespace {

inline constexpr int kLanes = 4;  // threads of a group, if not said otherwise

// Codes as bytes, 4 a word: those of values 16 k + kRun lane + 4 w and on in number k kRun / 4 + w.
template <int kSteps, int kThreads = kLanes>
inline constexpr int kWords = kSteps * 4 / kThreads;

// kAligned: known to be at a multiple of 4.
template <bool kAligned>
__device__ __forceinline__ void StoreWord(uint32_t word, uint8_t* to) {
  if constexpr (!kAligned) {
    if (reinterpret_cast<uintptr_t>(to) % 4 != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(word >> (8 * i));
      return;
    }
  }
  *reinterpret_cast<uint32_t*>(to) = word;
}

template <bool kAligned>
__device__ __forceinline__ uint32_t LoadWord(const uint8_t* from) {
  if constexpr (!kAligned) {
    if (reinterpret_cast<uintptr_t>(from) % 4 != 0) {
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(from[i]) << (8 * i);
      return word;
    }
  }
  return *reinterpret_cast<const uint32_t*>(from);
}

// kCount words, known to be aligned to themselves where kAligned.
template <bool kAligned, int kCount>
__device__ __forceinline__ void StoreWords(const uint32_t (&words)[kCount], uint8_t* to) {
  if constexpr (kAligned && kCount == 2) {
    *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
  } else {
#pragma unroll
    for (int w = 0; w < kCount; ++w) StoreWord<kAligned>(words[w], to + 4 * w);
  }
}

template <bool kAligned, int kCount>
__device__ __forceinline__ void LoadWords(const uint8_t* from, uint32_t (&words)[kCount]) {
  if constexpr (kAligned && kCount == 2) {
    const uint2 both = *reinterpret_cast<const uint2*>(from);
    words[0] = both.x;
    words[1] = both.y;
  } else {
#pragma unroll
    for (int w = 0; w < kCount; ++w) words[w] = LoadWord<kAligned>(from + 4 * w);
  }
}

template <int kBits, int kSteps, bool kAligned, int kThreads = kLanes>
__device__ __forceinline__ void StoreCodes(int lane,
                                           const uint32_t (&codes)[kWords<kSteps, kThreads>],
                                           bool write, uint8_t* to) {
  constexpr int kEach = 4 / kThreads;  // words of a step
  constexpr int kRun = 16 / kThreads;
  if constexpr (kBits == 8) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t words[kEach];
#pragma unroll
      for (int w = 0; w < kEach; ++w) words[w] = codes[k * kEach + w];
      if (write) StoreWords<kAligned>(words, to + 16 * k + kRun * lane);
    }
    return;
  }
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  if constexpr (kSteps == 1) {
    static_assert(kThreads == 4);
    // The upper half of the values lies two threads further.
    const uint32_t above = __shfl_xor_sync(0xffffffffu, codes[0] & kLow, 2);
    if (write && lane < 2) StoreWord<kAligned>((codes[0] & kLow) | above << 4, to + 4 * lane);
  } else {
#pragma unroll
    for (int k = 0; k < kSteps / 2; ++k) {
      uint32_t words[kEach];
#pragma unroll
      for (int w = 0; w < kEach; ++w) {
        words[w] = (codes[k * kEach + w] & kLow) | (codes[(k + kSteps / 2) * kEach + w] & kLow)
                                                       << 4;
      }
      if (write) StoreWords<kAligned>(words, to + 16 * k + kRun * lane);
    }
  }
  uint8_t* const high = to + 8 * kSteps;
  if constexpr (kBits == 6) {
#pragma unroll
    for (int i = 0; i < kSteps * kEach; ++i) {
      // The product moves the two bits of each byte into the topmost.
      const uint32_t pairs = codes[i] >> 4 & 0x03030303u;
      if (write) {
        high[4 * (i / kEach) + kEach * lane + i % kEach] =
            static_cast<uint8_t>(pairs * 0x01041040u >> 24);
      }
    }
  }
  if constexpr (kBits == 5) {
    uint32_t runs[kSteps];  // a thread's topmost bits, that of its first value lowest
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      runs[k] = 0;
#pragma unroll
      for (int w = 0; w < kEach; ++w) {
        runs[k] |= ((codes[k * kEach + w] >> 4 & 0x01010101u) * 0x01020408u >> 24) << (4 * w);
      }
    }
    if constexpr (kSteps == 4) {
      uint32_t words[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        words[half] = (runs[2 * half] | runs[2 * half + 1] << 16) << (kRun * lane);
#pragma unroll
        for (int h = 1; h < kThreads; h *= 2) {
          words[half] |= __shfl_xor_sync(0xffffffffu, words[half], h);
        }
      }
      if (write && lane < 2) StoreWord<kAligned>(lane == 0 ? words[0] : words[1], high + 4 * lane);
    } else {
      static_assert(kThreads == 4);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint32_t next = __shfl_down_sync(0xffffffffu, runs[k], 1);
        if (write && lane % 2 == 0) {
          high[2 * k + lane / 2] = static_cast<uint8_t>(runs[k] | next << 4);
        }
      }
    }
  }
}

template <int kBits, int kSteps, bool kAligned, int kThreads = kLanes>
__device__ __forceinline__ void LoadCodes(int lane, const uint8_t* from,
                                          uint32_t (&codes)[kWords<kSteps, kThreads>]) {
  constexpr int kEach = 4 / kThreads;
  constexpr int kRun = 16 / kThreads;
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  if constexpr (kBits == 8) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t words[kEach];
      LoadWords<kAligned>(from + 16 * k + kRun * lane, words);
#pragma unroll
      for (int w = 0; w < kEach; ++w) codes[k * kEach + w] = words[w];
    }
    return;
  } else if constexpr (kSteps == 1) {
    static_assert(kThreads == 4);
    codes[0] = LoadWord<kAligned>(from + 4 * (lane & 1)) >> (lane < 2 ? 0 : 4) & kLow;
  } else {
#pragma unroll
    for (int k = 0; k < kSteps / 2; ++k) {
      uint32_t words[kEach];
      LoadWords<kAligned>(from + 16 * k + kRun * lane, words);
#pragma unroll
      for (int w = 0; w < kEach; ++w) {
        codes[k * kEach + w] = words[w] & kLow;
        codes[(k + kSteps / 2) * kEach + w] = words[w] >> 4 & kLow;
      }
    }
  }
  const uint8_t* const high = from + 8 * kSteps;
  if constexpr (kBits == 6) {
#pragma unroll
    for (int i = 0; i < kSteps * kEach; ++i) {
      const uint32_t byte = high[4 * (i / kEach) + kEach * lane + i % kEach];
      codes[i] |=
          (byte & 0x03u) << 4 | (byte & 0x0cu) << 10 | (byte & 0x30u) << 16 | (byte & 0xc0u) << 22;
    }
  }
  if constexpr (kBits == 5) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t run;
      if constexpr (kAligned && kSteps == 4) {
        run = LoadWord<true>(high + 4 * (k / 2)) >> (16 * (k % 2) + kRun * lane);
      } else {
        static_assert(kThreads == 4);
        run = static_cast<uint32_t>(high[2 * k + lane / 2]) >> (4 * (lane % 2));
      }
#pragma unroll
      for (int w = 0; w < kEach; ++w) {
        // Bit i to the lowest of byte i.
        codes[k * kEach + w] |= ((run >> (4 * w) & 0x0fu) * 0x00204081u & 0x01010101u) << 4;
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
