/* Vectors of one instruction set and their elementary functions; what the including source defines stands in
 * vector_kernels.h. */
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
#ifndef v_store_bf16
INLINE void v_store_bf16(char *p, v_float v) {
    v_half h = __builtin_convertvector((v_word)v_round_bf16(v) >> 16, v_half);
    memcpy(p, &h, sizeof h);
}
#endif

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

#ifdef v_has_any
#define has_any v_has_any
#else
INLINE int has_any(v_int mask) {
    int64_t words[LANES / 2], any = 0;
    memcpy(words, &mask, sizeof mask);
    for (int i = 0; i < LANES / 2; i++) any |= words[i];
    return any != 0;
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
