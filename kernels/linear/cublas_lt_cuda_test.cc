#include "kernels/linear/cublas_lt_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thinwire {
namespace {

// Needs the library, but no GPU.
TEST(CublasLtTest, OpensTheLibraryOfTheToolkitThatCompiledThis) {
  const auto library = CublasLt::Open();
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_THAT((*library)->GetStatusString(CUBLAS_STATUS_ALLOC_FAILED),
              testing::HasSubstr("allocation"));
}

}  // namespace
}  // namespace thinwire
