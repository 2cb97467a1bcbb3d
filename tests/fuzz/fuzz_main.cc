// libFuzzer's entry: THINWIRE_FUZZ_TARGET is the function that a program fuzzes.
#include "tests/fuzz/fuzz_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  thinwire::THINWIRE_FUZZ_TARGET(data, size);
  return 0;
}
