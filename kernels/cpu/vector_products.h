/* Products of float32 rows, and what becomes of their sums; part of vector_kernels.h. */

enum { WHOLE_WORDS, LOW_HALVES, HIGH_HALVES };

/* One k: rows' values times a line of each panel, of which a bf16 takes the low or the high halves. */
INLINE void multiply_line(v_float acc[TILE_ROWS][TILE_PANELS * GROUP], const char *x, const char *line0,
                          const char *line1, const int rows, const int panels, const int part) {
    v_float w[TILE_PANELS * GROUP];
    AMBIDEX_UNROLL
    for (int i = 0; i < panels * GROUP; i++) {
        v_word raw;
        memcpy(&raw, (i < GROUP ? line0 : line1) + i % GROUP * LANES * 4, sizeof raw);
        w[i] = (v_float)(part == WHOLE_WORDS ? raw : part == LOW_HALVES ? raw << 16 : raw & 0xffff0000u);
    }
    AMBIDEX_UNROLL
    for (int r = 0; r < rows; r++) {
        float value;
        memcpy(&value, x + r * ROW_BYTES, 4);
        AMBIDEX_UNROLL
        for (int i = 0; i < panels * GROUP; i++) acc[r][i] = v_fma(v_all(value), w[i], acc[r][i]);
    }
}

/* Rows are float32; the panel is float32 [k][16], or bf16 [k/2][16][2] of which a word's low half is the even k. */
INLINE void float_tile(const tile_args *t, const int rows, const int panels, const int is_bf16) {
    v_float acc[TILE_ROWS][TILE_PANELS * GROUP];
    AMBIDEX_UNROLL
    for (int r = 0; r < rows; r++) AMBIDEX_UNROLL
    for (int p = 0; p < panels; p++) AMBIDEX_UNROLL
    for (int g = 0; g < GROUP; g++)
        acc[r][p * GROUP + g] = t->accumulate ? v_load(t->c + p * t->c_panel + r * PANEL + g * LANES) : (v_float){0};
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
    AMBIDEX_UNROLL
    for (int r = 0; r < rows; r++) AMBIDEX_UNROLL
    for (int p = 0; p < panels; p++) AMBIDEX_UNROLL
    for (int g = 0; g < GROUP; g++) v_store(t->c + p * t->c_panel + r * PANEL + g * LANES, acc[r][p * GROUP + g]);
}

#define CASE(tile, r, p, ...) \
    case (r): tile(t, r, p, ##__VA_ARGS__); break;
#define CASES_3(tile, p, ...) \
    CASE(tile, 1, p, ##__VA_ARGS__) CASE(tile, 2, p, ##__VA_ARGS__) CASE(tile, 3, p, ##__VA_ARGS__)
#define CASES_6(tile, p, ...) \
    CASES_3(tile, p, ##__VA_ARGS__) \
    CASE(tile, 4, p, ##__VA_ARGS__) CASE(tile, 5, p, ##__VA_ARGS__) CASE(tile, 6, p, ##__VA_ARGS__)
#define CASES_14(tile, p, ...) \
    CASES_6(tile, p, ##__VA_ARGS__) \
    CASE(tile, 7, p, ##__VA_ARGS__) CASE(tile, 8, p, ##__VA_ARGS__) CASE(tile, 9, p, ##__VA_ARGS__) \
        CASE(tile, 10, p, ##__VA_ARGS__) CASE(tile, 11, p, ##__VA_ARGS__) CASE(tile, 12, p, ##__VA_ARGS__) \
            CASE(tile, 13, p, ##__VA_ARGS__) CASE(tile, 14, p, ##__VA_ARGS__)

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

static TARGET void copy_row(char *a, int64_t a_block, const char *row, int64_t num_inputs, int64_t padded,
                            int32_t dtype, int32_t left_dtype) {
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

INLINE void finish_rows(const finish_args *f, const int64_t n, const int32_t out_dtype, const int is_gated) {
    const v_group none = {0};
    const v_group bias = f->bias ? load_group(f->bias, f->bias_dtype, n) : none;
    const v_group bias_up = f->bias_up ? load_group(f->bias_up, f->bias_dtype, n) : none;
    for (int64_t row = 0; row < f->num_rows; row++) {
        v_group g = load_group((const char *)(f->c + row * PANEL), AMBIDEX_F32, PANEL);
        g = add_group(g, bias);
        if (is_gated)
            g = silu_times(
                g, add_group(load_group((const char *)(f->c + f->c_panel + row * PANEL), AMBIDEX_F32, PANEL), bias_up));
        if (f->residual) g = add_group(g, load_group(at(f->residual, row * f->residual_stride, f->dtype), f->dtype, n));
        store_group(at_out(f->y, row * f->y_stride, out_dtype), g, out_dtype, n);
    }
}

static TARGET void finish(const finish_args *f) {
    if (f->num_columns < PANEL)
        finish_rows(f, f->num_columns, f->out_dtype, f->gated);
    else if (f->gated)
        finish_rows(f, PANEL, f->out_dtype, 1);
    else if (f->out_dtype == AMBIDEX_BF16)
        finish_rows(f, PANEL, AMBIDEX_BF16, 0);
    else
        finish_rows(f, PANEL, AMBIDEX_F32, 0);
}
