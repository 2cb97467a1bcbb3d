// What Hugging Face's transformers answers for a model: golden.json and golden.logits.npy in the
// model's folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/golden/npy.h"

namespace thinwire {

struct GoldenPrompt {
  std::vector<int32_t> ids;
  std::vector<int32_t> greedy;  // continues ids, not stopped at the end of text
  std::vector<double> gaps;     // [greedy] largest logit minus the second largest at each step
};

struct Golden {
  std::vector<GoldenPrompt> prompts;
  NpyMatrix logits;  // [prompts, vocab] at each prompt's last position

  // The text is cut into as many equal windows as window_nll has; see runtime/batch/perplexity.h.
  std::vector<int32_t> nll_ids;
  std::vector<double> window_nll;
  double mean_nll = 0.0;

  int64_t nll_window() const { return static_cast<int64_t>(nll_ids.size() / window_nll.size()); }
};

// Errors name file and field.
absl::StatusOr<Golden> ReadGolden(const std::string& model_dir);

}  // namespace thinwire
