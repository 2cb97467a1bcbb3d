#include "parallel/comm/agreement.h"

#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

// What each of `size` ranks returns from agree(rank, communicator, stream).
std::vector<absl::Status> OnRanks(
    int size, const std::function<absl::Status(int, Communicator&, Stream&)>& agree) {
  auto comms = CreateLocalCommunicators(size);
  std::vector<absl::Status> told(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      told[rank] = agree(rank, *comms[rank], stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return told;
}

// What each of the ranks is told when rank r brings statuses[r].
std::vector<absl::Status> Agree(const std::vector<absl::Status>& statuses) {
  return OnRanks(static_cast<int>(statuses.size()), [&](int rank, Communicator& world, Stream& s) {
    return AgreeOnStatus(statuses[rank], world, s);
  });
}

std::vector<absl::Status> Agree(const std::vector<std::vector<NamedValue>>& values) {
  return OnRanks(static_cast<int>(values.size()), [&](int rank, Communicator& world, Stream& s) {
    return AgreeOnValues(values[rank], world, s);
  });
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

TEST(AgreementTest, EqualValuesAreOk) {
  const std::vector<NamedValue> same = {{"--dtype", "fp32"}, {"config.json", ""}};
  for (const absl::Status& status : Agree({same, same, same})) EXPECT_TRUE(status.ok());
}

TEST(AgreementTest, TheFirstDifferenceIsNamed) {
  const std::vector<NamedValue> zero = {{"--dtype", "fp32"}, {"--wire", "fp16"}, {"--hop", "q8"}};
  std::vector<NamedValue> two = zero;
  two[1].value = "one-shot-q4";
  two[2].value = "native";
  for (const absl::Status& status : Agree({zero, zero, two})) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(
        status.message(),
        "--wire is one-shot-q4 on rank 2, but fp16 on rank 0; expected the same on all ranks");
  }
  two = {{"--dtype", "fp32"}, {"--other", "1"}};
  for (const absl::Status& status : Agree({zero, two})) {
    EXPECT_EQ(status.message(),
              "rank 1 has --other where rank 0 has --wire; expected the same on all ranks");
  }
  for (const absl::Status& status : Agree({zero, {zero[0]}})) {
    EXPECT_EQ(status.message(),
              "rank 1 has nothing where rank 0 has --wire; expected the same on all ranks");
  }
}

}  // namespace
}  // namespace thinwire
