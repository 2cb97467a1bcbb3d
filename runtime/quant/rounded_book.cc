#include "runtime/quant/rounded_book.h"

#include <algorithm>

#include "kernels/core/dtype.h"
#include "kernels/core/float16.h"
#include "kernels/vptq_linear/byte_book.h"

namespace thinwire {
namespace {

constexpr float kMaxHalf = 65504.0f;

}  // namespace

std::vector<float> RoundedBook(std::vector<float> book, int length, bool bytes) {
  if (bytes) return RoundToByteBook(book, length, /*weights=*/{}, DType::kF16).Values();
  for (float& value : book) value = ToFloat(ToHalf(std::clamp(value, -kMaxHalf, kMaxHalf)));
  return book;
}

}  // namespace thinwire
