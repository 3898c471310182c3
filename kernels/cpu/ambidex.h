/* The CPU kernels of Ambidex: a plain C interface, called through ctypes (library.py).
 *
 * Letters: M rows (tokens) of a product, N outputs, K inputs; T tokens, Hq query heads, Hkv key/value heads,
 * D head size, R rotary size, B requests, I width of the gated product.
 *
 * Conventions
 *   - Activations are row-major with a row stride counted in ELEMENTS; the last dimension is contiguous.
 *   - dtype is AMBIDEX_F32 or AMBIDEX_BF16. Sums are float32. Rounding to bf16 is to nearest, ties to even; the levels
 *     AVX512_BF16 and AMX take subnormals (below 1.2e-38) for zero when they multiply or round bf16.
 *   - level says which instructions a call may use; the caller (the profile) chooses, nothing is detected here.
 *     The float32 kernels of AMBIDEX_AVX512_BF16 and AMBIDEX_AMX are AVX-512 FMA; there are no float32 tiles.
 *   - For one level, each output element has the same bits whatever M or T is, wherever its row lies, whatever else
 *     is in the batch and however many threads work (batch-invariant). Levels differ from one another.
 *   - A function returns 0, or a negative ambidex_status for bad arguments, before anything is written.
 *     Zero rows, tokens or requests are fine and write nothing.
 *   - Pointers need the alignment of their element; packed weights need 64 bytes.
 *   - Outputs must not overlap inputs unless a function says so.
 *   - Calls from several threads at once are safe; each calling thread keeps one scratch buffer (see release_scratch).
 */
#ifndef AMBIDEX_H
#define AMBIDEX_H

#include <stdint.h>

#define AMBIDEX_INTERFACE_VERSION 3
#define AMBIDEX_API __attribute__((visibility("default")))

typedef enum {
    AMBIDEX_GENERIC = 0,     /* any machine: 128-bit vectors */
    AMBIDEX_AVX2 = 1,        /* AVX2, FMA, F16C */
    AMBIDEX_AVX512_BF16 = 2, /* AVX-512 F, BW, VL, DQ, BF16 */
    AMBIDEX_AMX = 3          /* the above, AMX-TILE and AMX-BF16 */
} ambidex_level;

typedef enum { AMBIDEX_F32 = 0, AMBIDEX_BF16 = 1 } ambidex_dtype;

typedef enum {
    AMBIDEX_OK = 0,
    AMBIDEX_BAD_LEVEL = -1,   /* unknown, or not compiled into this library */
    AMBIDEX_BAD_DTYPE = -2,   /* unknown, or a combination that the function does not serve */
    AMBIDEX_BAD_SHAPE = -3,   /* a size, stride or multiple that the function forbids */
    AMBIDEX_BAD_POINTER = -4, /* a required pointer is null, or packed weights are not 64-byte aligned */
    AMBIDEX_NO_MEMORY = -5    /* the scratch buffer could not grow */
} ambidex_status;

/* ---- the machine and the threads --------------------------------------------------------------------------------- */

AMBIDEX_API int32_t ambidex_interface_version(void);

/* The best level that both this CPU (with its operating system) and this library support. For AMX it asks Linux for
 * permission to use the tiles (arch_prctl, once a process). Call it before the first call at AMBIDEX_AMX. */
AMBIDEX_API int32_t ambidex_cpu_level(void);

/* How many threads work on a call, the calling one included; 1 until it is said, and always where the system has no
 * futex. The others are the library's own: they start with the first call that has work for them, spin for some
 * microseconds after each and then sleep, and start anew in a forked child. Calls at the same time: one of them has the
 * pool, the others work alone. */
AMBIDEX_API void ambidex_set_num_threads(int32_t num_threads);
AMBIDEX_API int32_t ambidex_num_threads(void);

/* Frees the calling thread's scratch buffer (it grows to what the largest call needed: about M·K·4 bytes). */
AMBIDEX_API void ambidex_release_scratch(void);

/* Reads num_bytes (a multiple of 64) once with all threads and returns their xor: the denominator of a roofline. */
AMBIDEX_API uint64_t ambidex_read_bandwidth(int32_t level, const void *buffer, int64_t num_bytes);

/* Asks for huge pages (madvise) behind a buffer; call it after allocating and before writing. 0, or -errno. Only whole
 * 2 MiB pages become huge: put small weights into one arena. A weight of 1.6 MB behind 4 KiB pages is read at about half
 * the speed. */
AMBIDEX_API int32_t ambidex_advise_huge_pages(void *buffer, int64_t num_bytes);

/* ---- packed weights: panel16 ------------------------------------------------------------------------------------- *
 * W[N, K] is stored in panels of 16 rows; rows beyond N and inputs beyond K are zero.
 *   bf16     [ceil(N/16)][Kp/2][16][2]   Kp = K rounded up to a multiple of 32 (operand order of vdpbf16ps and of AMX)
 *   float32  [ceil(N/16)][K][16]
 * Panel p begins at byte p·16·Kp·2 (bf16) or p·16·K·4 (float32): a range of rows that begins at a multiple of 16 is a
 * weight of its own. */

AMBIDEX_API int64_t ambidex_packed_bytes(int64_t num_outputs, int64_t num_inputs, int32_t dtype);

/* Packs rows [row0, row0 + num_rows) of W into the panels of the whole weight. row0 is a multiple of 16, num_rows too
 * except for the last rows of W (a partial last panel is padded with zeros). Same dtype on both sides. rows points to
 * row row0. Uses the calling thread only, so that a loader may call it from its own threads. */
AMBIDEX_API int32_t ambidex_pack(void *panels, const void *rows, int64_t row_stride, int64_t row0, int64_t num_rows,
                                 int64_t num_inputs, int32_t dtype);

/* out[t, :] = W[ids[t], :] (embedding). An id outside [0, N) is AMBIDEX_BAD_SHAPE and nothing is written. */
typedef struct {
    int32_t dtype;
    int32_t reserved;    /* 0 */
    int64_t num_outputs; /* N */
    int64_t num_inputs;  /* K */
    const void *panels;
    const int64_t *ids; /* [T] */
    int64_t num_ids;    /* T */
    void *out;          /* [T, K] */
    int64_t out_stride;
} ambidex_unpack_args;

AMBIDEX_API int32_t ambidex_unpack_rows(const ambidex_unpack_args *args);

/* ---- linear ------------------------------------------------------------------------------------------------------ *
 * y[M, N] = norm(x)[M, K] · Wᵀ + bias[N] + residual[M, N], the sum in float32, rounded once.
 *   norm (optional): HF's RMSNorm, h = round(x · rsqrt(mean(x²) + eps)), norm(x) = round(norm_weight · h), both
 *          rounded to dtype.
 *   gated: W holds the I rows of the gate, then the I rows of `up`; N = 2·I, I a multiple of 16;
 *          y[M, I] = silu(gate) · up in float32, rounded once, silu(g) = g / (1 + exp(-g)); bias is [2·I];
 *          residual is then not served.
 *   dtype is that of x, weight and residual. out_dtype: dtype, or float32 where dtype is bf16.
 *   y may be the residual itself (same pointer and stride); y must not overlap x. */
typedef struct {
    int32_t level;
    int32_t dtype;
    int32_t out_dtype;
    int32_t gated;       /* 0 or 1 */
    int64_t num_rows;    /* M */
    int64_t num_outputs; /* N: rows of W, 2·I where gated */
    int64_t num_inputs;  /* K */
    const void *x;       /* [M, K] */
    int64_t x_stride;
    const void *weight; /* panel16, 64-byte aligned */
    void *y;            /* [M, N], or [M, I] where gated */
    int64_t y_stride;
    const void *residual; /* [M, N] of dtype, or null */
    int64_t residual_stride;
    const void *bias;        /* [N] of bias_dtype, or null */
    const void *norm_weight; /* [K] of norm_dtype, or null for no norm */
    int32_t bias_dtype;
    int32_t norm_dtype;
    float norm_eps;
    int32_t reserved; /* 0 */
} ambidex_linear_args;

AMBIDEX_API int32_t ambidex_linear(const ambidex_linear_args *args);

/* ---- norms ------------------------------------------------------------------------------------------------------- *
 * sum = round(x + residual) where a residual is given, else x;
 * y = round(weight · round(sum · rsqrt(mean(sum²) + eps))).
 * sum is written to sum_out where that is not null (it may be the residual or x itself: same pointer and stride).
 * y may be x itself. */
typedef struct {
    int32_t level;
    int32_t dtype;      /* of x, residual, sum_out and y */
    int64_t num_rows;   /* M */
    int64_t num_inputs; /* K */
    const void *x;      /* [M, K] */
    int64_t x_stride;
    const void *residual; /* [M, K] or null */
    int64_t residual_stride;
    void *sum_out; /* [M, K] or null */
    int64_t sum_stride;
    void *y; /* [M, K] */
    int64_t y_stride;
    const void *weight; /* [K] of weight_dtype */
    int32_t weight_dtype;
    float eps;
} ambidex_norm_args;

AMBIDEX_API int32_t ambidex_rms_norm(const ambidex_norm_args *args);

/* ---- queries, keys and values ------------------------------------------------------------------------------------ *
 * A row of qkv holds Hq query heads, then Hkv key heads, then Hkv value heads, each of D elements.
 *   q, k: RMSNorm over D (where weights are given; rounded as above), then rotary embedding of the first R elements, in
 *   halves (HF, NeoX), in float32, rounded once. v is copied. For j < R/2:
 *     out[j] = x[j]·cos[j] - x[j+R/2]·sin[j],  out[j+R/2] = x[j+R/2]·cos[j] + x[j]·sin[j]
 *   q goes to [T, Hq, D]; k and v to the pages at slots[t] = page·page_size + offset; slot -1 stores nothing.
 * Planes: element (page, h, offset, d) lies at page·page_stride + (h·page_size + offset)·D + d. */
typedef struct {
    int32_t level;
    int32_t dtype;        /* of qkv, q and the planes */
    int64_t num_tokens;   /* T */
    int64_t num_heads;    /* Hq */
    int64_t num_kv_heads; /* Hkv */
    int64_t head_size;    /* D */
    int64_t rotary_size;  /* R: even, 0 ≤ R ≤ D */
    const void *qkv;      /* [T, (Hq + 2·Hkv)·D] */
    int64_t qkv_stride;
    const void *q_norm; /* [D] of norm_dtype, or null */
    const void *k_norm; /* [D] of norm_dtype, or null */
    int32_t norm_dtype;
    float norm_eps;
    const float *cos;        /* [T, R/2] */
    const float *sin;        /* [T, R/2] */
    int64_t rotation_stride; /* elements from token to token of cos and of sin, ≥ R/2 (R where a row holds both) */
    void *q;                 /* [T, Hq, D] */
    int64_t q_stride;        /* elements from token to token, ≥ Hq·D */
    void *k_pages;           /* [num_pages, Hkv, page_size, D] */
    void *v_pages;
    int64_t num_pages;
    int64_t page_size;    /* tokens: a power of two ≥ 8 */
    int64_t page_stride;  /* elements from page to page, ≥ Hkv·page_size·D; 0 = exactly that */
    const int64_t *slots; /* [T] */
} ambidex_qkv_args;

AMBIDEX_API int32_t ambidex_qkv_rope_store(const ambidex_qkv_args *args);

/* ---- attention over pages ---------------------------------------------------------------------------------------- *
 * A ragged batch: request b has the query rows query_start[b] … query_start[b+1]-1 (its last tokens) and
 * context_lengths[b] keys in all, those rows included; query row r of n stands at position i = context - n + r.
 *   s(i, j) = scale · q_i · k_j;  softcap > 0: s = softcap · tanh(s / softcap);
 *   key j is visible to i where j ≤ i, and j > i - window where window > 0;
 *   out_i = Σ_j softmax_j(s(i, j)) · v_j, heads grouped: query head h reads key head h / (Hq / Hkv).
 * Online softmax (arXiv:2205.14135) in float32 over blocks of 64 keys counted from key 0, so that the bits of a row
 * depend on its own keys only: not on batch, chunks of the prompt, page size or page order. At the bf16 levels
 * (AVX512_BF16, AMX) the unnormalised probabilities are rounded to bf16 for the product with v.
 * Slots of a page beyond the context length are never used, whatever they hold. */
typedef struct {
    int32_t level;
    int32_t dtype;                  /* of q, the planes and out */
    int64_t num_requests;           /* B */
    int64_t num_heads;              /* Hq, a multiple of Hkv */
    int64_t num_kv_heads;           /* Hkv */
    int64_t head_size;              /* D: even, 2 … 512 */
    int64_t num_tokens;             /* T ≥ query_start[B] */
    const int32_t *query_start;     /* [B + 1], rising, in rows of q */
    const int32_t *context_lengths; /* [B], each ≥ its number of queries */
    const int32_t *page_table;      /* [B, max_pages]: page of keys [p·page_size, (p+1)·page_size) */
    int64_t max_pages;              /* row length of page_table; max_pages·page_size ≥ each context length */
    const void *q;                  /* [T, Hq, D] */
    int64_t q_stride;               /* elements from token to token */
    const void *k_pages;            /* planes as above */
    const void *v_pages;
    int64_t num_pages; /* a page number outside [0, num_pages) is AMBIDEX_BAD_SHAPE */
    int64_t page_size;
    int64_t page_stride; /* 0 = Hkv·page_size·D */
    void *out;           /* [T, Hq, D]: rows that belong to no request, behind the last, become zero */
    int64_t out_stride;
    float scale;
    float softcap;  /* 0 = none */
    int64_t window; /* 0 = none */
} ambidex_attention_args;

AMBIDEX_API int32_t ambidex_paged_attention(const ambidex_attention_args *args);

/* ---- sampling ---------------------------------------------------------------------------------------------------- *
 * The token of each row of logits, its log-probability, and the `num_top` likeliest (falling, of equals the first):
 *   log-probabilities are of the raw logits: x - log Σ e^x; NaN throughout a row that holds a NaN or +inf.
 *   allowed = the logits, -inf where bit v % 32 of mask word v / 32 is 0; then, for each token among the row's `lengths`
 *   tokens, the repetition penalty x > 0 ? x / r : x·r, less frequency · count + presence · [count > 0], counted from
 *   token `prompt_length` on.
 *   Temperature 0, or a row without log-probabilities: the first of the largest allowed (NaN is never larger).
 *   Else z = allowed / temperature; min-p keeps z ≥ max z + log(min_p), then top-k the first k in falling order (equals
 *   by column), then top-p those of them before which less than top_p of their probability lies, and the first; the
 *   token is argmax z_v + g_v, g the Gumbel noise of word v % 4 of Philox 4x32-10 at counter (v / 4, position), key seed.
 * A group of pointers may be null together: nobody draws, filters, is penalised or masked. */
typedef struct {
    int32_t level;
    int32_t num_top;     /* n ≤ V */
    int64_t num_rows;    /* M */
    int64_t num_columns; /* V < 2^31 - 1 */
    const float *logits; /* [M, V] */
    int64_t logits_stride;
    int64_t *ids;         /* [M] */
    float *logprobs;      /* [M] */
    int64_t *top_ids;     /* [M, n] */
    float *top_logprobs;  /* [M, n] */
    float *allowed;       /* [M, V], written; null where there is neither mask nor penalty */
    const int32_t *mask;  /* [M, ceil(V / 32)], or null */
    const int64_t *tokens; /* [M, ≥ length]: prompt, then output, each in [0, V); with what follows, or null */
    int64_t tokens_stride;
    const int64_t *prompt_lengths; /* [M] */
    const int64_t *lengths;        /* [M] */
    const float *repetition;       /* [M] */
    const float *presence;         /* [M] */
    const float *frequency;        /* [M] */
    const float *temperature;      /* [M]; with seeds and positions, or null */
    const int64_t *seeds;          /* [M] */
    const int64_t *positions;      /* [M] */
    const int64_t *top_k;          /* [M], 0: off; with top_p (1: off) and min_p (0: off), or null */
    const float *top_p;            /* [M] */
    const float *min_p;            /* [M] */
} ambidex_sample_args;

AMBIDEX_API int32_t ambidex_sample(const ambidex_sample_args *args);

/* ---- recorded calls ---------------------------------------------------------------------------------------------- *
 * Runs calls one after another, as if each had been made, and stops at the first that refuses: its status. */
typedef enum {
    AMBIDEX_LINEAR = 0,
    AMBIDEX_RMS_NORM = 1,
    AMBIDEX_QKV_ROPE_STORE = 2,
    AMBIDEX_PAGED_ATTENTION = 3,
    AMBIDEX_UNPACK_ROWS = 4,
    AMBIDEX_SAMPLE = 5
} ambidex_function;

typedef struct {
    int32_t function;
    const void *args; /* that function's struct */
} ambidex_call;

AMBIDEX_API int32_t ambidex_run_calls(const ambidex_call *calls, int64_t num_calls);

#endif
