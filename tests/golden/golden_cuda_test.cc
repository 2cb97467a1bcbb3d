// The bundled models on a GPU against their golden outputs.
#include "gtest/gtest.h"
#include "tests/golden/golden_suite.h"

namespace thinwire {
namespace {

// What is compared are meshes and options of the CPU.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenModelTest);

INSTANTIATE_TEST_SUITE_P(Cuda, GoldenMeshTest,
                         ::testing::ValuesIn(CasesByModel(FindGoldenModels(THINWIRE_BUNDLED_MODELS),
                                                          Device::Cuda(0))),
                         GoldenModelName);

}  // namespace
}  // namespace thinwire
