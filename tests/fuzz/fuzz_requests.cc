// Prompts, requests and what ranks tell each other.
#include <string>

#include "absl/strings/string_view.h"
#include "kernels/core/check.h"
#include "runtime/batch/prompt.h"
#include "runtime/engine/step_plan.h"
#include "runtime/server/openai/openai_request.h"
#include "tests/fuzz/fuzz_targets.h"
#ifdef THINWIRE_HAS_SERVER
#include "runtime/server/grpc/messages.h"
#include "runtime/server/http/quick_head.h"
#include "runtime/server/serving_core.h"
#endif

namespace thinwire {
namespace {

absl::string_view Text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

ServedModel Model() {
  absl::StatusOr<ServedModel> model = LoadServedModel(THINWIRE_BUNDLED_MODELS "/opt-nano", "", "");
  TW_CHECK(model.ok());
  return *std::move(model);
}

}  // namespace

void FuzzPrompt(const uint8_t* data, size_t size) {
  std::string id;
  ParsePrompt(Text(data, size), {}, "1", &id).status().IgnoreError();
}

void FuzzStepMessages(const uint8_t* data, size_t size) {
  const absl::StatusOr<StepPlan> plan = StepPlan::Parse(Text(data, size));
  if (plan.ok()) plan->Serialize();
  const absl::StatusOr<StepResult> result = StepResult::Parse(Text(data, size));
  if (result.ok()) result->Serialize();
}

void FuzzHttpRequest(const uint8_t* data, size_t size) {
  static const ServedModel* const model = new ServedModel(Model());
  const absl::string_view text = Text(data, size);
  const size_t end = text.find("\n\r\n");
  const size_t head = end == absl::string_view::npos ? 0 : end + 1;
#ifdef THINWIRE_HAS_SERVER
  ReadQuickHead(text.substr(0, head));
#endif
  const absl::string_view body = text.substr(head == 0 ? 0 : head + 2);
  for (const bool chat : {false, true}) {
    ParseOpenAiRequest(body, chat, *model).status().IgnoreError();
  }
}

#ifdef THINWIRE_HAS_SERVER
void FuzzGrpcRequest(const uint8_t* data, size_t size) {
  static ServingCore* const core = new ServingCore({}, Model());
  v1::GenerateRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return;
  FromMessage(message, *core).status().IgnoreError();
}
#endif

}  // namespace thinwire
