/* The draw of a token: argmax_v z_v + g_v over what the filters leave, z = logits / temperature, with Gumbel noise g from
 * Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) under (seed, position, v).
 *
 * Noise is at most MAX_NOISE, so a token that lies further below the best sum gets none. Filters cut the order of z
 * (falling, equals by token) at one place: a histogram of how far values lie below the largest says which of them have to
 * be sorted to find it. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "internal.h"

#define MAX_NOISE 16.7f /* above -log(-log(1 - 2^-24)) */

enum {
    NUM_BUCKETS = 4096,
    BUCKETS_A_UNIT = 64, /* the last bucket holds what lies 64 below the largest, or further */
    FIRST_LOOK = 1024,   /* of the largest, where top-p has to find its end */
    FEW = 32,            /* that are sorted by insertion */
    MASS_COLUMNS = 4096  /* whose sum is float32 */
};

typedef struct {
    int64_t group; /* of four tokens, -1: none yet */
    uint32_t words[4];
} noise_words;

static void philox(uint32_t words[4], int64_t group, int64_t seed, int64_t position) {
    uint32_t c0 = (uint32_t)group, c1 = (uint32_t)position, c2 = (uint32_t)((uint64_t)position >> 32), c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

static uint32_t random_word(noise_words *known, const draw_args *draw, int64_t token) {
    if (known->group != token / 4) {
        known->group = token / 4;
        philox(known->words, known->group, draw->seed, draw->position);
    }
    return known->words[token % 4];
}

/* -log(-log u), u = (word / 2^9 + 0.5) / 2^23: never 0 or 1. */
static float noise(uint32_t word) { return -logf(-logf(((float)(word >> 9) + 0.5f) * 0x1p-23f)); }

/* No less than the noise, without a logarithm: -log u ≥ 1 - u ≥ 2^-n. */
static double noise_bound(uint32_t word) {
    const uint32_t rest = 0x7fffff - (word >> 9);
    return 0.693147181 * (rest ? __builtin_clz(rest) - 8 : 24);
}

static float scaled(const draw_args *draw, int64_t token) { return draw->logits[token] / draw->temperature; }

/* A logit that is surely below every one whose scaled value is at least z, whatever rounding did. */
static float below_scaled(const draw_args *draw, double z) {
    const double finite = z < FLT_MAX ? z : FLT_MAX;
    return nextafterf((float)((finite - fabs(finite) * 0x1p-20 - 1e-6) * draw->temperature), -INFINITY);
}

typedef struct {
    float largest, least; /* of the scaled values that min-p leaves */
    int32_t counts[NUM_BUCKETS];
} histogram;

static inline int32_t bucket_of(float z, float largest) {
    const float place = (largest - z) * BUCKETS_A_UNIT;
    return place < NUM_BUCKETS - 1 ? (int32_t)place : NUM_BUCKETS - 1; /* NaN, of equal infinities: the last */
}

/* -inf was masked: it belongs to nothing. */
static int is_left(const histogram *h, float z) { return z >= h->least && z > -INFINITY; }

/* Returns how many values min-p leaves. */
static int64_t fill(histogram *h, const draw_args *draw) {
    int64_t total = 0;
    memset(h->counts, 0, sizeof h->counts);
    for (int64_t n = 0; n < draw->num_columns; n++) {
        const float z = scaled(draw, n);
        if (!is_left(h, z)) continue;
        h->counts[bucket_of(z, h->largest)]++;
        total++;
    }
    return total;
}

static int precedes(candidate a, candidate b) { return a.value > b.value || (a.value == b.value && a.token < b.token); }

static int compare(const void *a, const void *b) {
    const candidate x = *(const candidate *)a, y = *(const candidate *)b;
    return precedes(y, x) - precedes(x, y);
}

static void sort(candidate *found, int64_t count) {
    if (count > FEW) {
        qsort(found, (size_t)count, sizeof *found, compare);
        return;
    }
    for (int64_t i = 1; i < count; i++) {
        const candidate next = found[i];
        int64_t place = i;
        for (; place > 0 && precedes(next, found[place - 1]); place--) found[place] = found[place - 1];
        found[place] = next;
    }
}

/* The largest values that are left, in order: at least `look` of them, whole buckets. Returns how many. */
static int64_t gather(candidate *found, const histogram *h, const kernel_set *kernels, const draw_args *draw,
                      int64_t look) {
    int32_t ends[NUM_BUCKETS], count = 0;
    int32_t last = -1;
    while (count < look) {
        ends[++last] = count;
        count += h->counts[last];
    }
    const int is_all = last == NUM_BUCKETS - 1;
    const double least = is_all ? h->least : h->largest - (last + 1.0) / BUCKETS_A_UNIT;
    const float limit = below_scaled(draw, least);
    for (int64_t n = 0; (n = kernels->first_above(draw->logits, n, draw->num_columns, limit)) < draw->num_columns; n++) {
        const float z = scaled(draw, n);
        const int32_t bucket = bucket_of(z, h->largest);
        if (is_left(h, z) && bucket <= last) found[ends[bucket]++] = (candidate){z, (int32_t)n};
    }
    for (int32_t bucket = 0; bucket <= last; bucket++)
        sort(found + ends[bucket] - h->counts[bucket], h->counts[bucket]);
    return count;
}

/* Σ e^(z - largest) over the whole row. */
static double mass_of_row(const kernel_set *kernels, const draw_args *draw, float largest) {
    double mass = 0;
    for (int64_t n = 0; n < draw->num_columns; n += MASS_COLUMNS)
        mass += kernels->exp_sum(draw->logits + n, least(MASS_COLUMNS, draw->num_columns - n), 1 / draw->temperature,
                                 largest);
    return mass;
}

/* How many of the first `count` top-p keeps: those before which less than its share of the mass lies, and the first. */
static int64_t reach(const candidate *found, int64_t count, float largest, double share) {
    double before = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i && before >= share) return i;
        before += expf(found[i].value - largest);
    }
    return count;
}

/* The last that the filters keep, in falling order. 0: no memory. */
static int find_last(candidate *last, const kernel_set *kernels, const draw_args *draw) {
    candidate *found = ambidex_scratch(ROOM_WORKER, draw->num_columns * (int64_t)sizeof *found);
    if (!found) return 0;
    histogram h = {.largest = scaled(draw, draw->largest), .least = -INFINITY};
    if (draw->min_p > 0) h.least = h.largest + logf(draw->min_p);
    *last = (candidate){h.least, INT32_MAX};
    const int64_t total = fill(&h, draw), limit = draw->top_k > 0 ? least(draw->top_k, total) : total;
    const int is_cut = draw->top_p < 1, is_bounded = limit < total || draw->min_p > 0;
    if (!total || (limit == total && !is_cut)) return 1;
    double mass = is_cut && !is_bounded ? mass_of_row(kernels, draw, h.largest) : 0;
    for (int64_t look = is_bounded ? limit : least(FIRST_LOOK, limit);; look = least(8 * look, limit)) {
        const int64_t count = least(gather(found, &h, kernels, draw, look), limit);
        for (int64_t i = 0; is_cut && is_bounded && i < count; i++) mass += expf(found[i].value - h.largest);
        const int64_t kept = is_cut ? reach(found, count, h.largest, draw->top_p * mass) : count;
        *last = found[kept - 1];
        if (kept < count || count == limit) return 1;
    }
}

int64_t ambidex_draw(const kernel_set *kernels, const draw_args *draw) {
    candidate last = {-INFINITY, INT32_MAX};
    if ((draw->top_k > 0 || draw->top_p < 1 || draw->min_p > 0) && !find_last(&last, kernels, draw)) return -1;
    noise_words known = {.group = -1};
    int64_t token = draw->largest;
    float best = scaled(draw, token) + noise(random_word(&known, draw, token));
    for (int64_t n = 0;; n++) {
        const float within = best - MAX_NOISE, least_z = within > last.value ? within : last.value;
        n = kernels->first_above(draw->logits, n, draw->num_columns, below_scaled(draw, least_z));
        if (n >= draw->num_columns) return token;
        const candidate here = {scaled(draw, n), (int32_t)n};
        if (!(here.value >= least_z) || precedes(last, here)) continue;
        const uint32_t word = random_word(&known, draw, n);
        if (here.value + noise_bound(word) < best - fabs((double)best) * 0x1p-20 - 1e-3) continue;
        const float sum = here.value + noise(word);
        if (sum > best || (sum == best && n < token)) best = sum, token = n;
    }
}
