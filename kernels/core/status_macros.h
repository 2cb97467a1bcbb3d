// Status plumbing that Abseil leaves to its users: early return, assign-or-return, context.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// Returns `status` with "context: " put before its message; OK stays OK. Wrap once, where context
// (a file, a tensor, a rank) is known and the callee could not know it.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

}  // namespace thinwire

// Returns from the enclosing function when `expr` (an absl::Status) is not OK.
#define TW_RETURN_IF_ERROR(expr)             \
  do {                                       \
    absl::Status tw_status_ = (expr);        \
    if (!tw_status_.ok()) return tw_status_; \
  } while (false)

// TW_ASSIGN_OR_RETURN(auto x, F()): declares x from the value of an absl::StatusOr, or returns its
// status.
#define TW_ASSIGN_OR_RETURN(lhs, expr) \
  TW_ASSIGN_OR_RETURN_IMPL_(TW_CONCAT_(tw_status_or_, __LINE__), lhs, expr)

#define TW_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return std::move(tmp).status();  \
  lhs = *std::move(tmp)

#define TW_CONCAT_(a, b) TW_CONCAT_INNER_(a, b)
#define TW_CONCAT_INNER_(a, b) a##b
