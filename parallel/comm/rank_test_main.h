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

  void OnTestStart(const testing::TestInfo& test) override { test_ = &test; }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d of %d: %s:%d: in %s.%s: %s\n", rank_, size_,
                 result.file_name() != nullptr ? result.file_name() : "", result.line_number(),
                 test_ != nullptr ? test_->test_suite_name() : "",
                 test_ != nullptr ? test_->name() : "", result.summary());
  }

 private:
  const int rank_;
  const int size_;
  // The one that runs; asking UnitTest in OnTestPartResult could wait for itself.
  const testing::TestInfo* test_ = nullptr;
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
