// Files of a model folder.
#include "tests/fuzz/corpus_testing.h"

namespace thinwire {
namespace {

constexpr FuzzTarget kTargets[] = {
    {"safetensors", FuzzSafetensors},
    {"model_config", FuzzModelConfig},
    {"tokenizer_json", FuzzTokenizerJson},
    {"sentence_piece", FuzzSentencePiece},
};

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpusTest, testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.folder); });

}  // namespace
}  // namespace thinwire
