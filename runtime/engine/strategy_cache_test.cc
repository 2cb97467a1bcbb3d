#include "runtime/engine/strategy_cache.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

class StrategyCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    cache_.dir = ::testing::TempDir() + "strategy_cache_test/tables";
    fs::remove_all(cache_.dir);
  }
  void TearDown() override { fs::remove_all(cache_.dir); }

  // What each of two ranks gets.
  std::vector<CachedStrategies> Load(int64_t width = 64) {
    std::vector<CachedStrategies> found(2);
    auto tp = CreateLocalCommunicators(2);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        ThreadPool pool(1);
        Stream stream = Stream::Cpu(&pool);
        const WireOptions options = ParseWireOptions("auto", "auto").value();
        found[rank] = LoadOrMeasureStrategies(cache_, *tp[rank], *tp[rank], options, width, 16,
                                              DType::kF32, absl::Milliseconds(100), stream)
                          .value();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(found[0].table.DebugString(), found[1].table.DebugString());
    EXPECT_EQ(found[0].age, found[1].age);
    return found;
  }

  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    if (!fs::exists(cache_.dir)) return files;
    for (const auto& entry : fs::directory_iterator(cache_.dir)) files.push_back(entry.path());
    return files;
  }

  StrategyCacheOptions cache_;
};

TEST_F(StrategyCacheTest, TheSecondJobTakesTheFirstOnesTable) {
  const auto first = Load();
  EXPECT_EQ(first[0].age, absl::ZeroDuration());
  ASSERT_EQ(Files().size(), 1u);
  const auto second = Load();
  EXPECT_GT(second[0].age, absl::ZeroDuration());
  EXPECT_EQ(second[0].table.DebugString(), first[0].table.DebugString());
}

TEST_F(StrategyCacheTest, AnotherWidthIsAnotherTopology) {
  Load(64);
  EXPECT_EQ(Load(128)[0].age, absl::ZeroDuration());
  EXPECT_EQ(Files().size(), 2u);
}

TEST_F(StrategyCacheTest, OldDamagedAndUnwantedTablesAreMeasuredAnew) {
  Load();
  cache_.measure_anew = true;
  EXPECT_EQ(Load()[0].age, absl::ZeroDuration());
  cache_.measure_anew = false;
  cache_.max_age = absl::ZeroDuration();
  EXPECT_EQ(Load()[0].age, absl::ZeroDuration());
  cache_.max_age = absl::Hours(1);
  for (const char* text : {"", "{", "[]", "{\"format_version\": 2}"}) {
    std::ofstream(Files().front()) << text;
    EXPECT_EQ(Load()[0].age, absl::ZeroDuration()) << text;
    EXPECT_GT(Load()[0].age, absl::ZeroDuration()) << text;
  }
  // A clock that was wrong when it was measured.
  std::ifstream in(Files().front());
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  text.replace(text.find("\"measured_at\": "), 16, "\"measured_at\": 9");
  std::ofstream(Files().front()) << text;
  EXPECT_EQ(Load()[0].age, absl::ZeroDuration());
}

TEST_F(StrategyCacheTest, WithoutAFolderNothingIsKept) {
  cache_.dir = "";
  EXPECT_EQ(Load()[0].age, absl::ZeroDuration());
  cache_.dir = "/proc/no-such-folder";
  EXPECT_EQ(Load()[0].age, absl::ZeroDuration());
}

}  // namespace
}  // namespace thinwire
