/* What sampling asks of a row of logits; part of vector_kernels.h. NaN is never the larger. */

static TARGET float max_of_row(const float *x, int64_t count) {
    v_float best[4];
    for (int i = 0; i < 4; i++) best[i] = v_all(-INFINITY);
    int64_t n = 0;
    for (; n + 4 * LANES <= count; n += 4 * LANES)
        for (int i = 0; i < 4; i++) {
            v_float v = v_load(x + n + i * LANES);
            best[i] = v_pick((v_int)(v > best[i]), v, best[i]);
        }
    for (int i = 1; i < 4; i++) best[0] = v_pick((v_int)(best[i] > best[0]), best[i], best[0]);
    float largest = max_of_vector(best[0]);
    for (; n < count; n++) largest = x[n] > largest ? x[n] : largest;
    return largest;
}

/* Σ e^(scale·x - shift), where shift is no infinity; NaN where a value is. */
static TARGET float exp_sum(const float *x, int64_t count, float scale, float shift) {
    v_group sums = {0};
    int64_t n = 0;
    for (; n + PANEL <= count; n += PANEL)
        for (int i = 0; i < GROUP; i++)
            sums.v[i] += v_exp(v_fma(v_load(x + n + i * LANES), v_all(scale), v_all(-shift)));
    float rest[PANEL];
    for (int i = 0; i < PANEL; i++) rest[i] = n + i < count ? x[n + i] : -INFINITY;
    for (int i = 0; i < GROUP; i++)
        sums.v[i] += v_exp(v_fma(v_load(rest + i * LANES), v_all(scale), v_all(-shift)));
    return sum_of_group(sums);
}

/* The first column from `begin` on whose value is above the limit; `end` where none is. */
static TARGET int64_t first_above(const float *x, int64_t begin, int64_t end, float limit) {
    for (; begin + 4 * LANES <= end; begin += 4 * LANES) {
        v_int above = {0};
        for (int i = 0; i < 4; i++) above |= (v_int)(v_load(x + begin + i * LANES) > limit);
        if (has_any(above)) break;
    }
    while (begin < end && !(x[begin] > limit)) begin++;
    return begin;
}

/* The row with -inf where the bit of a column (n % 32 of word n / 32) is 0. */
static TARGET void mask_row(float *out, const float *x, const int32_t *words, int64_t count) {
    v_word bits;
    for (int i = 0; i < LANES; i++) bits[i] = 1u << i;
    int64_t n = 0;
    for (; n + LANES <= count; n += LANES) {
        const uint32_t word = (uint32_t)words[n / 32] >> n % 32;
        v_store(out + n, v_pick((v_int)((word & bits) != 0), v_load(x + n), v_all(-INFINITY)));
    }
    for (; n < count; n++) out[n] = (uint32_t)words[n / 32] >> n % 32 & 1 ? x[n] : -INFINITY;
}
