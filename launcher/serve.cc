// thinwire serve: an engine that answers over gRPC and HTTP until it is told to stop.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/log.h"
#include "launcher/output.h"
#include "launcher/serve_flags.h"
#include "launcher/stop_signals.h"
#include "parallel/comm/agreement.h"
#include "runtime/server/bearer_token.h"
#include "runtime/server/grpc/grpc_server.h"
#include "runtime/server/http/http_server.h"
#include "runtime/server/rank_links.h"
#include "runtime/server/serving_core.h"

namespace thinwire {
namespace {

constexpr char kExamples[] =
    "Examples:\n"
    "  mpirun -np 2 thinwire serve --model DIR --tp 2\n"
    "  curl localhost:8080/v1/completions -d '{\"prompt\": \"The\"}'\n"
    "SIGTERM to rank 0 drains: see launcher/README.md for what mpirun makes of it.";

// How long calls have to take their last words after the engine has ended.
constexpr absl::Duration kGoodbye = absl::Seconds(2);

// Ends the job when what has to end soon does not.
class LastResort {
 public:
  LastResort(Job& job, absl::Duration patience)
      : thread_([this, &job, patience] {
          const absl::Time until = absl::Now() + patience;
          while (absl::Now() < until) {
            if (done_) return;
            absl::SleepFor(absl::Milliseconds(20));
          }
          PrintError("the server's connections did not end in time");
          job.bootstrap().Abort(1);
        }) {}
  ~LastResort() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

class ServeCommand : public Command {
 public:
  explicit ServeCommand(CLI::App& app)
      : app_(app.add_subcommand("serve", "Answer requests over gRPC and HTTP")) {
    engine_flags_.step_timeout_s = 8;  // a rank that hangs is noticed within ten seconds
    engine_flags_.prefix_cache = "on";
    engine_flags_.AddTo(*app_);
    engine_flags_.AddGroupsTo(*app_);
    flags_.AddTo(*app_);
    app_->footer(kExamples);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    TW_RETURN_IF_ERROR(UsageError(flags_.Check()));
    TW_RETURN_IF_ERROR(UsageError(engine_flags_.Layout(job.size()).status()));
    if (!job.leader()) return Follow(job);
    const absl::Status listening = Listen();
    const absl::Status agreed = Agree(listening, job);
    TW_RETURN_IF_ERROR(listening);
    TW_RETURN_IF_ERROR(agreed);
    return Lead(job);
  }

 private:
  static absl::Status Agree(const absl::Status& mine, Job& job) {
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    return AgreeOnStatus(mine, job.world(), stream);
  }

  absl::Status Follow(Job& job) {
    IgnoreStopSignals();
    TW_RETURN_IF_ERROR(Agree(absl::OkStatus(), job));
    TW_ASSIGN_OR_RETURN(const std::vector<RankPlace> places,
                        GatherRankPlaces(engine_flags_.device, job.world()));
    TW_ASSIGN_OR_RETURN(
        const std::unique_ptr<RankLinks> links,
        RankLinks::Connect(places, job.world(), [&job](int rank) {
          job.world().Abort(absl::UnavailableError(absl::StrCat("rank ", rank, " is gone")));
        }));
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSession> session,
                        EngineSession::Open(engine_flags_, job));
    const absl::Status followed = session->Follow();
    if (followed.ok()) links->Farewell();
    return followed;
  }

  // Before the model is loaded: what is wrong here ends the job early, and probes get answers.
  absl::Status Listen() {
    if (!flags_.pid_file.empty()) {
      TW_RETURN_IF_ERROR(WriteFileAtomically(flags_.pid_file, absl::StrCat(getpid(), "\n")));
    }
    TW_ASSIGN_OR_RETURN(ServedModel model, LoadServedModel(engine_flags_.model, flags_.model_name,
                                                           flags_.chat_template));
    ServingLimits limits;
    limits.max_queued_requests = flags_.max_queued_requests;
    limits.max_queued_tokens = flags_.max_queued_tokens;
    limits.max_wait = absl::Seconds(flags_.max_wait_s);
    limits.max_deadline = absl::Seconds(flags_.max_deadline_s);
    limits.slow_reader_timeout = absl::Seconds(flags_.slow_reader_timeout_s);
    limits.heartbeat = std::min(limits.heartbeat, absl::Seconds(engine_flags_.step_timeout_s) / 4);
    core_ = std::make_unique<ServingCore>(limits, std::move(model));
    core_->version = THINWIRE_VERSION;
    if (!flags_.token_file.empty()) {
      TW_ASSIGN_OR_RETURN(core_->data_token, ReadBearerToken(flags_.token_file));
    }
    if (!flags_.admin_token_file.empty()) {
      TW_ASSIGN_OR_RETURN(core_->admin_token, ReadBearerToken(flags_.admin_token_file));
    }
    if (flags_.rate_limit > 0.0) {
      core_->rates.emplace(flags_.rate_limit,
                           flags_.rate_burst > 0.0 ? flags_.rate_burst : flags_.rate_limit);
    }
    core_->client_header = absl::AsciiStrToLower(flags_.client_header);
    core_->drain_timeout = absl::Seconds(flags_.drain_timeout_s);
    core_->loop.SetProgress("loading the model");
    core_->loop.AddListener([this](ServingState state) { Tell(state); });
    if (flags_.log_requests) {
      core_->loop.SetEndListener([](const GenerationRequest& request, const GenerationEnd& end) {
        LogRequest(request, end);
      });
    }
    GrpcOptions grpc;
    grpc.address = flags_.grpc;
    grpc.admin_address = flags_.admin;
    grpc.tls_cert = flags_.tls_cert;
    grpc.tls_key = flags_.tls_key;
    grpc.tls_client_ca = flags_.tls_client_ca;
    TW_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(grpc, core_.get()));
    nlohmann::ordered_json addresses = {
        {"event", "listening"}, {"grpc", grpc_->address()}, {"admin", grpc_->admin_address()}};
    HttpOptions http;
    http.tls_cert = flags_.tls_cert;
    http.tls_key = flags_.tls_key;
    http.tls_client_ca = flags_.tls_client_ca;
    http.warn = [](absl::string_view message) { LogWarning(message); };
    http.num_threads = flags_.http_threads;
    http.vllm_metrics = flags_.metrics_compat == "vllm";
    if (!flags_.http.empty()) {
      http.address = flags_.http;
      TW_ASSIGN_OR_RETURN(http_, HttpServer::Start(http, core_.get()));
      addresses["http"] = http_->address();
    }
    if (!flags_.metrics.empty()) {
      http.address = flags_.metrics;
      http.openai = false;
      http.num_threads = 16;
      TW_ASSIGN_OR_RETURN(metrics_, HttpServer::Start(http, core_.get()));
      addresses["metrics"] = metrics_->address();
    }
    return Say(addresses);
  }

  absl::Status Lead(Job& job) {
    const StopSignals signals([this, &job](int count) { OnSignal(count, job); });
    TW_ASSIGN_OR_RETURN(const std::vector<RankPlace> places,
                        GatherRankPlaces(engine_flags_.device, job.world()));
    TW_RETURN_IF_ERROR(DescribeRanks(places, job));
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<RankLinks> links,
                        RankLinks::Connect(places, job.world(),
                                           [&](int rank) { OnLost(rank, places[rank], job); }));
    if (links->num_linked() < job.size() - 1) {
      LogWarning(absl::StrCat("only ", links->num_linked(), " of ", job.size() - 1,
                              " ranks can reach rank 0 by the name ", places[0].host,
                              ": the loss of others is noticed by --step-timeout"));
    }
    absl::StatusOr<std::unique_ptr<EngineSession>> session =
        EngineSession::Open(engine_flags_, job);
    if (!session.ok()) {
      core_->loop.Fail(session.status());
      Close(job);
      return session.status();
    }
    Engine& engine = (*session)->engine();
    const absl::Status served = core_->loop.Run(engine, *core_->model.tokenizer);
    Close(job);
    if (!served.ok()) return served;
    links->Farewell();
    return engine.Stop();
  }

  absl::Status DescribeRanks(const std::vector<RankPlace>& places, Job& job) {
    TW_ASSIGN_OR_RETURN(const RankLayout layout, engine_flags_.Layout(job.size()));
    std::vector<RankInfo> ranks;
    for (int rank = 0; rank < job.size(); ++rank) {
      const Mesh& mesh = layout.mesh(layout.GroupOf(rank));
      const int index = layout.RankInGroup(rank);
      ranks.push_back({places[rank], mesh.tp_rank(index), mesh.pp_rank(index)});
    }
    core_->SetJob({layout.Description(), job.bootstrap().Description(), std::move(ranks)});
    return absl::OkStatus();
  }

  // Streams learn of it before the launcher ends this process, too.
  void OnLost(int rank, const RankPlace& place, Job& job) {
    const absl::Status why = absl::UnavailableError(absl::StrCat(
        "rank ", rank, " (process ", place.process_id, " on ", place.host, ") is gone"));
    core_->loop.Fail(why);
    job.world().Abort(why);
  }

  void OnSignal(int count, Job& job) {
    if (core_->loop.state() == ServingState::kStarting) {
      PrintError("stopped before it was ready");
      job.bootstrap().Abort(1);
    }
    core_->loop.Drain(count == 1 ? core_->drain_timeout : absl::ZeroDuration());
  }

  // All requests have ended; lets clients hear of it.
  void Close(Job& job) {
    const LastResort last_resort(job, kGoodbye + absl::Seconds(1));
    grpc_->SetReady(false);
    std::thread http([this, until = absl::Now() + kGoodbye] {
      if (http_ != nullptr) http_->Stop(until);
      if (metrics_ != nullptr) metrics_->Stop(until);
    });
    grpc_->Stop(kGoodbye);
    http.join();
  }

  void Tell(ServingState state) {
    if (grpc_ != nullptr) grpc_->SetReady(state == ServingState::kReady);
    const absl::Status said = Say({{"event", std::string(ServingStateName(state))}});
    if (!said.ok()) LogWarning(said.message());
  }

  absl::Status Say(const nlohmann::ordered_json& event) {
    std::string line = "serve:";
    for (const auto& [key, value] : event.items()) {
      absl::StrAppend(&line, " ", key == "event" ? "" : key + " ", value.get<std::string>());
    }
    LogInfo(line);
    return flags_.json ? WriteOutput(event.dump() + "\n") : absl::OkStatus();
  }

  static void LogRequest(const GenerationRequest& request, const GenerationEnd& end) {
    LogInfo(absl::StrFormat(
        "request id=%s end=%s prompt_tokens=%d tokens=%d queue_ms=%.1f prefill_ms=%.1f "
        "decode_ms=%.1f%s",
        request.id, std::string(EndReasonName(end.reason)), end.num_prompt_tokens,
        end.num_generated_tokens, end.queue_ms, end.prefill_ms, end.decode_ms,
        end.status.ok() ? "" : absl::StrCat(" status=", end.status.ToString())));
  }

  CLI::App* app_;
  EngineFlags engine_flags_;
  ServeFlags flags_;
  std::unique_ptr<ServingCore> core_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<HttpServer> metrics_;
};

}  // namespace

std::unique_ptr<Command> MakeServeCommand(CLI::App& app) {
  return std::make_unique<ServeCommand>(app);
}

}  // namespace thinwire
