// The gate/up GEMM's narrow kernels.
#include "experts/grouped_gemm_launch.cuh"

namespace layered_sglang::grouped_gemm {

LS_LAUNCH(true, 1, false);
LS_LAUNCH(true, 2, false);

}  // namespace layered_sglang::grouped_gemm
