// Every input that was kept, corpora and what once broke something, through its target.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"
#include "tests/fuzz/fuzz_targets.h"

namespace thinwire {

struct FuzzTarget {
  const char* folder;  // of the corpus
  void (*run)(const uint8_t* data, size_t size);
};

class FuzzCorpusTest : public testing::TestWithParam<FuzzTarget> {};

TEST_P(FuzzCorpusTest, NoInputBreaksIt) {
  const std::string folder = std::string(THINWIRE_FUZZ_CORPUS "/") + GetParam().folder;
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    // Cut short, too.
    for (size_t size = bytes.size();; size /= 2) {
      GetParam().run(reinterpret_cast<const uint8_t*>(bytes.data()), size);
      if (size == 0) break;
    }
    ++count;
  }
  EXPECT_GT(count, 0) << folder;
}

}  // namespace thinwire
