#include "runtime/server/bearer_token.h"

#include <cerrno>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

constexpr size_t kMinBytes = 16;
constexpr absl::string_view kScheme = "Bearer ";

}  // namespace

absl::StatusOr<std::string> ReadBearerToken(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  if (!file.is_open()) return absl::ErrnoToStatus(errno == 0 ? EIO : errno, path);
  std::string token;
  std::getline(file, token);
  token = std::string(absl::StripAsciiWhitespace(token));
  for (const char c : token) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": a token is printable ASCII"));
    }
  }
  if (token.size() < kMinBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a token of ", token.size(), " bytes; expected at least ", kMinBytes));
  }
  return token;
}

absl::Status CheckBearerToken(absl::string_view authorization, absl::string_view token) {
  if (token.empty()) return absl::OkStatus();
  bool same = absl::StartsWithIgnoreCase(authorization, kScheme);
  if (same) {
    const absl::string_view given =
        absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
    unsigned different = given.size() == token.size() ? 0 : 1;
    for (size_t i = 0; i < given.size(); ++i) {
      different |= static_cast<unsigned char>(given[i]) ^
                   static_cast<unsigned char>(token[i % token.size()]);
    }
    same = different == 0;
  }
  if (same) return absl::OkStatus();
  return absl::UnauthenticatedError("expected the header 'authorization: Bearer TOKEN'");
}

}  // namespace thinwire
