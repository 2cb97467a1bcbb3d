#include "runtime/tokenizer/split.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"

namespace thinwire {
namespace {

// A stretch of a piece: a match or what lies between matches.
struct Stretch {
  ByteRange range;
  bool is_match;
};

void CoverText(size_t size, const std::vector<ByteRange>& matches, bool invert,
               std::vector<Stretch>* stretches) {
  size_t done = 0;
  for (const ByteRange& match : matches) {
    if (match.begin > done) stretches->push_back({{done, match.begin}, invert});
    if (match.end > match.begin) stretches->push_back({match, !invert});
    done = match.end;
  }
  if (done < size) stretches->push_back({{done, size}, invert});
}

// Appends the resulting ranges in order.
void ApplyBehavior(const std::vector<Stretch>& stretches, SplitBehavior behavior,
                   std::vector<ByteRange>* ranges) {
  bool previous_was_match = false;
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Stretch& stretch : stretches) {
        if (!stretch.is_match) ranges->push_back(stretch.range);
      }
      return;
    case SplitBehavior::kIsolated:
      for (const Stretch& stretch : stretches) ranges->push_back(stretch.range);
      return;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious:
      for (const Stretch& stretch : stretches) {
        const bool merge = behavior == SplitBehavior::kContiguous
                               ? stretch.is_match == previous_was_match
                               : stretch.is_match && !previous_was_match;
        if (merge && !ranges->empty()) {
          ranges->back().end = stretch.range.end;
        } else {
          ranges->push_back(stretch.range);
        }
        previous_was_match = stretch.is_match;
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = stretches.size(); i-- > 0;) {
        const Stretch& stretch = stretches[i];
        if (stretch.is_match && !previous_was_match && !ranges->empty()) {
          ranges->back().begin = stretch.range.begin;
        } else {
          ranges->push_back(stretch.range);
        }
        previous_was_match = stretch.is_match;
      }
      std::reverse(ranges->begin(), ranges->end());
      return;
  }
}

}  // namespace

absl::StatusOr<SplitBehavior> ReadSplitBehavior(const JsonReader& component) {
  TW_ASSIGN_OR_RETURN(const std::string name, component.GetString("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return component.Unsupported("behavior " + name,
                               "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

absl::Status SplitPieces(FindMatches find, SplitBehavior behavior, bool invert, PieceList* list) {
  std::vector<PieceList::Piece> result;
  std::vector<ByteRange> matches;
  std::vector<Stretch> stretches;
  std::vector<ByteRange> ranges;
  for (const PieceList::Piece& piece : list->pieces) {
    matches.clear();
    stretches.clear();
    ranges.clear();
    const absl::string_view text = list->Text(piece);
    TW_RETURN_IF_ERROR(find(text, &matches));
    CoverText(text.size(), matches, invert, &stretches);
    ApplyBehavior(stretches, behavior, &ranges);
    for (const ByteRange& range : ranges) {
      const size_t offset = piece.range.begin;
      result.push_back(
          {{offset + range.begin, offset + range.end}, piece.at_start && range.begin == 0});
    }
  }
  list->pieces = std::move(result);
  return absl::OkStatus();
}

void RewritePieces(
    absl::FunctionRef<void(absl::string_view piece, bool at_start, std::string* text)> rewrite,
    PieceList* list) {
  std::string text;
  text.reserve(list->text.size() + list->text.size() / 4);
  for (PieceList::Piece& piece : list->pieces) {
    const size_t begin = text.size();
    rewrite(list->Text(piece), piece.at_start, &text);
    piece.range = {begin, text.size()};
    TW_DCHECK(piece.range.end > begin);
  }
  list->text = std::move(text);
}

}  // namespace thinwire
