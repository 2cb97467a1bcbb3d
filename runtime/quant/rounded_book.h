// A codebook's numbers as a file of fp16 can hold them.
#pragma once

#include <vector>

namespace thinwire {

// book: [entries, length], finite. Each number rounded to fp16 and cut off at its largest; `bytes`:
// the nearest byte book (kernels/vptq_linear/byte_book.h).
std::vector<float> RoundedBook(std::vector<float> book, int length, bool bytes);

}  // namespace thinwire
