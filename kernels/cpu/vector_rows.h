/* Norms, rotary embedding and reading, row by row; part of vector_kernels.h. */

INLINE v_group sum_of_inputs(const ambidex_norm_args *args, int64_t row, int64_t k, int64_t count) {
    v_group g = load_group(at(args->x, row * args->x_stride + k, args->dtype), args->dtype, count);
    if (args->residual)
        g = round_group(add_group(g, load_group(at(args->residual, row * args->residual_stride + k, args->dtype),
                                                args->dtype, count)),
                        args->dtype);
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
        store_group(out + k * size_of(args->dtype), load_group((const char *)(head + k), AMBIDEX_F32, count),
                    args->dtype, count);
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
