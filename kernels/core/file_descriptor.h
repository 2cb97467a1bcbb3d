// A descriptor of the operating system that closes itself.
#pragma once

#include <unistd.h>

#include <utility>

namespace thinwire {

// Owns `number`, if it is not negative: closes it at the end unless it is released.
class FileDescriptor {
 public:
  explicit FileDescriptor(int number) : number_(number) {}
  ~FileDescriptor() {
    if (number_ >= 0) close(number_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return number_; }
  // The caller's to close from here on.
  int Release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

}  // namespace thinwire
