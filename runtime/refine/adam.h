// Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), each number in a unit of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/refine/parameter.h"

namespace thinwire {

class Adam {
 public:
  // Borrows the parameters.
  explicit Adam(std::vector<Parameter*> parameters);

  // value -= rate * unit * m / sqrt(v), m and v the bias-corrected averages of the gradient and its
  // square (decays 0.9 and 0.999). A number whose gradient was always 0 stays.
  void Step(double rate);

 private:
  struct Averages {
    std::vector<float> first, second;
  };

  std::vector<Parameter*> parameters_;
  std::vector<Averages> averages_;
  int64_t num_steps_ = 0;
};

}  // namespace thinwire
