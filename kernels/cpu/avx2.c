/* AVX2 with FMA. bf16 is widened in registers: a word's low half by a shift, its high half by a mask. */
#include "internal.h"

#if AMBIDEX_X86
#include <immintrin.h>

#define LANES 8
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define v_fma(a, b, c) ((v_float)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define v_max(a, b) ((v_float)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define v_has_any(mask) _mm256_movemask_ps((__m256)(mask))
#define TILE_ROWS 6
#define TILE_PANELS 1
#define WIDENING_ROWS 5 /* a sixth costs gcc a spilled sum in the inner loop, and half the speed */

#include "vector_kernels.h"

const kernel_set ambidex_avx2 = KERNEL_FIELDS(BF16_PRODUCT);
#else
typedef int nothing_here;
#endif
