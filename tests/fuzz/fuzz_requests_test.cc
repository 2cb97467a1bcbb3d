// Prompts, requests and what ranks tell each other.
#include "tests/fuzz/corpus_testing.h"

namespace thinwire {
namespace {

constexpr FuzzTarget kTargets[] = {
    {"prompt", FuzzPrompt},
    {"step_messages", FuzzStepMessages},
    {"wire_payload", FuzzWirePayload},
    {"http_request", FuzzHttpRequest},
#ifdef THINWIRE_HAS_SERVER
    {"grpc_request", FuzzGrpcRequest},
#endif
};

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpusTest, testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.folder); });

}  // namespace
}  // namespace thinwire
