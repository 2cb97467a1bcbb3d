#include "kernels/core/graph.h"

#include <utility>

#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<Graph> Graph::Capture(absl::FunctionRef<absl::Status()> enqueue, Stream& stream) {
  TW_RETURN_IF_ERROR(backend::BeginCapture(stream.native(), stream.device()));
  const absl::Status enqueued = enqueue();
  absl::StatusOr<void*> native = backend::EndCapture(stream.native(), stream.device());
  if (!enqueued.ok()) {
    if (native.ok()) backend::DestroyGraph(*native, stream.device());
    return enqueued;
  }
  TW_RETURN_IF_ERROR(native.status());
  return Graph(stream.device(), *native);
}

Graph::Graph(Graph&& other) noexcept
    : device_(other.device_), native_(std::exchange(other.native_, nullptr)) {}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(native_, other.native_);
  return *this;
}

Graph::~Graph() {
  if (native_ != nullptr) backend::DestroyGraph(native_, device_);
}

absl::Status Graph::Launch(Stream& stream) const {
  TW_CHECK(stream.device() == device_);
  return backend::LaunchGraph(native_, stream.native(), device_);
}

}  // namespace thinwire
