#include "runtime/server/rank_places.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

struct Record {
  int64_t process_id = 0;
  char host[128] = {};
  char device[120] = {};
};

void Copy(absl::string_view text, char* out) {
  std::memcpy(out, text.data(), std::min<size_t>(text.size(), 100));
}

}  // namespace

absl::StatusOr<std::vector<RankPlace>> GatherRankPlaces(absl::string_view device,
                                                        Communicator& world) {
  Record mine;
  mine.process_id = getpid();
  char host[128] = {};
  if (gethostname(host, sizeof(host) - 1) == 0) Copy(host, mine.host);
  Copy(device, mine.device);
  std::vector<Record> all(world.size());
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto size = static_cast<int64_t>(sizeof(Record));
  TW_RETURN_IF_ERROR(world.AllGather(ConstTensorView(&mine, DType::kU8, {size}),
                                     TensorView(all.data(), DType::kU8, {world.size() * size}),
                                     stream));
  std::vector<RankPlace> places;
  for (const Record& record : all) {
    places.push_back({record.host, static_cast<int>(record.process_id), record.device});
  }
  return places;
}

}  // namespace thinwire
