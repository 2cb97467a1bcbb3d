// A tensor whose numbers are fitted.
#pragma once

#include <string>
#include <vector>

namespace thinwire {

struct Parameter {
  std::string tensor;           // its name in the checkpoint; empty: the model has no such tensor
  std::vector<float> value;     // all of it, row-major
  std::vector<float> unit;      // of each number: what it is natural to move it by
  std::vector<float> gradient;  // the derivative of the loss to it

  bool empty() const { return value.empty(); }
};

}  // namespace thinwire
