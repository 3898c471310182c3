/* The kernels of one instruction set, written once in GNU vector extensions. The including source defines
 *   LANES (4, 8 or 16), TARGET (the attribute of each function), KERNELS (the name of the set),
 *   v_fma(a, b, c), v_max(a, b), optionally v_largest(v) (the maximum of its lanes), TILE_ROWS and TILE_PANELS (what fits the registers),
 * and, where the processor multiplies bf16, BF16_TILE, BF16_ROWS, BF16_PANELS, PACK_KEYS and PACK_VALUES.
 * Every loop over 16 columns runs over GROUP vectors of LANES, so that a column's arithmetic does not depend on LANES' place.
 */
#include <math.h>

#include "internal.h"

#define GROUP (PANEL / LANES)
#define INLINE static inline TARGET __attribute__((always_inline))

typedef float v_float __attribute__((vector_size(LANES * 4)));
typedef int32_t v_int __attribute__((vector_size(LANES * 4)));
typedef uint32_t v_word __attribute__((vector_size(LANES * 4)));
typedef uint16_t v_half __attribute__((vector_size(LANES * 2)));

INLINE v_float v_load(const float *p) {
    v_float v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void v_store(float *p, v_float v) { memcpy(p, &v, sizeof v); }
INLINE v_float v_all(float x) { return x - (v_float){0}; }
INLINE v_float v_pick(v_int mask, v_float yes, v_float no) {
    return (v_float)((mask & (v_int)yes) | (~mask & (v_int)no));
}
INLINE v_float v_load_bf16(const char *p) {
    v_half h;
    memcpy(&h, p, sizeof h);
    return (v_float)(__builtin_convertvector(h, v_word) << 16);
}
INLINE v_float v_round_bf16(v_float v) {
    v_word bits = (v_word)v;
    v_word rounded = bits + 0x7fff + ((bits >> 16) & 1);
    v_int is_nan = (v_int)(v != v);
    return v_pick(is_nan, (v_float)(bits | 0x400000), (v_float)rounded);
}
INLINE void v_store_bf16(char *p, v_float v) {
    v_half h = __builtin_convertvector((v_word)v_round_bf16(v) >> 16, v_half);
    memcpy(p, &h, sizeof h);
}

/* 16 values, or the first `count` of them and zeros. */
typedef struct {
    v_float v[GROUP];
} v_group;

INLINE v_group load_group(const char *p, int32_t dtype, int64_t count) {
    char copy[PANEL * 4] = {0};
    if (count < PANEL) {
        memcpy(copy, p, (size_t)(count * size_of(dtype)));
        p = copy;
    }
    v_group g;
    for (int i = 0; i < GROUP; i++)
        g.v[i] = dtype == AMBIDEX_BF16 ? v_load_bf16(p + i * LANES * 2) : v_load((const float *)p + i * LANES);
    return g;
}

INLINE void store_group(char *p, v_group g, int32_t dtype, int64_t count) {
    char copy[PANEL * 4], *whole = count < PANEL ? copy : p;
    for (int i = 0; i < GROUP; i++) {
        if (dtype == AMBIDEX_BF16)
            v_store_bf16(whole + i * LANES * 2, g.v[i]);
        else
            memcpy(whole + i * LANES * 4, &g.v[i], sizeof g.v[i]);
    }
    if (count < PANEL) memcpy(p, copy, (size_t)(count * size_of(dtype)));
}

/* The values that the dtype would keep. */
INLINE v_group round_group(v_group g, int32_t dtype) {
    if (dtype == AMBIDEX_BF16)
        for (int i = 0; i < GROUP; i++) g.v[i] = (v_float)((v_word)v_round_bf16(g.v[i]) & 0xffff0000u);
    return g;
}

INLINE float sum_of_group(v_group g) {
    float x[PANEL];
    memcpy(x, &g, sizeof x);
    for (int width = PANEL / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

#ifdef v_largest
#define max_of_vector v_largest
#else
INLINE float max_of_vector(v_float v) {
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = x[i + width] > x[i] ? x[i + width] : x[i];
    return x[0];
}
#endif

/* e^x within 2 units in the last place: x = n·ln 2 + f, a polynomial of f (Cephes' coefficients), 2^n by the exponent.
 * 0 below -87.3; the largest finite result above 88.3. */
INLINE v_float v_exp(v_float x) {
    const float magic = 12582912.0f;
    v_int vanishes = (v_int)(x < -87.3f);
    v_float bounded = v_pick((v_int)(x > 88.3f), v_all(88.3f), v_pick(vanishes, v_all(0), x));
    v_float shifted = v_fma(bounded, v_all(1.44269504088896341f), v_all(magic));
    v_float n = shifted - magic;
    v_float f = v_fma(n, v_all(-0.693359375f), bounded);
    f = v_fma(n, v_all(2.12194440e-4f), f);
    v_float p = v_all(1.9875691500e-4f);
    p = v_fma(p, f, v_all(1.3981999507e-3f));
    p = v_fma(p, f, v_all(8.3334519073e-3f));
    p = v_fma(p, f, v_all(4.1665795894e-2f));
    p = v_fma(p, f, v_all(1.6666665459e-1f));
    p = v_fma(p, f, v_all(5.0000001201e-1f));
    p = v_fma(p, f * f, f) + 1.0f;
    v_int scale = ((v_int)shifted - (v_int)v_all(magic) + 127) << 23;
    return (v_float)((v_int)(p * (v_float)scale) & ~vanishes);
}

/* tanh x = sign(x)·(1 - 2 / (e^2|x| + 1)). */
INLINE v_float v_tanh(v_float x) {
    v_int sign = (v_int)x & (v_int)v_all(-0.0f);
    v_float magnitude = (v_float)((v_int)x ^ sign);
    v_float t = 1.0f - 2.0f / (v_exp(magnitude + magnitude) + 1.0f);
    return (v_float)((v_int)t ^ sign);
}

/* ---- products ---- */

enum { WHOLE_WORDS, LOW_HALVES, HIGH_HALVES };

/* One k: rows' values times a line of each panel, of which a bf16 takes the low or the high halves. */
INLINE void multiply_line(v_float acc[TILE_ROWS][TILE_PANELS * GROUP], const char *x, const char *line0, const char *line1,
                          const int rows, const int panels, const int part) {
    v_float w[TILE_PANELS * GROUP];
    AMBIDEX_UNROLL for (int i = 0; i < panels * GROUP; i++) {
        v_word raw;
        memcpy(&raw, (i < GROUP ? line0 : line1) + i % GROUP * LANES * 4, sizeof raw);
        w[i] = (v_float)(part == WHOLE_WORDS ? raw : part == LOW_HALVES ? raw << 16 : raw & 0xffff0000u);
    }
    AMBIDEX_UNROLL for (int r = 0; r < rows; r++) {
        float value;
        memcpy(&value, x + r * ROW_BYTES, 4);
        AMBIDEX_UNROLL for (int i = 0; i < panels * GROUP; i++) acc[r][i] = v_fma(v_all(value), w[i], acc[r][i]);
    }
}

/* Rows are float32; the panel is float32 [k][16], or bf16 [k/2][16][2] of which a word's low half is the even k. */
INLINE void float_tile(const tile_args *t, const int rows, const int panels, const int is_bf16) {
    v_float acc[TILE_ROWS][TILE_PANELS * GROUP];
    AMBIDEX_UNROLL for (int r = 0; r < rows; r++)
        AMBIDEX_UNROLL for (int p = 0; p < panels; p++)
            AMBIDEX_UNROLL for (int g = 0; g < GROUP; g++)
                acc[r][p * GROUP + g] =
                    t->accumulate ? v_load(t->c + p * t->c_panel + r * PANEL + g * LANES) : (v_float){0};
    const int64_t block = BLOCK_BYTES / 4;
    const int step = is_bf16 ? 2 : 1;
    for (int64_t k = 0; k < t->num_inputs; k += step * RUN_LINES) {
        const char *a = t->a + k / block * t->a_block + k % block * 4;
        const int64_t offset = k / step * 64;
        const char *b0 = t->b[0] + offset, *b1 = t->b[panels - 1] + offset;
        const char *ahead0 = read_ahead(t, 0, offset, t->num_inputs / step * 64);
        const char *ahead1 = read_ahead(t, panels - 1, offset, t->num_inputs / step * 64);
        const int num_lines = (int)least(RUN_LINES, (t->num_inputs - k) / step);
        for (int line = 0; line < num_lines; line++) {
            __builtin_prefetch(ahead0 + line * 64);
            if (panels > 1) __builtin_prefetch(ahead1 + line * 64);
            const char *x = a + line * step * 4;
            multiply_line(acc, x, b0 + line * 64, b1 + line * 64, rows, panels, is_bf16 ? LOW_HALVES : WHOLE_WORDS);
            if (is_bf16) multiply_line(acc, x + 4, b0 + line * 64, b1 + line * 64, rows, panels, HIGH_HALVES);
        }
    }
    AMBIDEX_UNROLL for (int r = 0; r < rows; r++)
        AMBIDEX_UNROLL for (int p = 0; p < panels; p++)
            AMBIDEX_UNROLL for (int g = 0; g < GROUP; g++)
                v_store(t->c + p * t->c_panel + r * PANEL + g * LANES, acc[r][p * GROUP + g]);
}

#define CASE(tile, r, p, ...) \
    case (r): tile(t, r, p, ##__VA_ARGS__); break;
#define CASES_3(tile, p, ...) CASE(tile, 1, p, ##__VA_ARGS__) CASE(tile, 2, p, ##__VA_ARGS__) CASE(tile, 3, p, ##__VA_ARGS__)
#define CASES_6(tile, p, ...) \
    CASES_3(tile, p, ##__VA_ARGS__) CASE(tile, 4, p, ##__VA_ARGS__) CASE(tile, 5, p, ##__VA_ARGS__) CASE(tile, 6, p, ##__VA_ARGS__)
#define CASES_14(tile, p, ...) \
    CASES_6(tile, p, ##__VA_ARGS__) CASE(tile, 7, p, ##__VA_ARGS__) CASE(tile, 8, p, ##__VA_ARGS__) \
    CASE(tile, 9, p, ##__VA_ARGS__) CASE(tile, 10, p, ##__VA_ARGS__) CASE(tile, 11, p, ##__VA_ARGS__) \
    CASE(tile, 12, p, ##__VA_ARGS__) CASE(tile, 13, p, ##__VA_ARGS__) CASE(tile, 14, p, ##__VA_ARGS__)

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define CASES JOIN(CASES_, TILE_ROWS)

static TARGET __attribute__((unused)) void float_tile_f32_1(const tile_args *t) {
    switch (t->num_rows) { CASES(float_tile, 1, 0) }
}
#ifndef BF16_TILE
static TARGET void float_tile_bf16_1(const tile_args *t) {
    switch (t->num_rows) { CASES(float_tile, 1, 1) }
}
#endif
#if TILE_PANELS > 1
static TARGET void float_tile_f32_2(const tile_args *t) {
    switch (t->num_rows) { CASES(float_tile, 2, 0) }
}
static TARGET void tile_f32(const tile_args *t) { t->num_panels > 1 ? float_tile_f32_2(t) : float_tile_f32_1(t); }
#else
#define tile_f32 float_tile_f32_1
#endif

static TARGET void copy_row(char *a, int64_t a_block, const char *row, int64_t num_inputs, int64_t padded, int32_t dtype,
                            int32_t left_dtype) {
    const int64_t block = BLOCK_BYTES / size_of(left_dtype);
    for (int64_t k0 = 0; k0 < padded; k0 += block, a += a_block) {
        int64_t count = most(0, least(block, num_inputs - k0)), end = least(block, padded - k0);
        if (dtype == left_dtype) {
            memcpy(a, row + k0 * size_of(dtype), (size_t)(count * size_of(dtype)));
        } else {
            for (int64_t k = 0; k < count; k += PANEL)
                store_group(a + k * 4, load_group(row + (k0 + k) * 2, dtype, least(PANEL, count - k)), AMBIDEX_F32,
                            least(PANEL, count - k));
        }
        memset(a + count * size_of(left_dtype), 0, (size_t)((end - count) * size_of(left_dtype)));
    }
}

INLINE v_group silu_times(v_group gate, v_group up) {
    for (int i = 0; i < GROUP; i++) gate.v[i] = gate.v[i] / (1.0f + v_exp(-gate.v[i])) * up.v[i];
    return gate;
}

INLINE v_group add_group(v_group a, v_group b) {
    for (int i = 0; i < GROUP; i++) a.v[i] += b.v[i];
    return a;
}

static TARGET void finish(const finish_args *f) {
    const int64_t n = f->num_columns;
    for (int64_t row = 0; row < f->num_rows; row++) {
        v_group g = load_group((const char *)(f->c + row * PANEL), AMBIDEX_F32, PANEL);
        if (f->bias) g = add_group(g, load_group(f->bias, f->bias_dtype, n));
        if (f->gated) {
            v_group up = load_group((const char *)(f->c + f->c_panel + row * PANEL), AMBIDEX_F32, PANEL);
            if (f->bias_up) up = add_group(up, load_group(f->bias_up, f->bias_dtype, n));
            g = silu_times(g, up);
        }
        if (f->residual) g = add_group(g, load_group(at(f->residual, row * f->residual_stride, f->dtype), f->dtype, n));
        store_group(at_out(f->y, row * f->y_stride, f->out_dtype), g, f->out_dtype, n);
    }
}

/* ---- rows ---- */

INLINE v_group sum_of_inputs(const ambidex_norm_args *args, int64_t row, int64_t k, int64_t count) {
    v_group g = load_group(at(args->x, row * args->x_stride + k, args->dtype), args->dtype, count);
    if (args->residual)
        g = round_group(add_group(g, load_group(at(args->residual, row * args->residual_stride + k, args->dtype),
                                                args->dtype, count)), args->dtype);
    return g;
}

INLINE v_group add_squares(v_group squares, v_group g) {
    for (int i = 0; i < GROUP; i++) squares.v[i] += g.v[i] * g.v[i];
    return squares;
}

INLINE v_group scaled(v_group g, float scale, v_group weight, int32_t dtype) {
    for (int i = 0; i < GROUP; i++) g.v[i] *= scale;
    g = round_group(g, dtype);
    for (int i = 0; i < GROUP; i++) g.v[i] *= weight.v[i];
    return g;
}

static TARGET void norm_row(const ambidex_norm_args *args, int64_t row) {
    const int64_t num_inputs = args->num_inputs;
    v_group squares = {0};
    for (int64_t k = 0; k < num_inputs; k += PANEL) {
        int64_t count = least(PANEL, num_inputs - k);
        v_group g = sum_of_inputs(args, row, k, count);
        squares = add_squares(squares, g);
    }
    const float scale = 1.0f / sqrtf(sum_of_group(squares) / (float)num_inputs + args->eps);
    for (int64_t k = 0; k < num_inputs; k += PANEL) {
        int64_t count = least(PANEL, num_inputs - k);
        v_group g = sum_of_inputs(args, row, k, count);
        v_group weight = load_group(at(args->weight, k, args->weight_dtype), args->weight_dtype, count);
        if (args->sum_out)
            store_group(at_out(args->sum_out, row * args->sum_stride + k, args->dtype), g, args->dtype, count);
        store_group(at_out(args->y, row * args->y_stride + k, args->dtype), scaled(g, scale, weight, args->dtype),
                    args->dtype, count);
    }
}

INLINE void head_norm(float *head, const ambidex_qkv_args *args, const void *weights) {
    const int64_t d = args->head_size;
    v_group squares = {0};
    for (int64_t k = 0; k < d; k += PANEL)
        squares = add_squares(squares, load_group((const char *)(head + k), AMBIDEX_F32, least(PANEL, d - k)));
    const float scale = 1.0f / sqrtf(sum_of_group(squares) / (float)d + args->norm_eps);
    for (int64_t k = 0; k < d; k += PANEL) {
        int64_t count = least(PANEL, d - k);
        v_group weight = load_group(at(weights, k, args->norm_dtype), args->norm_dtype, count);
        v_group g = load_group((const char *)(head + k), AMBIDEX_F32, count);
        g = round_group(scaled(g, scale, weight, args->dtype), args->dtype);
        store_group((char *)(head + k), g, AMBIDEX_F32, count);
    }
}

INLINE void rotate(float *head, const float *cosine, const float *sine, int64_t half) {
    for (int64_t j = 0; j < half; j += PANEL) {
        int64_t count = least(PANEL, half - j);
        v_group c = load_group((const char *)(cosine + j), AMBIDEX_F32, count);
        v_group s = load_group((const char *)(sine + j), AMBIDEX_F32, count);
        v_group low = load_group((const char *)(head + j), AMBIDEX_F32, count);
        v_group high = load_group((const char *)(head + half + j), AMBIDEX_F32, count);
        v_group first, second;
        for (int i = 0; i < GROUP; i++) {
            first.v[i] = low.v[i] * c.v[i] - high.v[i] * s.v[i];
            second.v[i] = high.v[i] * c.v[i] + low.v[i] * s.v[i];
        }
        store_group((char *)(head + j), first, AMBIDEX_F32, count);
        store_group((char *)(head + half + j), second, AMBIDEX_F32, count);
    }
}

INLINE void one_head(const ambidex_qkv_args *args, int64_t token, char *out, const char *in, const void *norm) {
    float head[MAX_HEAD_SIZE];
    const int64_t d = args->head_size, half = args->rotary_size / 2;
    for (int64_t k = 0; k < d; k += PANEL)
        store_group((char *)(head + k), load_group(in + k * size_of(args->dtype), args->dtype, least(PANEL, d - k)),
                    AMBIDEX_F32, least(PANEL, d - k));
    if (norm) head_norm(head, args, norm);
    const int64_t turn = token * args->rotation_stride;
    if (half) rotate(head, args->cos + turn, args->sin + turn, half);
    for (int64_t k = 0; k < d; k += PANEL) {
        int64_t count = least(PANEL, d - k);
        store_group(out + k * size_of(args->dtype), load_group((const char *)(head + k), AMBIDEX_F32, count), args->dtype,
                    count);
    }
}

static TARGET void qkv_token(const ambidex_qkv_args *args, int64_t token) {
    const int64_t d = args->head_size, size = args->page_size, slot = args->slots[token];
    const int64_t page_stride = args->page_stride ? args->page_stride : args->num_kv_heads * size * d;
    const char *in = at(args->qkv, token * args->qkv_stride, args->dtype);
    for (int64_t h = 0; h < args->num_heads; h++, in += d * size_of(args->dtype))
        one_head(args, token, at_out(args->q, token * args->q_stride + h * d, args->dtype), in, args->q_norm);
    if (slot < 0) return;
    const int64_t first = slot / size * page_stride + slot % size * d;
    for (int64_t h = 0; h < args->num_kv_heads; h++, in += d * size_of(args->dtype))
        one_head(args, token, at_out(args->k_pages, first + h * size * d, args->dtype), in, args->k_norm);
    for (int64_t h = 0; h < args->num_kv_heads; h++, in += d * size_of(args->dtype))
        memcpy(at_out(args->v_pages, first + h * size * d, args->dtype), in, (size_t)(d * size_of(args->dtype)));
}

static TARGET int64_t argmax_row(const float *row, int64_t num_columns) {
    v_float best = v_all(-INFINITY);
    int64_t whole = num_columns / LANES * LANES;
    for (int64_t n = 0; n < whole; n += LANES) {
        v_float v = v_load(row + n);
        best = v_pick((v_int)(v > best), v, best);
    }
    float largest = max_of_vector(best);
    for (int64_t n = whole; n < num_columns; n++) largest = row[n] > largest ? row[n] : largest;
    for (int64_t n = 0; n < num_columns; n++)
        if (row[n] == largest) return n;
    return 0;
}

static TARGET uint64_t read_bytes(const char *buffer, int64_t num_bytes) {
    v_word sums[8] = {0}, words;
    int64_t whole = num_bytes / (8 * (int64_t)sizeof words) * (8 * (int64_t)sizeof words);
    for (int64_t offset = 0; offset < whole; offset += 8 * (int64_t)sizeof words) {
        for (int line = 0; line < 8 * (int)sizeof words; line += 64) __builtin_prefetch(buffer + offset + 2048 + line);
        for (int i = 0; i < 8; i++) {
            memcpy(&words, buffer + offset + i * (int64_t)sizeof words, sizeof words);
            sums[i] ^= words;
        }
    }
    uint64_t result = 0, word;
    const char *bytes = (const char *)sums;
    for (size_t i = 0; i < sizeof sums; i += 8) {
        memcpy(&word, bytes + i, 8);
        result ^= word;
    }
    for (int64_t offset = whole; offset + 8 <= num_bytes; offset += 8) {
        memcpy(&word, buffer + offset, 8);
        result ^= word;
    }
    return result;
}

/* ---- attention ---- */

/* 64 rows of keys become four panels: the right operand of the scores. */
static TARGET void pack_keys_float(char *panels, const char *const *rows, int64_t head_size, int32_t dtype,
                                   int32_t left_dtype) {
    (void)left_dtype;
    float *out = (float *)panels;
    for (int64_t panel = 0; panel < KEY_BLOCK / PANEL; panel++, out += head_size * PANEL)
        for (int64_t key = 0; key < PANEL; key++) {
            const char *row = rows[panel * PANEL + key];
            for (int64_t k = 0; k < head_size; k += PANEL) {
                int64_t count = least(PANEL, head_size - k);
                v_group g = load_group(row + k * size_of(dtype), dtype, count);
                for (int64_t i = 0; i < count; i++) out[(k + i) * PANEL + key] = ((const float *)&g)[i];
            }
        }
}

/* 64 rows of values become panels of 16 columns: the right operand of the output. */
static TARGET void pack_values_float(char *panels, const char *const *rows, int64_t head_size, int32_t dtype,
                                     int32_t left_dtype) {
    (void)left_dtype;
    for (int64_t key = 0; key < KEY_BLOCK; key++)
        for (int64_t k = 0; k < head_size; k += PANEL)
            store_group(panels + ((k / PANEL * KEY_BLOCK + key) * PANEL) * 4,
                        load_group(rows[key] + k * size_of(dtype), dtype, least(PANEL, head_size - k)), AMBIDEX_F32, PANEL);
}

INLINE v_float masked_scores(const softmax_args *s, int64_t row, int64_t i, int64_t first, int64_t end) {
    const int64_t key = i * LANES;
    v_float x = v_load(s->scores + key / PANEL * s->score_panel + row * PANEL + key % PANEL) * s->scale;
    if (s->softcap > 0) x = v_tanh(x / s->softcap) * s->softcap;
    if (first > 0 || end < KEY_BLOCK) {
        v_int place;
        for (int lane = 0; lane < LANES; lane++) place[lane] = (int32_t)key + lane;
        x = v_pick((v_int)(place >= (int32_t)first) & (v_int)(place < (int32_t)end), x, v_all(-INFINITY));
    }
    return x;
}

#ifndef STORE_WEIGHTS_BF16
#define STORE_WEIGHTS_BF16 v_store_bf16
#endif

INLINE void store_weights(char *weights, v_float v, int64_t key, int32_t left_dtype) {
    if (left_dtype == AMBIDEX_BF16)
        STORE_WEIGHTS_BF16(weights + key * 2, v);
    else
        v_store((float *)weights + key, v);
}

/* One row's share of the online softmax: its maximum, sum and output are carried from block to block. */
INLINE void softmax_row(const softmax_args *s, int64_t row) {
    enum { VECTORS = KEY_BLOCK / LANES };
    const int64_t first = most(0, s->first_key[row]), end = least(KEY_BLOCK, s->end_key[row]);
    char *weights = s->weights + row * ROW_BYTES;
    if (first >= end) {
        memset(weights, 0, (size_t)(KEY_BLOCK * size_of(s->left_dtype)));
        return;
    }
    v_float x[VECTORS], top = v_all(s->max[row]);
    for (int i = 0; i < VECTORS; i++) {
        x[i] = masked_scores(s, row, i, first, end);
        top = v_max(x[i], top);
    }
    const float max = max_of_vector(top), old = s->max[row];
    v_group sum = load_group((const char *)(s->sum + row * PANEL), AMBIDEX_F32, PANEL);
    if (max != old) {
        v_group change;
        for (int i = 0; i < GROUP; i++) change.v[i] = v_exp(v_all(old - max));
        for (int i = 0; i < GROUP; i++) sum.v[i] *= change.v[i];
        for (int64_t panel = 0; panel < s->num_out_panels; panel++)
            for (int i = 0; i < GROUP; i++) {
                float *o = s->out + panel * s->out_panel + row * PANEL + i * LANES;
                v_store(o, v_load(o) * change.v[i]);
            }
        s->max[row] = max;
    }
    for (int i = 0; i < VECTORS; i++) {
        v_float p = v_exp(x[i] - max);
        sum.v[i % GROUP] += p;
        store_weights(weights, p, i * LANES, s->left_dtype);
    }
    store_group((char *)(s->sum + row * PANEL), sum, AMBIDEX_F32, PANEL);
}

static TARGET void softmax(const softmax_args *s) {
    for (int64_t row = 0; row < s->num_rows; row++) softmax_row(s, row);
}

static TARGET void store_attention(char *out, const float *o, int64_t o_panel, float *sum, int64_t head_size,
                                   int32_t dtype) {
    const float total = sum_of_group(load_group((const char *)sum, AMBIDEX_F32, PANEL));
    const float scale = total > 0 ? 1.0f / total : 0.0f;
    for (int64_t k = 0; k < head_size; k += PANEL, o += o_panel) {
        v_group g = load_group((const char *)o, AMBIDEX_F32, PANEL);
        for (int i = 0; i < GROUP; i++) g.v[i] *= scale;
        store_group(out + k * size_of(dtype), g, dtype, least(PANEL, head_size - k));
    }
}

#ifdef BF16_TILE
#define BF16_PRODUCT {.max_rows = BF16_ROWS, .max_panels = BF16_PANELS, .left_dtype = AMBIDEX_BF16, .tile = BF16_TILE}
#else
#define BF16_PRODUCT {.max_rows = TILE_ROWS, .max_panels = 1, .left_dtype = AMBIDEX_F32, .tile = float_tile_bf16_1}
#define PACK_KEYS pack_keys_float
#define PACK_VALUES pack_values_float
#endif

#define KERNEL_FIELDS(bf16_product) \
    {.products = {[AMBIDEX_F32] = {.max_rows = TILE_ROWS, .max_panels = TILE_PANELS, .left_dtype = AMBIDEX_F32, \
                                   .tile = tile_f32}, \
                  [AMBIDEX_BF16] = bf16_product}, \
     .copy_row = copy_row, .finish = finish, .norm_row = norm_row, .qkv_token = qkv_token, .pack_keys = PACK_KEYS, \
     .pack_values = PACK_VALUES, .softmax = softmax, .store_attention = store_attention, .argmax_row = argmax_row, \
     .read = read_bytes}
