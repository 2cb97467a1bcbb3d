#include "parallel/comm/agreement.h"

#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

// What each of the ranks is told when rank r brings statuses[r].
std::vector<absl::Status> Agree(const std::vector<absl::Status>& statuses) {
  const auto size = static_cast<int>(statuses.size());
  auto comms = CreateLocalCommunicators(size);
  std::vector<absl::Status> told(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      told[rank] = AgreeOnStatus(statuses[rank], *comms[rank], stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return told;
}

TEST(AgreementTest, AllWellIsOk) {
  for (const absl::Status& status : Agree(std::vector<absl::Status>(3))) EXPECT_TRUE(status.ok());
}

TEST(AgreementTest, TheFirstFailureIsEverybodys) {
  const absl::Status missing = absl::NotFoundError("a.safetensors: no such file");
  for (const absl::Status& status : Agree({absl::OkStatus(), missing, absl::DataLossError("x")})) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(status.message(), "rank 1: a.safetensors: no such file");
  }
}

TEST(AgreementTest, AFailureOfAllIsNotBlamedOnARank) {
  const absl::Status wrong = absl::InvalidArgumentError("config.json: wrong");
  for (const absl::Status& status : Agree({wrong, wrong})) {
    EXPECT_EQ(status.message(), "config.json: wrong");
  }
}

TEST(AgreementTest, LongMessagesAreCut) {
  for (const absl::Status& status :
       Agree({absl::InternalError(std::string(5000, 'x')), absl::OkStatus()})) {
    EXPECT_GE(status.message().size(), 1000u);
    EXPECT_LE(status.message().size(), 1100u);
  }
}

}  // namespace
}  // namespace thinwire
