// Whether this build has CUDA kernels.
#pragma once

namespace thinwire {

// For `if constexpr`, around calls of functions that only such builds define.
#ifdef THINWIRE_HAS_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

}  // namespace thinwire
