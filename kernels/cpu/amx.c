/* Products of bf16 on AMX tiles: two tiles of 16 rows by two panels of 16 columns, 32 inputs a step.
 *
 * A tile is 16 rows of 64 bytes; t(dpbf16ps) adds, for each row m and column n, the sums over the even and over the odd
 * inputs of a[m][·]·b[·][n] to c[m][n] (Intel SDM, TDPBF16PS). With AMBIDEX_EMULATE_AMX the same is computed in C, for
 * tests on other processors. */
#include "internal.h"

#if AMBIDEX_HAS_AMX

#if defined(AMBIDEX_EMULATE_AMX)
#define TARGET
typedef struct {
    uint8_t bytes[16][64];
} tile_register;
static __thread tile_register tiles[8];
static __thread int is_configured;

static void tile_zero(int tile) { memset(&tiles[tile], 0, sizeof tiles[tile]); }
static void tile_load(int tile, const void *base, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy(tiles[tile].bytes[row], (const char *)base + row * stride, 64);
}
static void tile_save(int tile, void *base, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy((char *)base + row * stride, tiles[tile].bytes[row], 64);
}
static float value(const uint8_t *bf16) {
    uint32_t bits = (uint32_t)bf16[0] << 16 | (uint32_t)bf16[1] << 24;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}
static void tile_product(int c, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < 16; k++) {
                even += value(&tiles[a].bytes[m][4 * k]) * value(&tiles[b].bytes[k][4 * n]);
                odd += value(&tiles[a].bytes[m][4 * k + 2]) * value(&tiles[b].bytes[k][4 * n + 2]);
            }
            memcpy(&sum, &tiles[c].bytes[m][4 * n], 4);
            sum = is_configured ? sum + (even + odd) : sum;
            memcpy(&tiles[c].bytes[m][4 * n], &sum, 4);
        }
}
void ambidex_amx_begin(void) { is_configured = 1; }
void ambidex_amx_end(void) { is_configured = 0; }
#else
#include <immintrin.h>
#define TARGET __attribute__((target("amx-tile,amx-bf16")))
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, base, stride) _tile_loadd(tile, base, stride)
#define tile_save(tile, base, stride) _tile_stored(tile, base, stride)
#define tile_product(c, a, b) _tile_dpbf16ps(c, a, b)

/* All eight tiles are 16 rows of 64 bytes. */
TARGET void ambidex_amx_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}
TARGET void ambidex_amx_end(void) { _tile_release(); }
#endif

/* Tiles 0 and 1 hold the panels of the first 16 rows, 2 and 3 of the next; 4 and 5 the rows, 6 and 7 the panels. */
#define WITH_EACH(is_tall, is_wide, action) \
    do { \
        action(0, 0, 0); \
        if (is_wide) action(1, 0, 1); \
        if (is_tall) action(2, 1, 0); \
        if (is_tall && is_wide) action(3, 1, 1); \
    } while (0)
#define PLACE(row, panel) (t->c + (panel) * t->c_panel + (row) * 16 * PANEL)
#define TAKE(tile, row, panel) tile_load(tile, PLACE(row, panel), 64)
#define CLEAR(tile, row, panel) tile_zero(tile)
#define SAVE(tile, row, panel) tile_save(tile, PLACE(row, panel), 64)

static inline TARGET
__attribute__((always_inline)) void amx_tile(const tile_args *t, const int is_tall, const int is_wide) {
    if (t->accumulate)
        WITH_EACH(is_tall, is_wide, TAKE);
    else
        WITH_EACH(is_tall, is_wide, CLEAR);
    const int64_t block = BLOCK_BYTES / 2;
    for (int64_t k = 0; k < t->num_inputs; k += 32) {
        const int64_t offset = k * 32;
        const char *a = t->a + k / block * t->a_block + k % block * 2;
        const char *ahead0 = read_ahead(t, 0, offset, t->num_inputs * 32);
        const char *ahead1 = read_ahead(t, is_wide, offset, t->num_inputs * 32);
        for (int line = 0; t->distance && line < RUN_LINES * 64; line += 64) {
            __builtin_prefetch(ahead0 + line);
            if (is_wide) __builtin_prefetch(ahead1 + line);
        }
        tile_load(6, t->b[0] + offset, 64);
        tile_load(4, a, ROW_BYTES);
        tile_product(0, 4, 6);
        if (is_wide) {
            tile_load(7, t->b[1] + offset, 64);
            tile_product(1, 4, 7);
        }
        if (is_tall) {
            tile_load(5, a + 16 * ROW_BYTES, ROW_BYTES);
            tile_product(2, 5, 6);
            if (is_wide) tile_product(3, 5, 7);
        }
    }
    WITH_EACH(is_tall, is_wide, SAVE);
}

TARGET void ambidex_amx_tile(const tile_args *t) {
    const int is_tall = t->num_rows > 16, is_wide = t->num_panels > 1;
    if (is_tall && is_wide)
        amx_tile(t, 1, 1);
    else if (is_tall)
        amx_tile(t, 1, 0);
    else if (is_wide)
        amx_tile(t, 0, 1);
    else
        amx_tile(t, 0, 0);
}
#else
typedef int nothing_here;
#endif
