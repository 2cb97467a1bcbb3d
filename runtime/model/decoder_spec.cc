#include "runtime/model/decoder_spec.h"

#include "runtime/model/llama.h"
#include "runtime/model/opt.h"

namespace thinwire {

DecoderSpec DecoderSpecFor(const ModelConfig& config) {
  switch (config.family) {
    case ModelFamily::kOpt:
      return OptSpec(config);
    case ModelFamily::kLlama:
    case ModelFamily::kMistral:
      return LlamaSpec();
  }
  return {};
}

}  // namespace thinwire
