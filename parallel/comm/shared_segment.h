// Memory that processes of one host have in common, by POSIX's shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thinwire {

// A mapping of a named segment. Move-only; the destructor unmaps it, and the memory is free once
// nobody has it mapped and it has no name. All pages are there from the start, so that a host that
// is short of them (/dev/shm has a size of its own) says so here and not by a signal later on.
class SharedSegment {
 public:
  SharedSegment() = default;

  // A new one of zeros, with a name that nobody else has. ResourceExhausted where there is no room,
  // Unavailable where the host has no shared memory.
  static absl::StatusOr<SharedSegment> Create(int64_t bytes);
  // One that another process has created. NotFound where this process does not see it (containers
  // have names of their own), InvalidArgument where it has another size.
  static absl::StatusOr<SharedSegment> Open(const std::string& name, int64_t bytes);

  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&& other) noexcept;
  ~SharedSegment();

  // Takes the name away, of one that was created here: who has it mapped keeps it, and nothing is
  // left behind whatever becomes of the processes. The destructor does, too.
  void Unlink();

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  const std::string& name() const { return name_; }  // at most 63 characters

 private:
  absl::Status Map(int descriptor, int64_t bytes);

  std::string name_;
  bool has_name_ = false;  // which is this one's to take away
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

}  // namespace thinwire
