// For kernels that push into peer memory: where things lie, signals and waits.
//
// Order. A sender's threads write to a peer's room, meet at a barrier of their block, and one of
// them stores the signal with release semantics at system scope: by cumulativity what any of them
// wrote before is visible to whoever acquires the signal. A receiver's thread loads it with acquire
// semantics at system scope, then its block meets at a barrier, after which all its threads may
// read the room by ordinary loads. Values in mailboxes need none of that: what is moved at once, 8
// bytes or 16, has a mark of 4 behind the values.
#pragma once

#include <cstdint>

#include "parallel/comm/peer_memory.h"

namespace thinwire {
namespace {

// The mailbox or room in the memory of `to` for what `from` sends it.
__device__ __forceinline__ std::byte* PlaceOf(const PeerView& v, int64_t begin, int64_t bytes,
                                              int to, int from, uint64_t epoch) {
  const int64_t index = static_cast<int64_t>(epoch & 1) * (v.size - 1) + from - (from > to ? 1 : 0);
  return v.base[to] + begin + index * bytes;
}

__device__ __forceinline__ std::byte* MailboxOf(const PeerView& v, int to, int from,
                                                uint64_t epoch) {
  return PlaceOf(v, PeerView::kMailboxes, v.mailbox_bytes, to, from, epoch);
}

__device__ __forceinline__ std::byte* RoomOf(const PeerView& v, int to, int from, uint64_t epoch) {
  return PlaceOf(v, PeerView::kMailboxes + 2 * (v.size - 1) * v.mailbox_bytes, v.room_bytes, to,
                 from, epoch);
}

// The signal that block `block` of `from` gives that of `to`: (epoch << 16) + messages so far.
__device__ __forceinline__ uint64_t* SignalOf(const PeerView& v, int to, int from, unsigned block) {
  return reinterpret_cast<uint64_t*>(v.base[to] + PeerView::kSignals) + from * kMostPeerBlocks +
         block;
}

// The number of the running kernel, from 1. Read by every block before it calls EndEpoch.
__device__ __forceinline__ uint64_t CurrentEpoch(const PeerView& v) {
  return *reinterpret_cast<volatile uint64_t*>(v.counters + PeerView::kEpoch) + 1;
}

// What a thread does for each of `count` parts of a kernel once that part's threads have read the
// epoch.
__device__ __forceinline__ void EndEpochOfOne(const PeerView& v, uint64_t epoch, unsigned count) {
  auto* const ended = reinterpret_cast<unsigned*>(v.counters + PeerView::kEnded);
  if (count > 1) {
    if (atomicAdd(ended, 1) != count - 1) return;
    *ended = 0;
  }
  *reinterpret_cast<uint64_t*>(v.counters + PeerView::kEpoch) = epoch;
}

// The last that all threads of a kernel's blocks do.
__device__ __forceinline__ void EndEpoch(const PeerView& v, uint64_t epoch) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  EndEpochOfOne(v, epoch, gridDim.x);
}

// What marks an epoch's values in mailboxes. Never 0, which fresh memory holds. What a place has
// held before was marked by an earlier epoch, of which 2^32 - 1 would have to pass for its mark to
// come back.
__device__ __forceinline__ uint32_t MarkOf(uint64_t epoch) {
  return static_cast<uint32_t>(epoch % 0xffffffffu + 1);
}

// Each 8 bytes are written at once: values below, the mark above.
__device__ __forceinline__ void Post(std::byte* to, uint32_t a, uint32_t b, uint32_t mark) {
  const uint64_t above = static_cast<uint64_t>(mark) << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(above | a),
               "l"(above | b)
               : "memory");
}

__device__ __forceinline__ bool Fetch(const std::byte* from, uint32_t mark, uint32_t (&words)[2]) {
  uint64_t a, b;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(a), "=l"(b)
               : "l"(from)
               : "memory");
  words[0] = static_cast<uint32_t>(a);
  words[1] = static_cast<uint32_t>(b);
  return a >> 32 == mark && b >> 32 == mark;
}

__device__ __forceinline__ void Signal(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

__device__ __forceinline__ uint64_t ReadSignal(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ uint64_t GlobalNanoseconds() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// Polls until done() is true, with pauses after the first polls: the threads of a kernel that waits
// long would otherwise hold up what they wait for. Two H100s took 0.5 to 2 ms a sum then. False,
// with the silent rank told to the host, after the timeout, and when the host or another thread has
// given up.
template <typename Done>
__device__ __forceinline__ bool WaitFor(const PeerView& v, int from, const Done& done) {
  if (done()) return true;
  const uint64_t start = GlobalNanoseconds();
  volatile uint32_t* const words = v.host_words;
  constexpr unsigned kPromptPolls = 8, kPauseNs = 40;
  for (unsigned polls = 0;; ++polls) {
    if (polls >= kPromptPolls) __nanosleep(kPauseNs);
    if (done()) return true;
    if (polls % 1000 != 999) continue;
    if (words[0] != 0 || words[1] != 0) return false;
    if (GlobalNanoseconds() - start > v.timeout_ns) {
      words[0] = static_cast<uint32_t>(from) + 1;
      __threadfence_system();
      return false;
    }
  }
}

}  // namespace
}  // namespace thinwire
