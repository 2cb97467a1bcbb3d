#include "kernels/attention/paged_attention_cpu.h"

#include <vector>

#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// Rows of a many-rows task: enough to amortise widening K and V, few enough that a prompt of some
// hundred tokens is many tasks.
constexpr int64_t kTaskRows = 2 * kBlockRows;

// Query tokens [first_token, first_token + num_tokens) of one sequence and the heads of one KV
// head.
struct Task {
  int64_t seq;
  int64_t kv_head;
  int64_t first_token;
  int64_t num_tokens;
};

// Hands out one thread's scratch.
class ScratchCursor {
 public:
  explicit ScratchCursor(std::byte* next) : next_(next) {}

  template <typename T>
  T* Take(int64_t count) {
    static_assert(sizeof(T) == sizeof(float) || sizeof(T) == 2 * sizeof(float));
    auto* taken = reinterpret_cast<T*>(next_);
    next_ += Bytes<T>(count);
    return taken;
  }

  template <typename T>
  static int64_t Bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  std::byte* next_;
};

class CpuAttention {
 public:
  CpuAttention(const AttentionCall& call, const StoredKeys& stored)
      : call_(call),
        stored_(stored),
        num_kv_heads_(call.num_kv_heads),
        head_dim_(call.head_dim),
        group_(call.num_heads / num_kv_heads_),
        max_blocks_((std::max(kTaskRows, group_) + kBlockRows - 1) / kBlockRows) {}

  // Later tokens of a prompt see more keys: first, so that no thread begins a long task last.
  std::vector<Task> Tasks() const {
    std::vector<Task> tasks;
    const int64_t task_tokens = std::max<int64_t>(1, kTaskRows / group_);
    const auto num_seqs = static_cast<int64_t>(call_.context_lens.size());
    for (const bool few : {false, true}) {
      for (int64_t s = 0; s < num_seqs; ++s) {
        const int64_t num_tokens = call_.token_offsets[s + 1] - call_.token_offsets[s];
        if (IsFew(num_tokens) != few) continue;
        for (int64_t end = num_tokens; end > 0;) {
          const int64_t begin = (end - 1) / task_tokens * task_tokens;
          for (int64_t h = 0; h < num_kv_heads_; ++h) tasks.push_back({s, h, begin, end - begin});
          end = begin;
        }
      }
    }
    return tasks;
  }

  int64_t ScratchBytes() const {
    const int64_t stride = PaddedFloats(head_dim_);
    const int64_t few = 2 * ScratchCursor::Bytes<float>(kFewRows * stride) +
                        ScratchCursor::Bytes<float>(kFewRows * kFewRowsChunk) +
                        ScratchCursor::Bytes<float>(head_dim_);
    const int64_t rows = max_blocks_ * kBlockRows;
    const int64_t many = ScratchCursor::Bytes<KeyRange>(rows) +
                         2 * ScratchCursor::Bytes<float>(rows * head_dim_) +
                         2 * ScratchCursor::Bytes<float>(rows) +
                         ScratchCursor::Bytes<float>(kManyRowsChunk * kBlockRows) +
                         ScratchCursor::Bytes<float>(2 * kManyRowsChunk * head_dim_) +
                         ScratchCursor::Bytes<float>(kTransposed * head_dim_) +
                         ScratchCursor::Bytes<float>(head_dim_);
    return std::max(few, many);
  }

  void Run(const Task& task, std::byte* scratch) const {
    const int64_t num_tokens = call_.token_offsets[task.seq + 1] - call_.token_offsets[task.seq];
    if (IsFew(num_tokens)) {
      RunFew(task, ScratchCursor(scratch));
    } else {
      RunMany(task, ScratchCursor(scratch));
    }
  }

 private:
  // Rows transposed at a time.
  static constexpr int64_t kTransposed = 16;

  bool IsFew(int64_t num_tokens) const {
    return !call_.batch_invariant && num_tokens * group_ <= kFewRows;
  }

  // Elements from the first of a tensor [num_tokens, num_heads * head_dim] to a task's row.
  int64_t RowOffset(const Task& task, int64_t row, int64_t token_stride) const {
    const int64_t token = call_.token_offsets[task.seq] + task.first_token + row / group_;
    return token * token_stride + (task.kv_head * group_ + row % group_) * head_dim_;
  }

  KeyRange Keys(const Task& task, int64_t row) const {
    const int64_t num_tokens = call_.token_offsets[task.seq + 1] - call_.token_offsets[task.seq];
    const int64_t end =
        call_.context_lens[task.seq] - num_tokens + task.first_token + row / group_ + 1;
    const int64_t begin = call_.window > 0 ? std::max<int64_t>(0, end - call_.window) : 0;
    return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
  }

  // ordered: scratch [head_dim].
  void LoadQuery(const Task& task, int64_t row, float* ordered, float* to) const {
    const auto* q = static_cast<const std::byte*>(call_.q.raw());
    const int64_t offset = RowOffset(task, row, call_.q.row_stride());
    const int32_t* order = stored_.KOrder(task.kv_head);
    float* loaded = order == nullptr ? to : ordered;
    ConvertToFloat(q + DTypeBytes(call_.q.dtype(), offset), call_.q.dtype(), loaded, head_dim_);
    if (order == nullptr) {
      for (int64_t i = 0; i < head_dim_; ++i) to[i] *= call_.scale;
    } else {
      for (int64_t i = 0; i < head_dim_; ++i) to[i] = ordered[order[i]] * call_.scale;
    }
  }

  void StoreOut(const Task& task, int64_t row, const float* from, float* ordered) const {
    auto* out = static_cast<std::byte*>(call_.out.mutable_raw());
    const int64_t offset = RowOffset(task, row, call_.out.row_stride());
    const int32_t* order = stored_.VOrder(task.kv_head);
    if (order != nullptr) {
      for (int64_t i = 0; i < head_dim_; ++i) ordered[order[i]] = from[i];
      from = ordered;
    }
    ConvertFromFloat(from, out + DTypeBytes(call_.out.dtype(), offset), call_.out.dtype(),
                     head_dim_);
  }

  void RunFew(const Task& task, ScratchCursor scratch) const {
    const int64_t stride = PaddedFloats(head_dim_);
    const int64_t num_rows = task.num_tokens * group_;
    auto* q = scratch.Take<float>(kFewRows * stride);
    auto* out = scratch.Take<float>(kFewRows * stride);
    auto* scores = scratch.Take<float>(kFewRows * kFewRowsChunk);
    auto* ordered = scratch.Take<float>(head_dim_);
    KeyRange keys[kFewRows];
    std::fill(q, q + num_rows * stride, 0.0f);
    for (int64_t r = 0; r < num_rows; ++r) {
      LoadQuery(task, r, ordered, q + r * stride);
      keys[r] = Keys(task, r);
    }
    stored_.AttendFew(task.seq, task.kv_head, {num_rows, q, keys, scores, out});
    for (int64_t r = 0; r < num_rows; ++r) StoreOut(task, r, out + r * stride, ordered);
  }

  void RunMany(const Task& task, ScratchCursor scratch) const {
    const int64_t num_rows = task.num_tokens * group_;
    const int64_t num_blocks = (num_rows + kBlockRows - 1) / kBlockRows;
    const int64_t rows = num_blocks * kBlockRows;
    auto* keys = scratch.Take<KeyRange>(rows);
    auto* q = scratch.Take<float>(rows * head_dim_);
    auto* out = scratch.Take<float>(rows * head_dim_);
    auto* maxima = scratch.Take<float>(rows);
    auto* sums = scratch.Take<float>(rows);
    auto* scores = scratch.Take<float>(kManyRowsChunk * kBlockRows);
    auto* wide = scratch.Take<float>(2 * kManyRowsChunk * head_dim_);
    auto* staged = scratch.Take<float>(kTransposed * head_dim_);
    auto* ordered = scratch.Take<float>(head_dim_);
    for (int64_t r = 0; r < rows; ++r) {
      keys[r] = r < num_rows ? Keys(task, r) : KeyRange{0, 0};
    }
    for (int64_t first = 0; first < rows; first += kTransposed) {
      for (int64_t r = 0; r < kTransposed; ++r) {
        float* to = staged + r * head_dim_;
        if (first + r < num_rows) {
          LoadQuery(task, first + r, ordered, to);
        } else {
          std::fill(to, to + head_dim_, 0.0f);
        }
      }
      float* block = q + first / kBlockRows * kBlockRows * head_dim_ + first % kBlockRows;
      for (int64_t i = 0; i < head_dim_; ++i) {
        for (int64_t r = 0; r < kTransposed; ++r) {
          block[i * kBlockRows + r] = staged[r * head_dim_ + i];
        }
      }
    }
    const auto widen = [&](int64_t begin, int64_t end, float* k, float* v) {
      stored_.Widen(task.seq, task.kv_head, begin, end, k, v);
    };
    AttendManyRows({head_dim_, widen, num_rows, q, keys, scores, wide, maxima, sums, out});
    for (int64_t first = 0; first < num_rows; first += kTransposed) {
      const float* block = out + first / kBlockRows * kBlockRows * head_dim_ + first % kBlockRows;
      for (int64_t i = 0; i < head_dim_; ++i) {
        for (int64_t r = 0; r < kTransposed; ++r) {
          staged[r * head_dim_ + i] = block[i * kBlockRows + r];
        }
      }
      const int64_t count = std::min(kTransposed, num_rows - first);
      for (int64_t r = 0; r < count; ++r)
        StoreOut(task, first + r, staged + r * head_dim_, ordered);
    }
  }

  const AttentionCall& call_;
  const StoredKeys& stored_;
  const int64_t num_kv_heads_;
  const int64_t head_dim_;
  const int64_t group_;
  const int64_t max_blocks_;
};

// Less work than this is done sooner than a second thread is told of it.
constexpr int64_t kSerialMultiplyAdds = 32 * 1024;

// Of the scores, masked ones included.
int64_t NumMultiplyAdds(const AttentionCall& call) {
  int64_t scores = 0;
  for (size_t s = 0; s < call.context_lens.size(); ++s) {
    scores += int64_t{call.token_offsets[s + 1] - call.token_offsets[s]} * call.context_lens[s];
  }
  return scores * call.q.dim(1);
}

// Keys and values in the type of q and out.
class FloatKeys final : public StoredKeys {
 public:
  explicit FloatKeys(const PagedAttentionArgs& args) : args_(args) {}

  void AttendFew(int64_t seq, int64_t kv_head, const FewRows& rows) const override {
    AttendFewRows(Pages(seq, kv_head), rows);
  }

  // fp32 is copied too: attention passes over the rows many times, which pages far apart slow down.
  void Widen(int64_t seq, int64_t kv_head, int64_t begin, int64_t end, float* k,
             float* v) const override {
    const HeadPages pages = Pages(seq, kv_head);
    for (int64_t j = begin; j < end;) {
      const int64_t run = pages.Run(j, end);
      const int64_t row = (j - begin) * pages.head_dim;
      ConvertToFloat(pages.k + pages.Offset(j), pages.dtype, k + row, run * pages.head_dim);
      ConvertToFloat(pages.v + pages.Offset(j), pages.dtype, v + row, run * pages.head_dim);
      j += run;
    }
  }

 private:
  HeadPages Pages(int64_t seq, int64_t kv_head) const {
    const ConstTensorView& k = args_.k_pages;
    const int64_t page_size = k.dim(2), head_dim = k.dim(3);
    const int64_t head_bytes = DTypeBytes(k.dtype(), kv_head * page_size * head_dim);
    return {static_cast<const std::byte*>(k.raw()) + head_bytes,
            static_cast<const std::byte*>(args_.v_pages.raw()) + head_bytes,
            k.dtype(),
            head_dim,
            page_size,
            k.dim(1) * page_size * head_dim,
            args_.page_ids.data() + args_.page_offsets[seq]};
  }

  const PagedAttentionArgs& args_;
};

}  // namespace

absl::Status AttendCpu(const AttentionCall& call, const StoredKeys& stored, Stream& stream) {
  const CpuAttention attention(call, stored);
  const std::vector<Task> tasks = attention.Tasks();
  const int64_t thread_bytes = attention.ScratchBytes();
  ThreadPool& pool = stream.pool();
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch(pool.num_threads() * thread_bytes));
  const auto run = [&](int64_t i) {
    attention.Run(tasks[i], scratch + ThreadPool::CurrentThread() * thread_bytes);
  };
  if (NumMultiplyAdds(call) < kSerialMultiplyAdds) {
    for (int64_t i = 0; i < static_cast<int64_t>(tasks.size()); ++i) run(i);
  } else {
    pool.ParallelForDynamic(static_cast<int64_t>(tasks.size()), run);
  }
  return absl::OkStatus();
}

absl::Status PagedAttentionCpu(const PagedAttentionArgs& args, Stream& stream) {
  const FloatKeys stored(args);
  const AttentionCall call = {args.q,
                              args.out,
                              args.token_offsets,
                              args.context_lens,
                              args.k_pages.dim(1),
                              args.k_pages.dim(3),
                              args.num_heads,
                              args.scale,
                              args.window,
                              args.batch_invariant};
  return AttendCpu(call, stored, stream);
}

}  // namespace thinwire
