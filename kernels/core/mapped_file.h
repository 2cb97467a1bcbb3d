// A file's bytes, read-only, without reading it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

// A whole file mapped read-only. Move-only. Pages come in when touched and count towards the
// process's resident memory until dropped, so a reader that copies slices calls DropPages behind
// itself. A file that another process truncates while mapped raises SIGBUS on access: checkpoints
// are written beside their target and renamed, never changed in place.
class MappedFile {
 public:
  // NotFound, PermissionDenied, or FailedPrecondition (not a regular file); messages name the path.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  absl::Span<const std::byte> bytes() const { return {data_, size_}; }

  // Gives the resident pages that lie wholly inside [offset, offset + length) back to the system.
  // The contents stay readable (and are read again).
  void DropPages(int64_t offset, int64_t length) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace thinwire
