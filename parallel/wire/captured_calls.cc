#include "parallel/wire/captured_calls.h"

#include <utility>

#include "kernels/core/status_macros.h"

namespace thinwire {

CapturedCalls::CapturedCalls(Graph graph, Event begin, Event end)
    : graph_(std::move(graph)), begin_(std::move(begin)), end_(std::move(end)) {}

absl::StatusOr<CapturedCalls> CapturedCalls::Capture(absl::FunctionRef<absl::Status()> enqueue,
                                                     Stream& stream) {
  TW_ASSIGN_OR_RETURN(Event begin, Event::Create(stream.device(), Event::Kind::kTimed));
  TW_ASSIGN_OR_RETURN(Event end, Event::Create(stream.device(), Event::Kind::kTimed));
  TW_ASSIGN_OR_RETURN(Graph graph, Graph::Capture(enqueue, stream));
  return CapturedCalls(std::move(graph), std::move(begin), std::move(end));
}

absl::StatusOr<double> CapturedCalls::Run(Communicator& waits, Stream& stream) {
  TW_RETURN_IF_ERROR(begin_.Record(stream));
  TW_RETURN_IF_ERROR(graph_.Launch(stream));
  TW_RETURN_IF_ERROR(end_.Record(stream));
  TW_RETURN_IF_ERROR(waits.Wait(stream));
  TW_ASSIGN_OR_RETURN(const double ms, end_.MillisecondsSince(begin_));
  return 1e3 * ms;
}

}  // namespace thinwire
