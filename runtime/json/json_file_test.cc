#include "runtime/json/json_file.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::Not(HasSubstr("\n")));
  return std::string(status.message());
}

TEST(JsonFileTest, ReadsWhatIsThere) {
  const TestFolder folder;
  const nlohmann::json value = ReadJsonFile(folder.Write("a.json", "{\"x\": [1, 2.5]}")).value();
  EXPECT_EQ(value["x"][1], 2.5);
}

TEST(JsonFileTest, SyntaxErrorsHaveLineAndColumn) {
  const TestFolder folder;
  const std::string path = folder.Write("a.json", "{\n  \"x\": 1,\n  y\n}");
  EXPECT_EQ(ErrorOf(ReadJsonFile(path).status()),
            path + ": line 3, column 3: not valid JSON: unexpected \"y\"");
  folder.Write("a.json", "{\"x\": 1");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()),
              HasSubstr("line 1, column 8: not valid JSON: unexpected the end of the file"));
  folder.Write("a.json", "{\"x\": \"\xff\"}");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("line 1, column 8"));
  folder.Write("a.json", "{\"x\":\n1e999}");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("line 2"));
  folder.Write("a.json", "{} {}");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("column 4"));
}

TEST(JsonFileTest, RefusesEmptyFilesNullBytesAndMissingFiles) {
  const TestFolder folder;
  const std::string path = folder.Write("a.json", "");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("the file is empty"));
  folder.Write("a.json", absl::string_view("{}\0x", 4));
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("null bytes"));
  const absl::Status missing = ReadJsonFile(folder.Path("b.json")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("b.json"));
}

TEST(JsonFileTest, RefusesAKeyGivenTwiceInOneObject) {
  const TestFolder folder;
  const std::string path = folder.Write("a.json", R"({"x": {"y": 1, "z": {"y": 2}, "y": 3}})");
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("found \"y\" twice"));
  folder.Write("a.json", R"({"x": {"y": 1}, "z": {"y": 2}})");
  EXPECT_TRUE(ReadJsonFile(path).ok());
}

TEST(JsonFileTest, DeepNestingIsNoStackOverflow) {
  const TestFolder folder;
  const std::string path = folder.Write("a.json", std::string(1000000, '['));
  EXPECT_THAT(ErrorOf(ReadJsonFile(path).status()), HasSubstr("the end of the file"));
  folder.Write("a.json", "{\"x\": " + std::string(200000, '[') + std::string(200000, ']') + "}");
  const nlohmann::json value = ReadJsonFile(path).value();
  const JsonFields fields = JsonFields::Create(value, "a.json").value();
  EXPECT_EQ(ErrorOf(fields.Int("x").status()),
            "a.json: \"x\": expected a positive integer, found an array");
}

TEST(JsonFieldsTest, ReadsEachType) {
  const nlohmann::json value = {{"int", 3},      {"double", 0.5},   {"bool", true},
                                {"string", "s"}, {"null", nullptr}, {"object", {{"a", 1}}}};
  const JsonFields fields = JsonFields::Create(value, "c.json").value();
  EXPECT_EQ(fields.Int("int").value(), 3);
  EXPECT_EQ(fields.IntOr("null", 7).value(), 7);
  EXPECT_EQ(fields.IntOr("absent", -7).value(), -7);
  EXPECT_EQ(fields.PositiveDouble("double").value(), 0.5);
  EXPECT_EQ(fields.PositiveDouble("int").value(), 3.0);
  EXPECT_EQ(fields.PositiveDoubleOr("absent", 2.0).value(), 2.0);
  EXPECT_TRUE(fields.BoolOr("bool", false).value());
  EXPECT_TRUE(fields.BoolOr("null", true).value());
  EXPECT_EQ(fields.String("string").value(), "s");
  EXPECT_EQ(fields.StringOr("absent", "t").value(), "t");
  EXPECT_EQ(fields.Object("object")->Int("a").value(), 1);
  EXPECT_FALSE(fields.Has("null"));
  EXPECT_TRUE(fields.Mentions("null"));
  EXPECT_FALSE(fields.Mentions("absent"));
}

TEST(JsonFieldsTest, ErrorsNameFileFieldExpectedAndFound) {
  const nlohmann::json value = {{"s", "abc"},          {"f", 2.0},           {"neg", -1},
                                {"big", ~uint64_t{0}}, {"line", "one\ntwo"}, {"o", {{"x", false}}}};
  const JsonFields fields = JsonFields::Create(value, "config.json").value();
  EXPECT_EQ(ErrorOf(fields.Int("s").status()),
            "config.json: \"s\": expected a positive integer, found \"abc\"");
  EXPECT_EQ(ErrorOf(fields.Int("none").status()),
            "config.json: \"none\": expected a positive integer, found nothing");
  EXPECT_EQ(ErrorOf(fields.Int("f").status()),
            "config.json: \"f\": expected a positive integer, found 2.0");
  EXPECT_EQ(ErrorOf(fields.Int("neg", 0).status()),
            "config.json: \"neg\": expected an integer of at least 0, found -1");
  EXPECT_EQ(ErrorOf(fields.IntOr("big", 1, 1, 10).status()),
            "config.json: \"big\": expected an integer of at most 10, found 18446744073709551615");
  EXPECT_EQ(ErrorOf(fields.PositiveDouble("neg").status()),
            "config.json: \"neg\": expected a positive number, found -1");
  EXPECT_EQ(ErrorOf(fields.BoolOr("s", true).status()),
            "config.json: \"s\": expected true or false, found \"abc\"");
  EXPECT_EQ(ErrorOf(fields.String("neg").status()),
            "config.json: \"neg\": expected a string, found -1");
  EXPECT_EQ(ErrorOf(fields.BoolOr("line", true).status()),
            "config.json: \"line\": expected true or false, found \"one\\ntwo\"");
  EXPECT_EQ(ErrorOf(fields.Object("s").status()),
            "config.json: \"s\": expected an object, found \"abc\"");
  EXPECT_EQ(ErrorOf(fields.Object("o")->Int("x").status()),
            "config.json: \"o\": \"x\": expected a positive integer, found false");
  EXPECT_EQ(ErrorOf(JsonFields::Create(nlohmann::json::array(), "config.json").status()),
            "config.json: expected an object, found an array");
}

TEST(JsonFieldsTest, LongStringsAreCutInMessages) {
  const std::string quoted = QuotedForMessage(std::string(1000, 'a'));
  EXPECT_LT(quoted.size(), 200u);
  EXPECT_THAT(quoted, ::testing::EndsWith("...\""));
  // U+00E9 is c3 a9 in UTF-8; the cut at 120 bytes would fall between the two.
  EXPECT_EQ(QuotedForMessage(std::string(119, 'a') + "\xc3\xa9"
                                                     "b"),
            "\"" + std::string(119, 'a') + "...\"");
}

}  // namespace
}  // namespace thinwire
