// Writes a file so that a reader sees all of it or none.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// Bytes go to a temporary file beside `path`; Commit() flushes them to the disk and renames it into
// place. Destroyed without Commit, the temporary file is removed and whatever was at `path` stays.
// A pipe or a device (/dev/stdout) is written as it is, not replaced. Move-only.
class AtomicFile {
 public:
  // Errors name `path`: NotFound (no such folder), PermissionDenied, ...
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  // Create's errors, before there is anything to write. Leaves nothing behind, and does not open a
  // pipe, whose reader would take that for the end.
  static absl::Status CheckCreatable(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  // Appends. ResourceExhausted when the disk is full.
  absl::Status Write(absl::string_view bytes);

  // No call may follow.
  absl::Status Commit();

 private:
  AtomicFile() = default;

  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
};

// Create, Write, Commit.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes);

}  // namespace thinwire
