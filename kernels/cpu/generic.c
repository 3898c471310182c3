/* Any machine: 128-bit vectors, which are SSE2 on x86-64 and NEON on Arm. */
#define LANES 4
#define TARGET
#if defined(__aarch64__)
#include <arm_neon.h>
#define v_fma(a, b, c) ((v_float)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define TILE_ROWS 6
#else
#define v_fma(a, b, c) ((a) * (b) + (c))
#define TILE_ROWS 3
#endif
#define v_max(a, b) v_pick((v_int)((a) > (b)), (a), (b))
#define TILE_PANELS 1
#define WIDENING_ROWS TILE_ROWS

#include "vector_kernels.h"

const kernel_set ambidex_generic = KERNEL_FIELDS(BF16_PRODUCT);
