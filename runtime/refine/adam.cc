#include "runtime/refine/adam.h"

#include <cmath>
#include <utility>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr double kFirstDecay = 0.9;
constexpr double kSecondDecay = 0.999;

}  // namespace

Adam::Adam(std::vector<Parameter*> parameters) : parameters_(std::move(parameters)) {
  for (const Parameter* parameter : parameters_) {
    const size_t size = parameter->value.size();
    averages_.push_back({std::vector<float>(size, 0.0f), std::vector<float>(size, 0.0f)});
  }
}

void Adam::Step(double rate) {
  ++num_steps_;
  const auto steps = static_cast<double>(num_steps_);
  const double first_share = 1.0 / (1.0 - std::pow(kFirstDecay, steps));
  const double second_share = 1.0 / (1.0 - std::pow(kSecondDecay, steps));
  for (size_t p = 0; p < parameters_.size(); ++p) {
    Parameter& parameter = *parameters_[p];
    Averages& averages = averages_[p];
    const size_t size = parameter.value.size();
    TW_CHECK(parameter.unit.size() == size && parameter.gradient.size() == size);
    for (size_t i = 0; i < size; ++i) {
      const double gradient = parameter.gradient[i];
      float& first = averages.first[i];
      float& second = averages.second[i];
      first = static_cast<float>(kFirstDecay * first + (1.0 - kFirstDecay) * gradient);
      second =
          static_cast<float>(kSecondDecay * second + (1.0 - kSecondDecay) * gradient * gradient);
      if (second == 0.0f) continue;
      const double direction = first * first_share / std::sqrt(second * second_share);
      parameter.value[i] -= static_cast<float>(rate * parameter.unit[i] * direction);
    }
  }
}

}  // namespace thinwire
