/* The kernels of one instruction set, written once in GNU vector extensions. The including source defines
 *   LANES (4, 8 or 16), TARGET (the attribute of each function), v_fma(a, b, c), v_max(a, b),
 *   TILE_ROWS and TILE_PANELS (what fits the registers), and
 *   WIDENING_ROWS (the same where panels of bf16 are widened) or, where the processor multiplies bf16,
 *   BF16_TILE, BF16_ROWS, BF16_PANELS, BF16_PLAIN_ROWS, PACK_KEYS and PACK_VALUES;
 *   optionally v_largest(v) (the maximum of its lanes), v_has_any(mask) and v_store_bf16(p, v).
 * Every loop over 16 columns runs over GROUP vectors, the same arithmetic in each lane: where a column lies changes no
 * bits.
 */
#include "vectors.h"

#include "vector_attention.h"
#include "vector_products.h"
#include "vector_rows.h"
#include "vector_sample.h"

#ifdef BF16_TILE
#define BF16_PRODUCT \
    {.max_rows = BF16_ROWS, \
     .max_panels = BF16_PANELS, \
     .plain_rows = BF16_PLAIN_ROWS, \
     .left_dtype = AMBIDEX_BF16, \
     .tile = BF16_TILE}
#else
#define BF16_PRODUCT {.max_rows = WIDENING_ROWS, .max_panels = 1, .left_dtype = AMBIDEX_F32, .tile = float_tile_bf16_1}
#define PACK_KEYS pack_keys_float
#define PACK_VALUES pack_values_float
#endif

#define KERNEL_FIELDS(bf16_product) \
    {.products = {[AMBIDEX_F32] = \
                      {.max_rows = TILE_ROWS, .max_panels = TILE_PANELS, .left_dtype = AMBIDEX_F32, .tile = tile_f32}, \
                  [AMBIDEX_BF16] = bf16_product}, \
     .copy_row = copy_row, \
     .finish = finish, \
     .norm_row = norm_row, \
     .qkv_token = qkv_token, \
     .pack_keys = PACK_KEYS, \
     .pack_values = PACK_VALUES, \
     .softmax = softmax, \
     .store_attention = store_attention, \
     .max_of_row = max_of_row, \
     .exp_sum = exp_sum, \
     .first_above = first_above, \
     .mask_row = mask_row, \
     .read = read_bytes}
