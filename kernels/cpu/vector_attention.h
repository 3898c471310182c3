/* Packing of keys and values, and the online softmax; part of vector_kernels.h. */

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
                        load_group(rows[key] + k * size_of(dtype), dtype, least(PANEL, head_size - k)), AMBIDEX_F32,
                        PANEL);
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

INLINE void store_weights(char *weights, v_float v, int64_t key, int32_t left_dtype) {
    if (left_dtype == AMBIDEX_BF16)
        v_store_bf16(weights + key * 2, v);
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
