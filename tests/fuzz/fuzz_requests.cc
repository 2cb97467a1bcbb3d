// Prompts, requests and what ranks tell each other.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/core/check.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "parallel/wire/message.h"
#include "parallel/wire/row_codec.h"
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

// Row i of `rows` as the only one.
ConstTensorView OneRow(ConstTensorView rows, int64_t i) {
  const int64_t bytes = rows.size_bytes() / rows.dim(0);
  return {static_cast<const uint8_t*>(rows.raw()) + i * bytes, rows.dtype(), {1, rows.dim(1)}};
}

// Bytes of y = the rows that `bytes` mean.
std::vector<uint8_t> Decoded(const RowCodec& codec, ConstTensorView bytes, DType dtype,
                             int64_t width, Stream& stream) {
  std::vector<uint8_t> y(DTypeBytes(dtype, bytes.dim(0) * width));
  TW_CHECK(
      DecodeRows(codec, {bytes}, TensorView(y.data(), dtype, {bytes.dim(0), width}), stream).ok());
  return y;
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

// Four bytes choose codec, type and width; what follows are as many rows as there are bytes for,
// which may mean anything and must mean the same alone as among others.
void FuzzWirePayload(const uint8_t* data, size_t size) {
  constexpr int kBits[] = {8, 6, 5, 4};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  if (size < 4) return;
  RowCodec codec{.kind = RowCodec::Kind::kCodes, .bits = kBits[data[0] % 4]};
  if (data[0] >= 224) codec = {.kind = RowCodec::Kind::kFp16};
  const DType dtype = kTypes[data[1] % 3];
  const int64_t width = 1 + (data[2] | data[3] << 8) % 1024;
  const int64_t row_bytes = codec.RowBytes(width, dtype);
  const int64_t num_rows = std::min<int64_t>((size - 4) / row_bytes, 64);
  static ThreadPool* const pool = new ThreadPool(1);
  static Stream* const stream = new Stream(Stream::Cpu(pool));

  const MessageKey key{
      .codec = codec, .sender = data[1], .num_rows = num_rows, .row_bytes = row_bytes};
  std::vector<uint8_t> message(key.message_bytes());
  std::copy_n(data + 4, std::min(size - 4, message.size()), message.begin());
  const TensorView whole(message.data(), DType::kU8, {key.message_bytes()});
  CheckMessage(key, whole).IgnoreError();
  SealMessage(key, whole);
  TW_CHECK(CheckMessage(key, whole).ok());

  // A copy of exactly these rows, so that a read beyond them is seen.
  const std::vector<uint8_t> exact(message.begin(), message.begin() + key.rows_bytes());
  const ConstTensorView rows(exact.data(), DType::kU8, {num_rows, row_bytes});
  const std::vector<uint8_t> y = Decoded(codec, rows, dtype, width, *stream);
  for (int64_t i = 0; i < num_rows; ++i) {
    const std::vector<uint8_t> alone = Decoded(codec, OneRow(rows, i), dtype, width, *stream);
    TW_CHECK(std::equal(alone.begin(), alone.end(), y.begin() + i * alone.size()));
  }
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
