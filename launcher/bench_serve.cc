#include "launcher/bench_serve.h"

#include <httplib.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/output.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

// Requests that an open loop may have on their way; more would come late, and are said to.
constexpr int kMaxOpen = 512;

double Milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

struct Outcome {
  int status = 0;  // of HTTP; 0: no answer
  bool complete = false;
  int64_t num_tokens = 0;
  double ttft_ms = 0.0;
  double e2e_ms = 0.0;
  std::vector<double> itl_ms;  // between events, shared out among the tokens of the later one
};

// Reads server-sent events as they come.
class EventReader {
 public:
  EventReader(Clock::time_point start, Outcome* outcome) : start_(start), outcome_(outcome) {}

  void Push(const char* data, size_t size) {
    buffer_.append(data, size);
    size_t end = 0;
    while ((end = buffer_.find("\n\n")) != std::string::npos) {
      Take(buffer_.substr(0, end));
      buffer_.erase(0, end + 2);
    }
  }

 private:
  void Take(const std::string& event) {
    constexpr absl::string_view kData = "data: ";
    if (!absl::StartsWith(event, kData)) return;
    const std::string text = event.substr(kData.size());
    if (text == "[DONE]") {
      outcome_->complete = !failed_;
      return;
    }
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || json.contains("error")) {
      failed_ = true;
      return;
    }
    const auto choices = json.find("choices");
    if (choices == json.end() || !choices->is_array() || choices->empty()) return;
    const auto& choice = choices->front();
    // Servers that do not tell the ids send an event a token.
    const auto ids = choice.is_object() ? choice.find("token_ids") : choice.end();
    const bool told = choice.is_object() && ids != choice.end() && ids->is_array();
    const int64_t count = told ? static_cast<int64_t>(ids->size()) : 1;
    if (count == 0) return;
    const Clock::time_point now = Clock::now();
    if (outcome_->num_tokens == 0) {
      outcome_->ttft_ms = Milliseconds(now - start_);
    } else {
      outcome_->itl_ms.insert(outcome_->itl_ms.end(), count, Milliseconds(now - last_) / count);
    }
    last_ = now;
    outcome_->num_tokens += count;
  }

  const Clock::time_point start_;
  Outcome* const outcome_;
  Clock::time_point last_;
  std::string buffer_;
  bool failed_ = false;
};

double Percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0.0;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

Json Summary(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {{"mean", values.empty() ? 0.0 : sum / static_cast<double>(values.size())},
          {"p50", Percentile(values, 0.5)},
          {"p90", Percentile(values, 0.9)},
          {"p99", Percentile(values, 0.99)}};
}

std::string Line(const char* name, const Json& summary) {
  return absl::StrFormat("%-5s ms: mean %.2f, p50 %.2f, p90 %.2f, p99 %.2f\n", name,
                         summary["mean"].get<double>(), summary["p50"].get<double>(),
                         summary["p90"].get<double>(), summary["p99"].get<double>());
}

}  // namespace

void BenchServe::AddTo(CLI::App& app) {
  app.add_option("--url", url_, "The server, without /v1")->capture_default_str();
  app.add_option("--model", model_, "Default: the first that the server has")->type_name("NAME");
  app.add_option("--requests", num_requests_, "How many")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--concurrency", concurrency_, "Closed loop: requests on their way")
      ->type_name("N")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--rate", rate_,
                 "Open loop: requests a second, at random (Poisson) times; latencies count from "
                 "those")
      ->type_name("R")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--prompt-tokens", prompt_tokens_, "Random token ids of each prompt")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--vocab", vocab_, "Those are from 4 to below this")
      ->type_name("N")
      ->check(CLI::Range(int64_t{5}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--max-tokens", max_tokens_, "Tokens of each answer")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--seed", seed_, "Of prompts and arrival times")
      ->type_name("S")
      ->capture_default_str();
  app.add_option("--timeout", timeout_s_, "Seconds without a byte after which a request failed")
      ->type_name("S")
      ->check(CLI::Range(0.1, 1e5))
      ->capture_default_str();
  app.add_option("--goodput-ttft-ms", goodput_ttft_ms_,
                 "Goodput: answers with a sooner first token")
      ->type_name("MS");
  app.add_option("--goodput-itl-ms", goodput_itl_ms_, "Goodput: answers with less between tokens")
      ->type_name("MS");
  app.add_flag("--json", json_, "One JSON object on standard output");
}

absl::Status BenchServe::Run(Job& job) {
  if (job.size() > 1) {
    return UsageError(absl::InvalidArgumentError(
        absl::StrCat("bench serve is one process, found ", job.size(), " ranks")));
  }
  const auto client = [this] {
    auto made = std::make_unique<httplib::Client>(url_);
    made->set_tcp_nodelay(true);
    made->set_keep_alive(true);
    made->set_connection_timeout(std::chrono::milliseconds(static_cast<int64_t>(timeout_s_ * 1e3)));
    made->set_read_timeout(std::chrono::milliseconds(static_cast<int64_t>(timeout_s_ * 1e3)));
    return made;
  };
  if (!client()->is_valid()) {
    return UsageError(absl::InvalidArgumentError(absl::StrCat("--url ", url_, ": no URL")));
  }
  std::string model = model_;
  if (model.empty()) {
    const auto models = client()->Get("/v1/models");
    if (!models) {
      return absl::UnavailableError(
          absl::StrCat(url_, "/v1/models: ", httplib::to_string(models.error())));
    }
    const auto json = nlohmann::json::parse(models->body, nullptr, /*allow_exceptions=*/false);
    const auto id = nlohmann::json::json_pointer("/data/0/id");
    if (!json.is_object() || !json.contains(id) || !json[id].is_string()) {
      return absl::UnavailableError(absl::StrCat(url_, "/v1/models: no model in the answer"));
    }
    model = json[id].get<std::string>();
  }

  // All that is random is drawn first, so that it does not depend on who is how fast.
  std::mt19937_64 random(seed_);
  std::vector<std::string> bodies;
  std::vector<double> arrivals;  // seconds from the start; open loop only
  std::uniform_int_distribution<int64_t> ids(4, vocab_ - 1);
  std::exponential_distribution<double> gap(rate_ > 0.0 ? rate_ : 1.0);
  double at = 0.0;
  for (int64_t i = 0; i < num_requests_; ++i) {
    std::vector<int64_t> prompt(prompt_tokens_);
    for (int64_t& id : prompt) id = ids(random);
    bodies.push_back(Json({{"model", model},
                           {"prompt", prompt},
                           {"max_tokens", max_tokens_},
                           {"temperature", 0.0},
                           {"ignore_eos", true},
                           {"stream", true}})
                         .dump());
    arrivals.push_back(at += gap(random));
  }
  std::vector<Outcome> outcomes(num_requests_);
  std::atomic<int64_t> next = 0;
  std::atomic<int64_t> num_late = 0;
  const Clock::time_point start = Clock::now();
  const auto work = [&] {
    const auto connection = client();
    for (int64_t i = next++; i < num_requests_; i = next++) {
      Clock::time_point begin = Clock::now();
      if (rate_ > 0.0) {
        const auto due = start + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(arrivals[i]));
        if (begin > due + std::chrono::milliseconds(10)) ++num_late;
        std::this_thread::sleep_until(due);
        begin = due;
      }
      EventReader reader(begin, &outcomes[i]);
      httplib::Request request;
      request.method = "POST";
      request.path = "/v1/completions";
      request.set_header("Content-Type", "application/json");
      request.body = bodies[i];
      request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
        reader.Push(data, size);
        return true;
      };
      const auto result = connection->send(request);
      if (result) outcomes[i].status = result->status;
      outcomes[i].e2e_ms = Milliseconds(Clock::now() - begin);
    }
  };
  std::vector<std::thread> threads;
  const int64_t num_threads =
      std::min<int64_t>(rate_ > 0.0 ? kMaxOpen : concurrency_, num_requests_);
  for (int64_t i = 0; i < num_threads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  const double seconds = Milliseconds(Clock::now() - start) / 1e3;

  std::vector<double> ttft, itl, e2e;
  int64_t completed = 0, refused = 0, failed = 0, good = 0, tokens = 0;
  for (const Outcome& outcome : outcomes) {
    tokens += outcome.num_tokens;
    if (outcome.status == 429) {
      ++refused;
    } else if (outcome.status != 200 || !outcome.complete) {
      ++failed;
    } else {
      ++completed;
      ttft.push_back(outcome.ttft_ms);
      e2e.push_back(outcome.e2e_ms);
      itl.insert(itl.end(), outcome.itl_ms.begin(), outcome.itl_ms.end());
      const double mean_itl =
          outcome.itl_ms.empty()
              ? 0.0
              : std::accumulate(outcome.itl_ms.begin(), outcome.itl_ms.end(), 0.0) /
                    static_cast<double>(outcome.itl_ms.size());
      good += (goodput_ttft_ms_ <= 0.0 || outcome.ttft_ms <= goodput_ttft_ms_) &&
              (goodput_itl_ms_ <= 0.0 || mean_itl <= goodput_itl_ms_);
    }
  }
  if (completed == 0) {
    return absl::UnavailableError(absl::StrCat(url_, ": of ", num_requests_,
                                               " requests none was answered, ", refused,
                                               " were refused (429)"));
  }
  const Json report = {{"requests", num_requests_},
                       {"completed", completed},
                       {"refused", refused},
                       {"failed", failed},
                       {"late", num_late.load()},
                       {"seconds", seconds},
                       {"requests_per_second", static_cast<double>(completed) / seconds},
                       {"tokens_per_second", static_cast<double>(tokens) / seconds},
                       {"goodput_per_second", static_cast<double>(good) / seconds},
                       {"ttft_ms", Summary(ttft)},
                       {"itl_ms", Summary(itl)},
                       {"e2e_ms", Summary(e2e)}};
  if (json_) return WriteOutput(report.dump() + "\n");
  return WriteOutput(absl::StrCat(
      absl::StrFormat("%d of %d requests answered in %.2f s, %d refused, %d failed, %d sent late\n"
                      "%.1f requests/s (good: %.1f), %.1f tokens/s\n",
                      completed, num_requests_, seconds, refused, failed, num_late.load(),
                      report["requests_per_second"].get<double>(),
                      report["goodput_per_second"].get<double>(),
                      report["tokens_per_second"].get<double>()),
      Line("TTFT", report["ttft_ms"]), Line("ITL", report["itl_ms"]),
      Line("E2E", report["e2e_ms"])));
}

}  // namespace thinwire
