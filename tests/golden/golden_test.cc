// The bundled models against their golden outputs.
#include "gtest/gtest.h"
#include "tests/golden/golden_suite.h"

namespace thinwire {
namespace {

std::vector<std::string> Models() { return FindGoldenModels(THINWIRE_BUNDLED_MODELS); }

TEST(GoldenTest, TheBundledModelsAreThere) { EXPECT_GE(Models().size(), 2u); }

INSTANTIATE_TEST_SUITE_P(Bundled, GoldenMeshTest, ::testing::ValuesIn(CasesByMesh(Models())),
                         GoldenCaseName);
INSTANTIATE_TEST_SUITE_P(Bundled, GoldenModelTest, ::testing::ValuesIn(CasesByModel(Models())),
                         GoldenModelName);

}  // namespace
}  // namespace thinwire
