// What one rank's memory is used for.
#pragma once

#include <cstdint>

namespace thinwire {

struct MemoryReport {
  int64_t weight_bytes = 0;
  int64_t kv_cache_bytes = 0;  // reserved; on the CPU touched only as pages fill
  int64_t activation_bytes = 0;
  int64_t peak_resident_bytes = 0;  // of the process, since it started
};

// VmHWM of this process; 0 where the system does not tell.
int64_t PeakResidentBytes();

// Memory that can be allocated without swapping (MemAvailable); 0 where the system does not tell.
int64_t AvailableHostBytes();

}  // namespace thinwire
