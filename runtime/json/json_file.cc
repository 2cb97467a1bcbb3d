#include "runtime/json/json_file.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr size_t kMaxQuotedBytes = 120;

// Accepts everything and remembers where the text stopped being JSON.
class PositionOfError : public nlohmann::json_sax<json> {
 public:
  size_t bytes_read = 0;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    bytes_read = position;
    return false;
  }
};

absl::Status SyntaxError(const std::string& path, const char* begin, const char* end) {
  PositionOfError position;
  (void)json::sax_parse(begin, end, &position);
  // The last byte read is the offending one, or one past the end of the text.
  const char* at =
      begin + std::min<size_t>(std::max<size_t>(position.bytes_read, 1) - 1, end - begin);
  const auto line = 1 + std::count(begin, at, '\n');
  const char* line_begin = at;
  while (line_begin > begin && line_begin[-1] != '\n') --line_begin;
  const std::string found =
      at == end ? "the end of the file"
                : absl::StrCat("\"", absl::CHexEscape(absl::string_view(at, 1)), "\"");
  return absl::InvalidArgumentError(absl::StrCat(path, ": line ", line, ", column ",
                                                 at - line_begin + 1,
                                                 ": not valid JSON: unexpected ", found));
}

}  // namespace

std::string QuotedForMessage(absl::string_view text) {
  size_t shown = std::min(text.size(), kMaxQuotedBytes);
  // Not through the middle of a UTF-8 character.
  while (shown < text.size() && shown > 0 && (text[shown] & 0xc0) == 0x80) --shown;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text.substr(0, shown)),
                      shown < text.size() ? "...\"" : "\"");
}

absl::StatusOr<json> ReadJsonFile(const std::string& path) {
  TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const char* begin = reinterpret_cast<const char*>(file.bytes().data());
  const char* end = begin + file.bytes().size();
  // The parser takes a null byte for the end of its input.
  if (begin == end || std::find(begin, end, '\0') != end) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, begin == end ? ": the file is empty; expected JSON" : ": not JSON: has null bytes"));
  }
  std::vector<absl::flat_hash_set<std::string>> keys;  // of each open object
  std::string duplicate;
  const auto find_duplicates = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key && duplicate.empty()) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) duplicate = QuotedForMessage(key);
    }
    return true;
  };
  json value = json::parse(begin, end, find_duplicates, /*allow_exceptions=*/false);
  if (value.is_discarded()) return SyntaxError(path, begin, end);
  if (!duplicate.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected each key once in an object, found ", duplicate, " twice"));
  }
  return value;
}

std::string DescribeJson(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return QuotedForMessage(value.get_ref<const std::string&>());
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

JsonFields::JsonFields(const json* object, std::string context)
    : object_(object), context_(std::move(context)) {}

absl::StatusOr<JsonFields> JsonFields::Create(const json& value, std::string context) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(context, ": expected an object, found ", DescribeJson(value)));
  }
  return JsonFields(&value, std::move(context));
}

bool JsonFields::Has(absl::string_view key) const { return Get(key) != nullptr; }

bool JsonFields::Mentions(absl::string_view key) const {
  return object_->contains(std::string(key));
}

const json* JsonFields::Get(absl::string_view key) const {
  const auto it = object_->find(std::string(key));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

absl::Status JsonFields::Expected(absl::string_view key, absl::string_view expected) const {
  const auto it = object_->find(std::string(key));
  return absl::InvalidArgumentError(
      absl::StrCat(context_, ": \"", key, "\": expected ", expected, ", found ",
                   it == object_->end() ? "nothing" : DescribeJson(*it)));
}

absl::StatusOr<int64_t> JsonFields::Int(absl::string_view key, int64_t min, int64_t max) const {
  const json* value = Get(key);
  if (value != nullptr && value->is_number_integer()) {
    const bool fits = !value->is_number_unsigned() ||
                      value->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
    if (fits && value->get<int64_t>() >= min && value->get<int64_t>() <= max) {
      return value->get<int64_t>();
    }
    if (!fits || value->get<int64_t>() > max) {
      return Expected(key, absl::StrCat("an integer of at most ", max));
    }
  }
  return Expected(key,
                  min == 1 ? "a positive integer" : absl::StrCat("an integer of at least ", min));
}

absl::StatusOr<int64_t> JsonFields::IntOr(absl::string_view key, int64_t absent, int64_t min,
                                          int64_t max) const {
  if (!Has(key)) return absent;
  return Int(key, min, max);
}

absl::StatusOr<double> JsonFields::PositiveDouble(absl::string_view key) const {
  const json* value = Get(key);
  if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>()) ||
      value->get<double>() <= 0) {
    return Expected(key, "a positive number");
  }
  return value->get<double>();
}

absl::StatusOr<double> JsonFields::PositiveDoubleOr(absl::string_view key, double absent) const {
  if (!Has(key)) return absent;
  return PositiveDouble(key);
}

absl::StatusOr<bool> JsonFields::BoolOr(absl::string_view key, bool absent) const {
  const json* value = Get(key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) return Expected(key, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view key) const {
  const json* value = Get(key);
  if (value == nullptr || !value->is_string()) return Expected(key, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::string> JsonFields::StringOr(absl::string_view key,
                                                 absl::string_view absent) const {
  if (!Has(key)) return std::string(absent);
  return String(key);
}

absl::StatusOr<JsonFields> JsonFields::Object(absl::string_view key) const {
  const json* value = Get(key);
  TW_CHECK(value != nullptr);
  if (!value->is_object()) return Expected(key, "an object");
  return JsonFields(value, absl::StrCat(context_, ": \"", key, "\""));
}

}  // namespace thinwire
