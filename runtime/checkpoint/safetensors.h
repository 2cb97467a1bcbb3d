// Safetensors files: the header checked, the data mapped. The format is a little-endian u64 N, N
// bytes of JSON naming each tensor's dtype, shape and place, and the tensors' bytes without gaps.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/dtype.h"
#include "kernels/core/mapped_file.h"

namespace thinwire {

struct TensorInfo {
  std::string name;
  std::string stored_dtype;  // as the file spells it: "BF16"
  bool loadable =
      false;  // whether stored_dtype has a DType; F64, U32, U64, BOOL, F8_* ... have none
  DType dtype = DType::kF32;   // only if loadable
  std::vector<int64_t> shape;  // sizes >= 0, row-major; {} is a scalar
  int64_t offset = 0;          // of the first byte, from the start of the file; any alignment
  int64_t size_bytes = 0;

  // "BF16 [4096, 11008]": for messages.
  std::string DebugString() const;
};

// "[4096, 11008]": for messages.
std::string ShapeString(absl::Span<const int64_t> shape);

// How the format spells a dtype: "F32", "I32". Not for packed ones (kU4, kU3), which it lacks.
absl::string_view StoredDTypeName(DType dtype);

// Reads the header of the safetensors file whose bytes are `file`; `path` is for messages. Tensors
// come in the order of their offsets, and lie wholly inside the file. No sequence of bytes crashes
// it. Every error is one line naming path, tensor (if it is about one), expected and found:
// - DataLoss: bytes are missing or left over, so the file is not the one that was written: shorter
//   than its length field, than its header or than a tensor's end; bytes after the last tensor.
// - InvalidArgument: the header itself is wrong: length 0 or > 100 MB, not JSON, not an object of
//   tensors, a key twice, unknown dtype, malformed or overflowing shape, shape and offsets that
//   disagree, offsets that are reversed, overlap or leave a gap.
// metadata: where to put the strings of "__metadata__", or null.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(
    absl::Span<const std::byte> file, absl::string_view path,
    std::map<std::string, std::string>* metadata = nullptr);

// An open file. Move-only; const methods may be called from several threads.
class SafetensorsFile {
 public:
  // Errors: those of MappedFile::Open and of ParseSafetensors. No page of the file stays resident.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }

  // In the order of their offsets. Pointers to them stay valid when this object moves.
  absl::Span<const TensorInfo> tensors() const { return tensors_; }

  // What "__metadata__" says; empty if there is none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;

  MappedFile file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace thinwire
