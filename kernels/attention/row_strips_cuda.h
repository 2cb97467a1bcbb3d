// PackRows and UnpackRows on a GPU. Private to this folder.
#pragma once

#include "absl/status/status.h"
#include "kernels/attention/row_strips.h"

namespace thinwire {

// Arguments are checked, and there is something to copy.
absl::Status PackRowsCuda(const RowStrips& rows, TensorView packed, Stream& stream);
absl::Status UnpackRowsCuda(const RowStrips& rows, ConstTensorView packed, Stream& stream);

}  // namespace thinwire
