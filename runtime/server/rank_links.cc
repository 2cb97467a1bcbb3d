#include "runtime/server/rank_links.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/core/file_descriptor.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr int kPollMs = 100;
constexpr char kFarewell = 'f';

// What rank 0 tells the others; a rank introduces itself with the secret and its number.
struct Invitation {
  int64_t port = 0;  // 0: rank 0 cannot listen
  uint64_t secret[2] = {};
};

struct Introduction {
  uint64_t secret[2] = {};
  int64_t rank = 0;
};

bool ReadableWithin(int fd, absl::Duration timeout) {
  pollfd poll_fd = {fd, POLLIN, 0};
  return poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout))) == 1;
}

int Listen(bool loopback, Invitation& invitation) {
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (socket.get() < 0 || bind(socket.get(), generic, size) != 0 ||
      listen(socket.get(), 1024) != 0 || getsockname(socket.get(), generic, &size) != 0) {
    return -1;
  }
  std::random_device random;
  for (uint64_t& word : invitation.secret) word = (uint64_t{random()} << 32) | random();
  invitation.port = ntohs(address.sin_port);
  return socket.Release();
}

// The rank behind a new connection; -1 where it is none of ours.
int Introduced(int fd, const Invitation& invitation, absl::Time until) {
  Introduction told;
  auto* bytes = reinterpret_cast<char*>(&told);
  size_t have = 0;
  while (have < sizeof(told)) {
    if (absl::Now() >= until || !ReadableWithin(fd, until - absl::Now())) return -1;
    const ssize_t got = recv(fd, bytes + have, sizeof(told) - have, 0);
    if (got <= 0) return -1;
    have += static_cast<size_t>(got);
  }
  const bool ours = std::memcmp(told.secret, invitation.secret, sizeof(told.secret)) == 0;
  return ours ? static_cast<int>(told.rank) : -1;
}

int ConnectTo(const std::string& host, const Invitation& invitation, int rank) {
  addrinfo hints = {};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(invitation.port);
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  Introduction told = {{invitation.secret[0], invitation.secret[1]}, rank};
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval patience = {absl::ToInt64Seconds(kPatience), 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(socket.get(), at->ai_addr, at->ai_addrlen) == 0 &&
        send(socket.get(), &told, sizeof(told), MSG_NOSIGNAL) == sizeof(told)) {
      return socket.Release();
    }
  }
  return -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankLinks>> RankLinks::Connect(const std::vector<RankPlace>& places,
                                                              Communicator& world,
                                                              LostListener on_lost) {
  std::unique_ptr<RankLinks> links(new RankLinks(std::move(on_lost)));
  if (world.size() == 1) return links;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const bool one_host = std::all_of(places.begin(), places.end(), [&](const RankPlace& place) {
    return place.host == places[0].host;
  });
  Invitation invitation;
  FileDescriptor listener(world.rank() == 0 ? Listen(one_host, invitation) : -1);
  TW_RETURN_IF_ERROR(world.Broadcast(
      TensorView(&invitation, DType::kU8, {static_cast<int64_t>(sizeof(invitation))}), 0, stream));
  if (world.rank() != 0 && invitation.port != 0) {
    const int fd = ConnectTo(one_host ? "127.0.0.1" : places[0].host, invitation, world.rank());
    if (fd >= 0) links->links_.push_back({fd, 0});
  }
  // Who has got through; rank 0 waits for them alone.
  int64_t num_connected = world.rank() == 0 ? 0 : links->num_linked();
  TW_RETURN_IF_ERROR(
      world.AllReduce(TensorView(&num_connected, DType::kI64, {1}), ReduceOp::kSum, stream));
  const absl::Time until = absl::Now() + kPatience;
  while (world.rank() == 0 && links->num_linked() < num_connected && absl::Now() < until) {
    if (!ReadableWithin(listener.get(), until - absl::Now())) break;
    FileDescriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int rank = Introduced(socket.get(), invitation, until);
    if (rank > 0 && rank < world.size()) links->links_.push_back({socket.Release(), rank});
  }
  links->thread_ = std::thread([self = links.get()] { self->Watch(); });
  return links;
}

RankLinks::~RankLinks() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
  for (const Link& link : links_) close(link.fd);
}

void RankLinks::Farewell() {
  quiet_ = true;
  for (const Link& link : links_) send(link.fd, &kFarewell, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void RankLinks::Watch() {
  std::vector<Link> watched = links_;
  while (!stopping_ && !watched.empty()) {
    std::vector<pollfd> polled;
    for (const Link& link : watched) polled.push_back({link.fd, POLLIN, 0});
    if (poll(polled.data(), polled.size(), kPollMs) <= 0) continue;
    for (size_t i = 0; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      char byte = 0;
      const ssize_t got = recv(polled[i].fd, &byte, 1, MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (got != 1 && !quiet_ && !stopping_) on_lost_(watched[i].rank);
      watched.erase(watched.begin() + static_cast<int64_t>(i));  // farewell, or gone
      break;
    }
  }
}

}  // namespace thinwire
