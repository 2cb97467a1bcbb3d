#include "parallel/comm/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/file_descriptor.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

std::string Text(const std::string& name, absl::string_view call, int error) {
  return absl::StrCat("shared memory ", name, ": ", call, ": ", std::strerror(error));
}

}  // namespace

absl::StatusOr<SharedSegment> SharedSegment::Create(int64_t bytes) {
  SharedSegment made;
  made.name_ = absl::StrCat("/thinwire-", getpid(), "-", absl::GetCurrentTimeNanos());
  const FileDescriptor descriptor(
      shm_open(made.name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (descriptor.get() < 0) {
    return absl::UnavailableError(Text(made.name_, "shm_open", errno));
  }
  made.has_name_ = true;
  int error = EINTR;
  while (error == EINTR) error = posix_fallocate(descriptor.get(), 0, bytes);
  if (error != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(Text(made.name_, "posix_fallocate", error), ", of ", bytes, " bytes"));
  }
  TW_RETURN_IF_ERROR(made.Map(descriptor.get(), bytes));
  return made;
}

absl::StatusOr<SharedSegment> SharedSegment::Open(const std::string& name, int64_t bytes) {
  SharedSegment opened;
  opened.name_ = name;
  const FileDescriptor descriptor(shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0));
  if (descriptor.get() < 0) return absl::NotFoundError(Text(name, "shm_open", errno));
  struct stat found = {};
  if (fstat(descriptor.get(), &found) != 0) {
    return absl::UnavailableError(Text(name, "fstat", errno));
  }
  if (found.st_size != bytes) {
    return absl::InvalidArgumentError(absl::StrCat("shared memory ", name, ": expected ", bytes,
                                                   " bytes, found ", found.st_size));
  }
  TW_RETURN_IF_ERROR(opened.Map(descriptor.get(), bytes));
  return opened;
}

absl::Status SharedSegment::Map(int descriptor, int64_t bytes) {
  void* const data =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) return absl::ResourceExhaustedError(Text(name_, "mmap", errno));
  data_ = static_cast<std::byte*>(data);
  size_bytes_ = bytes;
  return absl::OkStatus();
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept { *this = std::move(other); }

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(has_name_, other.has_name_);
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

void SharedSegment::Unlink() {
  if (std::exchange(has_name_, false)) shm_unlink(name_.c_str());
}

SharedSegment::~SharedSegment() {
  Unlink();
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_bytes_));
}

}  // namespace thinwire
