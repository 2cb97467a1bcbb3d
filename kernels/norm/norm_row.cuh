// How kernels that hold rows in registers cut them, so that they add a row's values in one order:
// of `threads` threads, thread i has the vectors i, i + threads and so on of 16 bytes. A thread
// adds its elements in their order, then come ReduceWarp and ReduceWarp of the warps' sums.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/core/vectors.cuh"

namespace thinwire {

// Threads of a row: two blocks fit a multiprocessor, with 64 or 80 registers for each thread.
constexpr int MostRowThreads(int vectors) { return vectors <= 2 ? 512 : 384; }
inline constexpr int kMostVectorsOfThread = 6;
inline constexpr int kMostRowVectors = kMostVectorsOfThread * MostRowThreads(kMostVectorsOfThread);

// body(std::integral_constant<int, vectors of a thread>, threads) for at most kMostRowVectors.
template <typename Body>
auto WithRowShape(int num_vectors, const Body& body) {
  const auto with = [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    return body(vectors, ((num_vectors + kVectors - 1) / kVectors + 31) / 32 * 32);
  };
  if (num_vectors <= MostRowThreads(1)) return with(std::integral_constant<int, 1>());
  if (num_vectors <= 2 * MostRowThreads(2)) return with(std::integral_constant<int, 2>());
  if (num_vectors <= 3 * MostRowThreads(3)) return with(std::integral_constant<int, 3>());
  if (num_vectors <= 4 * MostRowThreads(4)) return with(std::integral_constant<int, 4>());
  return with(std::integral_constant<int, kMostVectorsOfThread>());
}

// Element i of 16 bytes of T. The bytes stay packed: registers are scarcer than conversions.
template <typename T>
__device__ __forceinline__ float Element(const uint4& vector, int i) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  const uint32_t word = words[i / kPerWord];
  if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, Half>) {
    return AsFloat(Half{static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16)});
  } else {
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
}

template <typename T>
__device__ __forceinline__ uint4 Sum(const uint4& a, const uint4& b) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int i = w * kPerWord;
    const float first = Element<T>(a, i) + Element<T>(b, i);
    if constexpr (std::is_same_v<T, float>) {
      words[w] = __float_as_uint(first);
    } else {
      const float second = Element<T>(a, i + 1) + Element<T>(b, i + 1);
      words[w] = FromFloat<T>(first).bits | static_cast<uint32_t>(FromFloat<T>(second).bits) << 16;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Keeps the compiler from holding on to values converted earlier.
__device__ __forceinline__ void Forget(uint4& vector) {
  asm volatile("" : "+r"(vector.x), "+r"(vector.y), "+r"(vector.z), "+r"(vector.w));
}

}  // namespace thinwire
