// The operators of this folder on a GPU; arguments are checked and on the stream's device. Only
// builds with CUDA define them. Private to kernels/attention.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/buffer.h"
#include "kernels/core/stream.h"

namespace thinwire {

absl::Status PagedAttentionCuda(const PagedAttentionArgs& args, Stream& stream);
absl::Status CodedPagedAttentionCuda(const CodedPagedAttentionArgs& args, Stream& stream);
absl::Status KvWriteCuda(const KvWriteArgs& args, Stream& stream);
// Whether RotateAndWriteKvCuda takes such arguments.
bool RotatesWithKvWrite(const RopeArgs& rope, const KvWriteArgs& write);
absl::Status RotateAndWriteKvCuda(const RopeArgs& rope, const KvWriteArgs& write, Stream& stream);
// Where args.first_wrong is empty, waits for the stream and returns the index itself.
absl::StatusOr<int64_t> CodedKvWriteCuda(const CodedKvWriteArgs& args, Stream& stream);

// KvCodes::device_tables, on the device of the codes.
absl::StatusOr<Buffer> KvTablesOnDevice(const KvCodes& codes);

}  // namespace thinwire
