// Checks for our own bugs. What comes from outside (files, flags, peers) is an absl::Status
// instead.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"

namespace thinwire::internal {

// Prints "file:line: check failed: text" to standard error and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const std::string& text);

}  // namespace thinwire::internal

#define TW_CHECK(condition)                                              \
  do {                                                                   \
    if (!(condition)) [[unlikely]]                                       \
      ::thinwire::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#define TW_CHECK_OP_(a, op, b)                                                                   \
  do {                                                                                           \
    const auto& tw_a_ = (a);                                                                     \
    const auto& tw_b_ = (b);                                                                     \
    if (!(tw_a_ op tw_b_)) [[unlikely]]                                                          \
      ::thinwire::internal::CheckFailed(                                                         \
          __FILE__, __LINE__, absl::StrCat(#a " " #op " " #b, " (", tw_a_, " vs ", tw_b_, ")")); \
  } while (false)

#define TW_CHECK_EQ(a, b) TW_CHECK_OP_(a, ==, b)
#define TW_CHECK_NE(a, b) TW_CHECK_OP_(a, !=, b)
#define TW_CHECK_LE(a, b) TW_CHECK_OP_(a, <=, b)
#define TW_CHECK_LT(a, b) TW_CHECK_OP_(a, <, b)
#define TW_CHECK_GE(a, b) TW_CHECK_OP_(a, >=, b)
#define TW_CHECK_GT(a, b) TW_CHECK_OP_(a, >, b)

// TW_DCHECK: for hot loops; compiled out in release builds (the condition is still type-checked).
#ifdef NDEBUG
#define TW_DCHECK(condition)        \
  do {                              \
    if (false) TW_CHECK(condition); \
  } while (false)
#else
#define TW_DCHECK(condition) TW_CHECK(condition)
#endif
