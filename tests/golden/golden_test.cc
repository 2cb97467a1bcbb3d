// The bundled models against their golden outputs.
#include "gtest/gtest.h"
#include "tests/golden/golden_suite.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

std::vector<std::string> Models() { return FindGoldenModels(THINWIRE_BUNDLED_MODELS); }

TEST(GoldenTest, TheBundledModelsAreThere) { EXPECT_EQ(Models().size(), 8u); }

TEST(LocalMeshTest, AFolderThatIsMissingIsNamed) {
  EngineOptions options;
  options.model_dir = "/no/such/folder";
  const absl::Status status = RunOnLocalMesh(options, {.tp_size = 2, .pp_size = 2}, [](Engine&) {
    ADD_FAILURE() << "there is no engine";
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_NE(status.message().find(options.model_dir), absl::string_view::npos) << status;
}

TEST(LocalMeshTest, TheLeadersOwnErrorLeavesNoRankBehind) {
  EngineOptions options;
  options.model_dir = Models().front();
  const absl::Status status = RunOnLocalMesh(options, {.tp_size = 2, .pp_size = 2}, [](Engine&) {
    return absl::CancelledError("changed its mind");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
}

INSTANTIATE_TEST_SUITE_P(Bundled, GoldenMeshTest, ::testing::ValuesIn(CasesByMesh(Models())),
                         GoldenCaseName);
INSTANTIATE_TEST_SUITE_P(Bundled, GoldenModelTest, ::testing::ValuesIn(CasesByModel(Models())),
                         GoldenModelName);

}  // namespace
}  // namespace thinwire
