// Running GoogleTest on every rank of a job: each rank runs all tests in the same order.
#pragma once

#include <cstdio>
#include <memory>

#include "gtest/gtest.h"

namespace thinwire {

// Prints nothing but failures, with the rank in front.
class FailurePrinter final : public testing::EmptyTestEventListener {
 public:
  FailurePrinter(int rank, int size) : rank_(rank), size_(size) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    std::fprintf(stderr, "rank %d of %d: %s:%d: in %s.%s: %s\n", rank_, size_,
                 result.file_name() != nullptr ? result.file_name() : "", result.line_number(),
                 test != nullptr ? test->test_suite_name() : "",
                 test != nullptr ? test->name() : "", result.summary());
  }

 private:
  const int rank_;
  const int size_;
};

// Runs all tests as rank `rank` of `size`, with the usual output on rank 0 only. InitGoogleTest
// comes first.
inline int RunAllTestsAsRank(int rank, int size) {
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter(rank, size));
  }
  return RUN_ALL_TESTS();
}

}  // namespace thinwire
