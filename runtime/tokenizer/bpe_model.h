// The "model" of tokenizer.json, of type BPE: byte-pair encoding (Sennrich et al. 2016,
// arXiv:1508.07909).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/json_reader.h"

namespace thinwire {

// A vocabulary and ranked merges. Immutable after Read.
class BpeModel {
 public:
  // Where in the ids of one call the ids of words seen before are. Keys are short words only.
  using WordCache = absl::flat_hash_map<std::string, std::pair<size_t, size_t>>;

  // `json` is the member "model". InvalidArgument names what is wrong in the vocabulary or the
  // merges; Unimplemented for other models and for dropout.
  static absl::StatusOr<BpeModel> Read(const JsonReader& json);

  // Appends the ids of one word (well-formed UTF-8, at most 2^31 - 1 bytes): its characters, merged
  // pair by pair, the pair of lowest rank first, the leftmost of equals. O(size log size). A
  // character outside the vocabulary becomes its byte tokens (byte_fallback), the unknown token, or
  // nothing. `cache` belongs to `ids`: it has been passed with no other vector.
  void Encode(absl::string_view word, WordCache* cache, std::vector<int32_t>* ids) const;

  // The largest id + 1.
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }

  // -1 when the vocabulary has no such token.
  int32_t IdOf(absl::string_view token) const;

  // Empty for ids that have no token.
  absl::string_view TokenOf(int32_t id) const { return tokens_[id]; }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;  // of the merged token
  };

  BpeModel() = default;

  absl::Status ReadVocabulary(const JsonReader& json);
  absl::Status ReadMerges(const JsonReader& json);
  void IndexCharacters();

  // The id of one character at its place in the word; -1 when there is none.
  int32_t CharacterId(absl::string_view character, bool first, bool last) const;
  void AppendCharacters(absl::string_view word, std::vector<int32_t>* ids) const;
  // Merges ids[begin:] in place.
  void MergeFrom(size_t begin, std::vector<int32_t>* ids) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  absl::flat_hash_map<std::string, int32_t> ids_;
  std::vector<std::string> tokens_;
  absl::flat_hash_map<uint64_t, Merge> merges_;           // left id << 32 | right id
  absl::flat_hash_map<uint32_t, int32_t> character_ids_;  // code point to id
  std::array<int32_t, 256> byte_ids_;                     // of "<0x00>"...; -1 where missing
  std::string continuing_subword_prefix_;
  std::string end_of_word_suffix_;
  int32_t unknown_id_ = -1;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;  // a word that is a token is that token
};

}  // namespace thinwire
