#include "runtime/server/http/quick_head.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(QuickHeadTest, PlainRequestsAreRead) {
  const std::string text =
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:  12 \r\n"
      "Authorization: Bearer s\r\n";
  const auto head = ReadQuickHead(text);
  ASSERT_TRUE(head.has_value());
  EXPECT_EQ(head->method, "POST");
  EXPECT_EQ(head->path, "/v1/completions");
  EXPECT_EQ(head->authorization, "Bearer s");
  EXPECT_EQ(head->content_length, 12u);
  EXPECT_TRUE(head->keep_alive);
}

TEST(QuickHeadTest, WhatNeedsACloserLookIsLeftAlone) {
  const std::string first = "POST /v1/completions HTTP/1.1\r\n";
  const std::string length = "Content-Length: 3\r\n";
  for (const std::string& text : {
           std::string(),
           std::string("\r\n"),
           std::string("POST\r\n"),
           first,
           absl::StrCat("POST / HTTP/1.0\r\n", length),
           absl::StrCat(first, length, length),
           absl::StrCat(first, "Content-Length: -3\r\n"),
           absl::StrCat(first, "Content-Length: 99999999999999999999\r\n"),
           absl::StrCat(first, "Content-Length: 3, 3\r\n"),
           absl::StrCat(first, length, "Transfer-Encoding: chunked\r\n"),
           absl::StrCat(first, length, "Expect: 100-continue\r\n"),
           absl::StrCat(first, length, " folded\r\n"),
           absl::StrCat(first, length, "x : y\r\n"),
           absl::StrCat(first, length, ": y\r\n"),
           absl::StrCat(first, length, "bare\n"),
           absl::StrCat(first, length, "a: b\rc: d\r\n"),
           absl::StrCat(first, length, "Authorization: a\r\nAuthorization: b\r\n"),
       }) {
    EXPECT_FALSE(ReadQuickHead(text).has_value()) << text;
  }
}

TEST(QuickHeadTest, ABodyIsAsLongAsEveryParserWouldSay) {
  EXPECT_EQ(ReadBodyLength("GET / HTTP/1.1\r\n"), 0u);
  EXPECT_EQ(ReadBodyLength("GET / HTTP/1.0\r\nHost: x\r\ncontent-length: 0\r\n"), 0u);
  EXPECT_EQ(ReadBodyLength("POST / HTTP/1.1\r\nX:\r\nContent-Length:\t12 \r\n"), 12u);
  const std::string first = "POST / HTTP/1.1\r\n";
  const std::string length = "Content-Length: 3\r\n";
  for (const std::string& text : {
           std::string(),
           std::string("\r\n"),
           std::string("GET / HTTP/1.1\n"),
           absl::StrCat("GET / HTTP/1.1\r\n", length),
           absl::StrCat(first, length, length),
           absl::StrCat(first, "Content-Length: +3\r\n"),
           absl::StrCat(first, "Content-Length:\r\n"),
           absl::StrCat(first, "Content-Length : 3\r\n"),
           absl::StrCat(first, "Content-Length: 99999999999999999999\r\n"),
           absl::StrCat(first, "transfer-encoding: chunked\r\n"),
           absl::StrCat(first, "Transfer-Encoding\r\n"),
           absl::StrCat(first, " Content-Length: 3\r\n"),
           absl::StrCat(first, "X: y\n", length),
           absl::StrCat(first, "X: y\rContent-Length: 3\r\n"),
       }) {
    EXPECT_FALSE(ReadBodyLength(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace thinwire
