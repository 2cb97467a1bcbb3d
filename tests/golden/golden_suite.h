// The tests that every model folder with golden outputs has to pass. Programs that link them say
// which folders.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/device.h"
#include "parallel/plan/mesh.h"
#include "runtime/engine/engine_options.h"
#include "tests/golden/golden_file.h"

namespace thinwire {

struct GoldenCase {
  std::string model_dir;
  Mesh mesh;
  Device device;

  friend void PrintTo(const GoldenCase& test_case, std::ostream* out) {
    *out << test_case.model_dir << " tp " << test_case.mesh.tp_size << " pp "
         << test_case.mesh.pp_size;
  }
};

// A model on one mesh.
class GoldenMeshTest : public ::testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override;

  Golden golden_;
};

// A model; what is compared are meshes and options. The mesh of the case is not used.
class GoldenModelTest : public GoldenMeshTest {
 protected:
  int64_t num_layers() const;

  // The standard deviation of a logit's error when everything that it is computed from is rounded
  // `num_roundings` times in a row: each moves it by about the unit roundoff times the spread of
  // the logits, in either direction.
  double TypicalLogitError(double unit_roundoff, int64_t num_roundings) const;

  // That mean NLL, first logits and greedy tokens are those of the reference but for errors of
  // logits that are typically `logit_error`.
  void ExpectClose(const EngineOptions& options, const Mesh& mesh, double logit_error) const;
};

// Folders below `root` that have golden outputs, sorted.
std::vector<std::string> FindGoldenModels(const std::string& root);

// Each folder with each (tp, pp) of 1x1, 2x1, 1x2, 2x2 and 4x1 that its model can be cut into.
std::vector<GoldenCase> CasesByMesh(const std::vector<std::string>& model_dirs);
std::vector<GoldenCase> CasesByModel(const std::vector<std::string>& model_dirs,
                                     Device device = Device::Cpu());

// "opt_nano_tp2_pp1".
std::string GoldenCaseName(const ::testing::TestParamInfo<GoldenCase>& info);
std::string GoldenModelName(const ::testing::TestParamInfo<GoldenCase>& info);

}  // namespace thinwire
