// The grouped GEMMs' wide kernels.
#include "experts/grouped_gemm_launch.cuh"

namespace layered_sglang::grouped_gemm {

LS_LAUNCH(true, 1, true);
LS_LAUNCH(true, 2, true);
LS_LAUNCH(false, 1, true);
LS_LAUNCH(false, 2, true);

}  // namespace layered_sglang::grouped_gemm
