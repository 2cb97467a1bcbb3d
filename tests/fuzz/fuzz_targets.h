// What reads bytes of strangers, as libFuzzer calls it: each takes any bytes without crashing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thinwire {

void FuzzSafetensors(const uint8_t* data, size_t size);    // a file
void FuzzModelConfig(const uint8_t* data, size_t size);    // config.json
void FuzzTokenizerJson(const uint8_t* data, size_t size);  // tokenizer.json, which then encodes
void FuzzSentencePiece(const uint8_t* data, size_t size);  // tokenizer.model, likewise
void FuzzPrompt(const uint8_t* data, size_t size);         // a line of --prompts
void FuzzStepMessages(const uint8_t* data, size_t size);   // what ranks tell each other
void FuzzWirePayload(const uint8_t* data, size_t size);    // rows in codes, between ranks
void FuzzHttpRequest(const uint8_t* data, size_t size);    // a head, an empty line, a body
#ifdef THINWIRE_HAS_SERVER
void FuzzGrpcRequest(const uint8_t* data, size_t size);  // a GenerateRequest
#endif

}  // namespace thinwire
