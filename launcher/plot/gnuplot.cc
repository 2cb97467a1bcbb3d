#include "launcher/plot/gnuplot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"

extern char** environ;

namespace thinwire {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// A file without a name, gone when closed.
absl::StatusOr<File> TemporaryFile() {
  File file(std::tmpfile());
  if (file != nullptr) return file;
  return absl::ErrnoToStatus(errno, "gnuplot: cannot make a temporary file");
}

std::string Contents(std::FILE* file) {
  std::string text;
  std::rewind(file);
  char block[1 << 16];
  while (const size_t count = std::fread(block, 1, sizeof(block), file)) text.append(block, count);
  return text;
}

// The first line of what gnuplot complains of; before it, gnuplot shows the command and a caret.
std::string Complaint(absl::string_view text) {
  std::string last;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (absl::ConsumePrefix(&line, "gnuplot>") || line.empty() || line == "^") continue;
    last = std::string(line);
    break;
  }
  return last;
}

absl::Status WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    // It ended early: its own words say why.
    if (count < 0 && errno == EPIPE) return absl::OkStatus();
    if (count < 0) return absl::ErrnoToStatus(errno, "gnuplot: cannot write to its input");
    text.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

// Owns the actions of a spawn.
struct SpawnActions {
  SpawnActions() { posix_spawn_file_actions_init(&actions); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions); }

  posix_spawn_file_actions_t actions;
};

}  // namespace

std::string GnuplotString(absl::string_view text) {
  std::string quoted = "'";
  // A quote in front would end the string, doubled or not.
  if (!text.empty() && text[0] == '\'') quoted += ' ';
  for (const char c : text) {
    // Control characters would end the line, or be no XML.
    quoted += static_cast<unsigned char>(c) < ' ' || c == '\x7f' ? ' ' : c;
    if (c == '\'') quoted += c;
  }
  return quoted + "'";
}

absl::StatusOr<std::string> RunGnuplot(absl::string_view script) {
  TW_ASSIGN_OR_RETURN(const File out, TemporaryFile());
  TW_ASSIGN_OR_RETURN(const File errors, TemporaryFile());
  int input[2];
  if (pipe2(input, O_CLOEXEC) != 0)
    return absl::ErrnoToStatus(errno, "gnuplot: cannot make a pipe");
  SpawnActions spawn;
  posix_spawn_file_actions_adddup2(&spawn.actions, input[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&spawn.actions, fileno(out.get()), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&spawn.actions, fileno(errors.get()), STDERR_FILENO);
  std::string program = "gnuplot";
  char* arguments[] = {program.data(), nullptr};
  pid_t child = 0;
  const int error =
      posix_spawnp(&child, program.c_str(), &spawn.actions, nullptr, arguments, environ);
  close(input[0]);
  if (error != 0) {
    close(input[1]);
    return absl::FailedPreconditionError(
        error == ENOENT
            ? "gnuplot: not found; pictures are drawn with it: install it (Debian, Ubuntu: "
              "gnuplot-nox)"
            : absl::StrCat("gnuplot: ", absl::ErrnoToStatus(error, "cannot be started").message()));
  }
  const absl::Status written = WriteAll(input[1], script);
  close(input[1]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  TW_RETURN_IF_ERROR(written);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return Contents(out.get());
  return absl::InternalError(absl::StrCat("gnuplot: ",
                                          WIFEXITED(status)
                                              ? absl::StrCat("exit code ", WEXITSTATUS(status))
                                              : absl::StrCat("signal ", WTERMSIG(status)),
                                          ": ", Complaint(Contents(errors.get()))));
}

}  // namespace thinwire
