// A decoder layer as it is defined, in double, for the tests of this folder.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/site_rounding.h"

namespace thinwire {

class LayerReference {
 public:
  // x[num_windows * seqlen, hidden].
  LayerReference(const ModelConfig& config, const DenseLayer& layer, int64_t seqlen,
                 const std::vector<float>& x);

  // What the layer makes of x.
  std::vector<double> Run() const;

  // From now on what roundings add to the sites of x as it is now is added to them, whatever x
  // becomes.
  void Freeze(const SiteRoundings& roundings);

  // All that it depends on: x, gain and offset of both norms, weight and bias of each projection in
  // the order of kLinearRoles. Empty where the layer has none.
  std::vector<std::vector<double>*> tensors();

 private:
  // Adds what was frozen, or takes it down.
  void At(QuantSite site, std::vector<double>& rows, int64_t width) const;
  std::vector<double> Norm(size_t gain, const std::vector<double>& x) const;
  std::vector<double> Apply(LinearRole role, const std::vector<double>& x) const;
  std::vector<double> Attend(const std::vector<double>& x) const;

  const ModelConfig config_;
  const int64_t seqlen_;
  std::vector<std::vector<double>> tensors_;
  const SiteRoundings* freezing_ = nullptr;
  mutable std::array<std::vector<double>, kQuantSites.size()> added_;
};

}  // namespace thinwire
