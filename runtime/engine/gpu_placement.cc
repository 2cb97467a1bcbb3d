#include "runtime/engine/gpu_placement.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/agreement.h"

namespace thinwire {

absl::Status CheckDistinct(absl::Span<const GpuPlace> places) {
  absl::flat_hash_map<std::string, size_t> ranks;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const GpuPlace& place = places[rank];
    const auto [found, is_new] = ranks.emplace(absl::StrCat(place.host, " ", place.bus_id), rank);
    if (is_new) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "ranks ", found->second, " and ", rank, " on ", place.host,
        " would share a GPU: ", DeviceName(Device::Cuda(place.index)), " (", place.bus_id,
        "); expected one for each rank: start fewer ranks on this host, --share-gpus or --device "
        "cpu"));
  }
  return absl::OkStatus();
}

absl::Status CheckGpusDistinct(Device device, Communicator& world, Stream& host) {
  struct Place {
    char host[64];
    char bus_id[32];
    int32_t index;
  };
  const absl::StatusOr<DeviceProperties> properties = GetDeviceProperties(device);
  TW_RETURN_IF_ERROR(AgreeOnStatus(properties.status(), world, host));
  Place mine = {};
  (void)gethostname(mine.host, sizeof(mine.host) - 1);
  std::strncpy(mine.bus_id, properties->bus_id.c_str(), sizeof(mine.bus_id) - 1);
  mine.index = device.index;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Place));
  std::vector<Place> all(static_cast<size_t>(world.size()));
  TW_RETURN_IF_ERROR(world.AllGather(ConstTensorView(&mine, DType::kU8, {kBytes}),
                                     TensorView(all.data(), DType::kU8, {kBytes * world.size()}),
                                     host));
  std::vector<GpuPlace> places;
  for (const Place& place : all) places.push_back({place.host, place.bus_id, place.index});
  return CheckDistinct(places);
}

}  // namespace thinwire
