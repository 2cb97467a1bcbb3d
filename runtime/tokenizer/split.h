// Text cut into pieces, and the ways of cutting it further.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/regex.h"

namespace thinwire {

// Non-empty ranges of one text, in order, not overlapping. What lies between them is dropped.
struct PieceList {
  struct Piece {
    ByteRange range;
    bool at_start = false;  // nothing of what the user gave comes before it
  };

  absl::string_view Text(const Piece& piece) const {
    return absl::string_view(text).substr(piece.range.begin, piece.range.end - piece.range.begin);
  }

  std::string text;
  std::vector<Piece> pieces;
};

// What happens to the matches ("-" in the comments, the text being "a--b").
enum class SplitBehavior {
  kRemoved,             // "a" "b"
  kIsolated,            // "a" "-" "-" "b"
  kMergedWithPrevious,  // "a-" "-" "b"
  kMergedWithNext,      // "a" "-" "-b"
  kContiguous,          // "a" "--" "b"
};

// Reads the member "behavior".
absl::StatusOr<SplitBehavior> ReadSplitBehavior(const JsonReader& component);

// Appends the matches in one piece, in order; empty ones are ignored.
using FindMatches =
    absl::FunctionRef<absl::Status(absl::string_view text, std::vector<ByteRange>* matches)>;

// Cuts every piece at its matches; with `invert`, at what lies between matches.
absl::Status SplitPieces(FindMatches find, SplitBehavior behavior, bool invert, PieceList* list);

// Rewrites every piece: `rewrite` appends the new text of `piece` to `text`.
void RewritePieces(
    absl::FunctionRef<void(absl::string_view piece, bool at_start, std::string* text)> rewrite,
    PieceList* list);

}  // namespace thinwire
