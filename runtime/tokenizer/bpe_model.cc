#include "runtime/tokenizer/bpe_model.h"

#include <algorithm>
#include <queue>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxId = 1 << 24;  // ids index arrays: keep a broken file from taking all memory
constexpr size_t kMaxCachedWordBytes = 48;  // longer words are rare and hardly ever come back
constexpr size_t kMaxCachedWords = 1 << 16;

// A merge that was possible when it was queued: the symbol at `at` with the one after it.
struct Candidate {
  int32_t rank;
  int32_t at;
  int32_t id;

  // For a queue whose top has the lowest rank and, of equal ones, the leftmost place.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

struct Neighbours {
  int32_t previous;
  int32_t next;
};

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Read(const JsonReader& json) {
  // Files older than the member "type" have BPE models only.
  TW_ASSIGN_OR_RETURN(const std::string type, json.GetStringOr("type", "BPE"));
  if (type != "BPE") return json.Unsupported(absl::StrCat("model type ", type), "BPE");
  if (json.Has("dropout") && json.value()["dropout"] != 0) {
    return json.Unsupported("dropout", "null, 0");
  }
  BpeModel model;
  TW_ASSIGN_OR_RETURN(model.continuing_subword_prefix_,
                      json.GetStringOr("continuing_subword_prefix", ""));
  TW_ASSIGN_OR_RETURN(model.end_of_word_suffix_, json.GetStringOr("end_of_word_suffix", ""));
  TW_ASSIGN_OR_RETURN(model.fuse_unknown_, json.GetBoolOr("fuse_unk", false));
  TW_ASSIGN_OR_RETURN(model.byte_fallback_, json.GetBoolOr("byte_fallback", false));
  TW_ASSIGN_OR_RETURN(model.ignore_merges_, json.GetBoolOr("ignore_merges", false));
  TW_RETURN_IF_ERROR(model.ReadVocabulary(json));
  TW_RETURN_IF_ERROR(model.ReadMerges(json));
  if (json.Has("unk_token")) {
    TW_ASSIGN_OR_RETURN(const std::string unknown, json.GetString("unk_token"));
    model.unknown_id_ = model.IdOf(unknown);
    if (model.unknown_id_ < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(json.place(), ".unk_token: \"", unknown, "\" is not in the vocabulary"));
    }
  }
  model.IndexCharacters();
  return model;
}

absl::Status BpeModel::ReadVocabulary(const JsonReader& json) {
  TW_ASSIGN_OR_RETURN(const JsonReader vocabulary, json.Get("vocab"));
  if (!vocabulary.value().is_object()) return vocabulary.Expected("an object");
  int64_t max_id = -1;
  ids_.reserve(vocabulary.value().size());
  for (const auto& [token, id] : vocabulary.value().items()) {
    if (!id.is_number_integer() || id < 0 || id >= kMaxId) {
      return JsonReader(&id, absl::StrCat(vocabulary.place(), "[\"", token, "\"]"))
          .Expected(absl::StrCat("an id from 0 to ", kMaxId - 1));
    }
    max_id = std::max(max_id, id.get<int64_t>());
    ids_.emplace(token, id.get<int32_t>());
  }
  tokens_.resize(max_id + 1);
  for (const auto& [token, id] : ids_) {
    if (!tokens_[id].empty()) {
      return absl::InvalidArgumentError(absl::StrCat(vocabulary.place(), ": \"", tokens_[id],
                                                     "\" and \"", token, "\" both have id ", id));
    }
    tokens_[id] = token;
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(const JsonReader& json) {
  TW_ASSIGN_OR_RETURN(const JsonReader merges, json.Get("merges"));
  if (!merges.value().is_array()) return merges.Expected("an array");
  merges_.reserve(merges.value().size());
  int32_t rank = 0;
  for (const nlohmann::json& element : merges.value()) {
    const auto place = [&] { return absl::StrCat(merges.place(), "[", rank, "]"); };
    std::vector<std::string> parts;
    if (element.is_string()) {
      const auto& text = element.get_ref<const std::string&>();
      if (absl::StartsWith(text, "#version")) continue;
      parts = absl::StrSplit(text, ' ');
    } else if (element.is_array()) {
      for (const nlohmann::json& part : element) {
        if (part.is_string()) parts.push_back(part.get<std::string>());
      }
    }
    if (parts.size() != 2) {
      return JsonReader(&element, place()).Expected("\"a b\" or [\"a\", \"b\"]");
    }
    // A token with the prefix of continuing subwords loses it when it is merged to what is before
    // it.
    if (parts[1].size() < continuing_subword_prefix_.size()) {
      return JsonReader(&element, place())
          .Expected(
              absl::StrCat("a second token that starts with \"", continuing_subword_prefix_, "\""));
    }
    const std::string merged =
        absl::StrCat(parts[0], parts[1].substr(continuing_subword_prefix_.size()));
    for (const std::string& token : {parts[0], parts[1], merged}) {
      if (IdOf(token) < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(place(), ": token \"", token, "\" is not in the vocabulary"));
      }
    }
    // Of a pair given twice the last counts.
    merges_[PairKey(IdOf(parts[0]), IdOf(parts[1]))] = {rank, IdOf(merged)};
    ++rank;
  }
  return absl::OkStatus();
}

void BpeModel::IndexCharacters() {
  for (const auto& [token, id] : ids_) {
    if (!token.empty() && unicode::CharSize(token) == token.size()) {
      character_ids_[unicode::DecodeChar(token)] = id;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = IdOf(absl::StrFormat("<0x%02X>", byte));
  }
}

int32_t BpeModel::IdOf(absl::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

int32_t BpeModel::CharacterId(absl::string_view character, bool first, bool last) const {
  const bool prefixed = !first && !continuing_subword_prefix_.empty();
  const bool suffixed = last && !end_of_word_suffix_.empty();
  if (!prefixed && !suffixed) {
    const auto found = character_ids_.find(unicode::DecodeChar(character));
    return found == character_ids_.end() ? -1 : found->second;
  }
  return IdOf(absl::StrCat(prefixed ? continuing_subword_prefix_ : "", character,
                           suffixed ? end_of_word_suffix_ : ""));
}

void BpeModel::AppendCharacters(absl::string_view word, std::vector<int32_t>* ids) const {
  bool unknown = false;  // an unknown token is due; it may still take more characters in
  const auto append = [&](int32_t id) {
    if (unknown) ids->push_back(unknown_id_);
    unknown = false;
    ids->push_back(id);
  };
  for (size_t at = 0; at < word.size();) {
    const size_t size = unicode::CharSize(word.substr(at));
    TW_CHECK_NE(size, 0u);
    const absl::string_view character = word.substr(at, size);
    const bool first = at == 0;
    at += size;
    const int32_t id = CharacterId(character, first, at == word.size());
    if (id >= 0) {
      append(id);
      continue;
    }
    const auto byte_id = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(),
                                      [&](char byte) { return byte_id(byte) >= 0; })) {
      for (const char byte : character) append(byte_id(byte));
      continue;
    }
    if (unknown_id_ < 0) continue;
    if (unknown && !fuse_unknown_) ids->push_back(unknown_id_);
    unknown = true;
  }
  if (unknown) ids->push_back(unknown_id_);
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeModel::MergeFrom(size_t begin, std::vector<int32_t>* all_ids) const {
  const auto size = static_cast<int32_t>(all_ids->size() - begin);
  if (size < 2) return;
  int32_t* ids = all_ids->data() + begin;  // -1: merged into a symbol to its left
  std::vector<Neighbours> list(size);
  std::vector<Candidate> candidates;
  for (int32_t i = 0; i < size; ++i) {
    list[i] = {i - 1, i + 1 < size ? i + 1 : -1};
    if (i + 1 == size) continue;
    if (const Merge* merge = FindMerge(ids[i], ids[i + 1])) {
      candidates.push_back({merge->rank, i, merge->id});
    }
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(candidates));
  const auto enqueue = [&](int32_t at) {
    if (at < 0 || list[at].next < 0) return;
    if (const Merge* merge = FindMerge(ids[at], ids[list[at].next])) {
      queue.push({merge->rank, at, merge->id});
    }
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const int32_t right = list[top.at].next;
    if (ids[top.at] < 0 || right < 0) continue;
    // Neighbours have changed since it was queued: what they can merge into was queued then.
    const Merge* merge = FindMerge(ids[top.at], ids[right]);
    if (merge == nullptr || merge->id != top.id) continue;
    ids[top.at] = top.id;
    ids[right] = -1;
    list[top.at].next = list[right].next;
    if (list[right].next >= 0) list[list[right].next].previous = top.at;
    enqueue(list[top.at].previous);
    enqueue(top.at);
  }
  all_ids->erase(std::remove(all_ids->begin() + static_cast<int64_t>(begin), all_ids->end(), -1),
                 all_ids->end());
}

void BpeModel::Encode(absl::string_view word, WordCache* cache, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const int32_t id = IdOf(word);
    if (id >= 0) {
      ids->push_back(id);
      return;
    }
  }
  const bool cacheable = word.size() <= kMaxCachedWordBytes;
  if (cacheable) {
    const auto found = cache->find(word);
    if (found != cache->end()) {
      const auto [begin, count] = found->second;
      for (size_t i = begin; i < begin + count; ++i) ids->push_back((*ids)[i]);
      return;
    }
  }
  const size_t begin = ids->size();
  AppendCharacters(word, ids);
  MergeFrom(begin, ids);
  if (cacheable && cache->size() < kMaxCachedWords) {
    cache->emplace(word, std::make_pair(begin, ids->size() - begin));
  }
}

}  // namespace thinwire
