/* AVX-512 with vdpbf16ps: pairs of bf16 are multiplied and added into float32. The sets of AVX512_BF16 and of AMX,
 * which differ in the product of bf16 only. */
#include "internal.h"

#if AMBIDEX_X86
#include <immintrin.h>

#define LANES 16
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define v_fma(a, b, c) ((v_float)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define v_max(a, b) ((v_float)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define v_largest(v) _mm512_reduce_max_ps((__m512)(v))
#define v_has_any(mask) _mm512_test_epi32_mask((__m512i)(mask), (__m512i)(mask))
#define v_store_bf16(p, v) _mm256_storeu_si256((void *)(p), (__m256i)_mm512_cvtneps_pbh((__m512)(v)))
#define TILE_ROWS 14
#define TILE_PANELS 2
#define BF16_TILE tile_bf16
#define BF16_ROWS 14
#define BF16_PANELS 2
#define BF16_PLAIN_ROWS 3
#define PACK_KEYS pack_keys
#define PACK_VALUES pack_values

static void tile_bf16(const tile_args *t);
static void pack_keys(char *panels, const char *const *rows, int64_t head_size, int32_t dtype, int32_t left_dtype);
static void pack_values(char *panels, const char *const *rows, int64_t head_size, int32_t dtype, int32_t left_dtype);

#include "vector_kernels.h"

INLINE void pair_tile(const tile_args *t, const int rows, const int panels, const int prefetches) {
    __m512 acc[BF16_ROWS][BF16_PANELS];
    AMBIDEX_UNROLL
    for (int r = 0; r < rows; r++) AMBIDEX_UNROLL
    for (int p = 0; p < panels; p++)
        acc[r][p] = t->accumulate ? _mm512_loadu_ps(t->c + p * t->c_panel + r * PANEL) : _mm512_setzero_ps();
    const int64_t block = BLOCK_BYTES / 2;
    for (int64_t k = 0; k < t->num_inputs; k += 2 * RUN_LINES) {
        const char *a = t->a + k / block * t->a_block + k % block * 2;
        const char *b0 = t->b[0] + k * 32, *b1 = t->b[panels - 1] + k * 32;
        const char *ahead0 = read_ahead(t, 0, k * 32, t->num_inputs * 32);
        const char *ahead1 = read_ahead(t, panels - 1, k * 32, t->num_inputs * 32);
        AMBIDEX_UNROLL_4
        for (int line = 0; line < RUN_LINES; line++) {
            if (prefetches) __builtin_prefetch(ahead0 + line * 64);
            if (prefetches && panels > 1) __builtin_prefetch(ahead1 + line * 64);
            __m512bh w0 = (__m512bh)_mm512_load_si512((const void *)(b0 + line * 64));
            __m512bh w1 = panels > 1 ? (__m512bh)_mm512_load_si512((const void *)(b1 + line * 64)) : w0;
            AMBIDEX_UNROLL
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, a + r * ROW_BYTES + line * 4, 4);
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, w0);
                if (panels > 1) acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, w1);
            }
        }
    }
    AMBIDEX_UNROLL
    for (int r = 0; r < rows; r++) AMBIDEX_UNROLL
    for (int p = 0; p < panels; p++) _mm512_storeu_ps(t->c + p * t->c_panel + r * PANEL, acc[r][p]);
}

static TARGET void pair_tile_1(const tile_args *t) {
    switch (t->num_rows) { CASES_14(pair_tile, 1, 1) }
}
static TARGET void pair_tile_2(const tile_args *t) {
    switch (t->num_rows) { CASES_14(pair_tile, 2, 1) }
}
static TARGET void plain_tile_1(const tile_args *t) {
    switch (t->num_rows) { CASES_3(pair_tile, 1, 0) }
}
static TARGET void plain_tile_2(const tile_args *t) {
    switch (t->num_rows) { CASES_3(pair_tile, 2, 0) }
}
static TARGET void tile_bf16(const tile_args *t) {
    if (t->num_rows <= BF16_PLAIN_ROWS && !t->distance)
        t->num_panels > 1 ? plain_tile_2(t) : plain_tile_1(t);
    else
        t->num_panels > 1 ? pair_tile_2(t) : pair_tile_1(t);
}

/* Rows of 16 words become columns, by four rounds of interleaving. */
INLINE void transpose_words(__m512i r[16]) {
    __m512i t[16];
    AMBIDEX_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    AMBIDEX_UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    AMBIDEX_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    AMBIDEX_UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* `row_bytes` of 16 rows, as words, to [word][16]; words beyond the rows, up to a multiple of 16 of them, are zero. */
INLINE void transpose_keys(char *panel, const char *const *rows, int64_t row_bytes, int64_t num_words) {
    for (int64_t word = 0; word < num_words; word += 16) {
        int64_t left = row_bytes - word * 4;
        __mmask32 mask = left >= 64 ? 0xffffffffu : ((__mmask32)1 << left / 2) - 1;
        __m512i r[16];
        AMBIDEX_UNROLL
        for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi16(mask, rows[i] + word * 4);
        transpose_words(r);
        AMBIDEX_UNROLL
        for (int i = 0; i < 16; i++)
            if (word + i < num_words) _mm512_store_si512((void *)(panel + (word + i) * 64), r[i]);
    }
}

static TARGET void pack_keys(char *panels, const char *const *rows, int64_t head_size, int32_t dtype,
                             int32_t left_dtype) {
    (void)left_dtype;
    int64_t num_words = padded_inputs(head_size, dtype) * size_of(dtype) / 4;
    for (int64_t panel = 0; panel < KEY_BLOCK / PANEL; panel++)
        transpose_keys(panels + panel * num_words * 64, rows + panel * PANEL, head_size * size_of(dtype), num_words);
}

/* Two rows of bf16 interleave to [16][2]. */
INLINE __m512i pair_rows(const char *even, const char *odd, __mmask16 mask) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static TARGET void pack_values(char *panels, const char *const *rows, int64_t head_size, int32_t dtype,
                               int32_t left_dtype) {
    if (dtype == AMBIDEX_F32) {
        pack_values_float(panels, rows, head_size, dtype, left_dtype);
        return;
    }
    for (int64_t d = 0; d < head_size; d += PANEL) {
        int64_t left = head_size - d;
        __mmask16 mask = left >= PANEL ? 0xffff : (__mmask16)((1 << left) - 1);
        for (int64_t key = 0; key < KEY_BLOCK; key += 2, panels += 64)
            _mm512_store_si512((void *)panels, pair_rows(rows[key] + d * 2, rows[key + 1] + d * 2, mask));
    }
}

const kernel_set ambidex_avx512 = KERNEL_FIELDS(BF16_PRODUCT);

#if AMBIDEX_HAS_AMX
void ambidex_amx_begin(void);
void ambidex_amx_end(void);
void ambidex_amx_tile(const tile_args *t);
#define AMX_PRODUCT \
    {.max_rows = 32, \
     .max_panels = 2, \
     .left_dtype = AMBIDEX_BF16, \
     .begin = ambidex_amx_begin, \
     .end = ambidex_amx_end, \
     .tile = ambidex_amx_tile}
const kernel_set ambidex_amx = KERNEL_FIELDS(AMX_PRODUCT);
#endif
#else
typedef int nothing_here;
#endif
