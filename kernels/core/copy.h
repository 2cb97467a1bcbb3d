// Copies between host and device, and within a device.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Enqueues to = from on the stream. Same dtype and shape, rows of either may be strided, no
// overlap; each on the CPU or on the stream's device (InvalidArgument otherwise). On a CUDA stream
// it does not wait: `from` and `to` must live until the stream has got there, and a host view may
// be touched again only then. Host memory of a PinnedBuffer is read and written while the caller
// goes on; other host memory goes through a buffer of the driver's, and a copy to it waits for the
// stream.
absl::Status Copy(ConstTensorView from, TensorView to, Stream& stream);

// As Copy, of contiguous views (InvalidArgument otherwise) of which one is on the stream's device
// and the other in a PinnedBuffer for it. Sooner done where there are few bytes, since it does not
// wait for a copy engine.
absl::Status CopyPinned(ConstTensorView from, TensorView to, Stream& stream);

}  // namespace thinwire
