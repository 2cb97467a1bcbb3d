// The larger models that THINWIRE_MODELS holds against their golden outputs. A program of its own,
// because it may be skipped as a whole.
#include <cstdlib>

#include "gtest/gtest.h"
#include "tests/golden/golden_suite.h"

namespace thinwire {
namespace {

std::vector<std::string> Models() {
  const char* root = std::getenv("THINWIRE_MODELS");
  return root == nullptr ? std::vector<std::string>() : FindGoldenModels(root);
}

TEST(GoldenModelsTest, ThereAreModels) {
  if (std::getenv("THINWIRE_MODELS") == nullptr) {
    GTEST_SKIP() << "THINWIRE_MODELS names no folder of models";
  }
  EXPECT_FALSE(Models().empty());
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenMeshTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenModelTest);
INSTANTIATE_TEST_SUITE_P(Models, GoldenMeshTest, ::testing::ValuesIn(CasesByMesh(Models())),
                         GoldenCaseName);
INSTANTIATE_TEST_SUITE_P(Models, GoldenModelTest, ::testing::ValuesIn(CasesByModel(Models())),
                         GoldenModelName);

}  // namespace
}  // namespace thinwire
