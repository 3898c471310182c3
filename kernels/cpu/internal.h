/* What the sources of the library share. Nothing here is part of the interface; that is ambidex.h. */
#ifndef AMBIDEX_INTERNAL_H
#define AMBIDEX_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ambidex.h"

#if defined(__x86_64__)
#define AMBIDEX_X86 1
#else
#define AMBIDEX_X86 0
#endif

/* gcc 10 has no AMX intrinsics; the emulation needs none. */
#if AMBIDEX_X86 && (defined(AMBIDEX_EMULATE_AMX) || defined(__clang__) || __GNUC__ >= 11)
#define AMBIDEX_HAS_AMX 1
#else
#define AMBIDEX_HAS_AMX 0
#endif

#if defined(__clang__)
#define AMBIDEX_UNROLL _Pragma("clang loop unroll(full)")
#define AMBIDEX_UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define AMBIDEX_UNROLL _Pragma("GCC unroll 16")
#define AMBIDEX_UNROLL_4 _Pragma("GCC unroll 4")
#endif

#define PANEL 16         /* rows of W in a panel, keys in a panel of keys */
#define MAX_TILE_ROWS 32 /* rows that a tile may touch beyond its own: scratch is rounded up to this */
#define BLOCK_BYTES 1024 /* of a row of the left operand: one K-block */
#define ROW_BYTES 1088   /* from row to row inside a K-block: 17 cache lines, so that rows do not share sets */
#define RUN_LINES \
    16 /* lines of a panel between two looks at where to prefetch: 32 inputs of bf16, 16 of float32 */
#define KEY_BLOCK 64 /* keys of one pass of the online softmax */
#define MAX_HEAD_SIZE 512

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t size_of(int32_t dtype) { return dtype == AMBIDEX_BF16 ? 2 : 4; }
static inline int is_dtype(int32_t dtype) { return dtype == AMBIDEX_F32 || dtype == AMBIDEX_BF16; }
static inline const char *at(const void *base, int64_t index, int32_t dtype) {
    return (const char *)base + index * size_of(dtype);
}
static inline char *at_out(void *base, int64_t index, int32_t dtype) { return (char *)base + index * size_of(dtype); }

/* Inputs of a packed row: bf16 comes in pairs, and AMX takes 32 at once. */
static inline int64_t padded_inputs(int64_t num_inputs, int32_t dtype) {
    return dtype == AMBIDEX_BF16 ? round_up(num_inputs, 32) : num_inputs;
}

/* One product of a few rows by one or two panels: c[panel][row][16] (+)= a[row][k] · b[panel][k][16].
 * The left operand lies in K-blocks [K-block][row][ROW_BYTES], of float32 or, for native bf16 products, bf16. Per
 * element the order over k is fixed, whatever rows and panels are; accumulate continues from c. */
typedef struct {
    const char *a;       /* the tile's first row in the first K-block */
    int64_t a_block;     /* bytes from K-block to K-block */
    const char *b[2];    /* the panels, at the first k */
    const char *next[2]; /* what will be read after them: prefetched */
    int64_t distance;    /* bytes that a prefetch runs ahead, at most the bytes of a panel's part; 0: none */
    int64_t num_inputs;  /* k of this call, even for bf16; a multiple of 32 for AMX */
    float *c;
    int64_t c_panel; /* floats from panel to panel of c */
    int32_t num_rows;
    int32_t num_panels;
    int32_t accumulate;
} tile_args;

/* What to prefetch while the panel is read at offset. */
static inline const char *read_ahead(const tile_args *t, int panel, int64_t offset, int64_t panel_bytes) {
    const int64_t limit = panel_bytes - t->distance;
    return (offset < limit ? t->b[panel] + t->distance : t->next[panel] - limit) + offset;
}

typedef struct {
    int32_t max_rows;
    int32_t max_panels;
    int32_t plain_rows;  /* up to which a panel comes from memory faster without prefetches */
    int32_t left_dtype;  /* of the left operand */
    void (*begin)(void); /* before and after a thread's tiles, or null */
    void (*end)(void);
    void (*tile)(const tile_args *);
} product_ops;

typedef struct {
    const float *c; /* [panel][row][16] */
    int64_t c_panel;
    int64_t num_rows;
    int64_t num_columns; /* 1 … 16 */
    int32_t dtype, out_dtype, bias_dtype;
    int32_t gated; /* c holds the gate's panel, then that of `up` */
    const char *bias, *bias_up, *residual;
    int64_t residual_stride;
    char *y;
    int64_t y_stride;
} finish_args;

/* A block of 64 keys for some rows of queries. */
typedef struct {
    const float *scores; /* [4][score_panel]: panel, row, 16 keys */
    int64_t score_panel;
    int64_t num_rows;
    const int64_t *first_key; /* per row: visible keys of the block are [first, end), clipped by the callee */
    const int64_t *end_key;
    float scale, softcap;
    float *max;    /* [row] */
    float *sum;    /* [row][16] */
    char *weights; /* left operand of the product with v: [row][ROW_BYTES] */
    int32_t left_dtype;
    float *out; /* [panel][out_panel]: panel of D, row, 16 */
    int64_t out_panel;
    int64_t num_out_panels;
} softmax_args;

typedef struct {
    product_ops products[2]; /* by dtype of the weight */
    void (*copy_row)(char *a, int64_t a_block, const char *row, int64_t num_inputs, int64_t padded, int32_t dtype,
                     int32_t left_dtype);
    void (*finish)(const finish_args *);
    void (*norm_row)(const ambidex_norm_args *, int64_t row);
    void (*qkv_token)(const ambidex_qkv_args *, int64_t token);
    void (*pack_keys)(char *panels, const char *const *rows, int64_t head_size, int32_t dtype, int32_t left_dtype);
    void (*pack_values)(char *panels, const char *const *rows, int64_t head_size, int32_t dtype, int32_t left_dtype);
    void (*softmax)(const softmax_args *);
    void (*store_attention)(char *out, const float *o, int64_t o_panel, float *sum, int64_t head_size, int32_t dtype);
    float (*max_of_row)(const float *x, int64_t count);
    float (*exp_sum)(const float *x, int64_t count, float scale, float shift);
    int64_t (*first_above)(const float *x, int64_t begin, int64_t end, float limit);
    void (*mask_row)(float *out, const float *x, const int32_t *words, int64_t count);
    uint64_t (*read)(const char *buffer, int64_t num_bytes);
} kernel_set;

extern const kernel_set ambidex_generic;
#if AMBIDEX_X86
extern const kernel_set ambidex_avx2, ambidex_avx512;
#endif
#if AMBIDEX_HAS_AMX
extern const kernel_set ambidex_amx;
#endif

/* A column of a row, and its value. */
typedef struct {
    float value;
    int32_t token;
} candidate;

/* What a row that draws asks for; largest: its first largest column. */
typedef struct {
    const float *logits;
    int64_t num_columns, largest;
    float temperature;
    int64_t seed, position;
    int64_t top_k;
    float top_p, min_p;
} draw_args;

/* The column drawn; -1: no memory. Called from a body that ambidex_run runs. */
int64_t ambidex_draw(const kernel_set *kernels, const draw_args *draw);

/* The kernels of a level, or null where the library lacks it. */
const kernel_set *ambidex_kernels_of(int32_t level);

/* Runs body(data, index) for each index below count on the pool's threads. Of n threads, one takes 0, n, 2n … in order
 * while nobody is idle; who takes which is not fixed. */
void ambidex_run(int64_t count, void (*body)(void *data, int64_t index), void *data);

/* The calling thread's scratch, 64-byte aligned, valid until its next call with the same room; null when memory is
 * short. An entry point takes ROOM_CALL, a body that ambidex_run runs takes ROOM_WORKER. */
enum { ROOM_CALL = 0, ROOM_WORKER = 1, NUM_ROOMS = 2 };
void *ambidex_scratch(int room, int64_t num_bytes);

#endif
