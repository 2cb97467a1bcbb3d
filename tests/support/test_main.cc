// main() of the unit tests. Tests that had to be skipped show: when nothing failed but something
// was skipped, the program exits with 77, which CTest reports as "Skipped" (SKIP_RETURN_CODE).
#include "gtest/gtest.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  const bool skipped = ::testing::UnitTest::GetInstance()->skipped_test_count() > 0;
  return result == 0 && skipped ? 77 : result;
}
