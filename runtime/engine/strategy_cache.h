// Tables of --wire auto that earlier jobs measured, in files.
//
// A file DIR/wire-HASH.json holds what the table was measured on, its topology, and the table:
//   {"format_version": 1, "measured_at": 1790000000, "topology": {...},
//    "times": [{"rows": 1, "us": [...]}, ...]}
// HASH are 16 hex digits of the SHA-256 of the topology: version of the wire, hosts of the ranks
// (name and network namespace), threads, width, largest number of rows, dtype, strategies, bits of
// norms, and what Open MPI was told of transports (OMPI_MCA_btl*, _pml*, _mtl*, _coll*).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/strategy.h"
#include "parallel/wire/strategy_table.h"

namespace thinwire {

struct StrategyCacheOptions {
  std::string dir;            // made where it is not there; "": nothing is kept
  bool measure_anew = false;  // and put what is found in the place of what was there
  absl::Duration max_age = absl::Hours(7 * 24);
};

struct CachedStrategies {
  StrategyTable table;
  absl::Duration age;  // zero: measured now
};

// Collective over `tp`, which has several ranks, and `control`, a communicator of the same ranks
// for host memory: `tp` itself, unless it is for GPUs. The arguments after them are
// MeasureStrategies'. Rank 0's file and options count. A table that is not there, too old, or
// cannot be read is measured and kept; one that cannot be kept is used all the same.
absl::StatusOr<CachedStrategies> LoadOrMeasureStrategies(const StrategyCacheOptions& cache,
                                                         Communicator& tp, Communicator& control,
                                                         const WireOptions& options, int64_t width,
                                                         int64_t max_rows, DType dtype,
                                                         absl::Duration budget, Stream& stream);

}  // namespace thinwire
