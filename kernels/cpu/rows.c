/* Entry points that treat each row for itself: norms, queries/keys/values. */
#include "internal.h"

typedef struct {
    const kernel_set *kernels;
    const void *args;
    int64_t num_rows, rows_per_part;
    void (*row)(const kernel_set *, const void *args, int64_t row);
} rows_state;

static void run_part(void *pointer, int64_t index) {
    const rows_state *state = pointer;
    int64_t end = least((index + 1) * state->rows_per_part, state->num_rows);
    for (int64_t row = index * state->rows_per_part; row < end; row++) state->row(state->kernels, state->args, row);
}

/* A thread is woken for at least `worth` elements. */
static void run_rows(rows_state state, int64_t row_elements) {
    enum { WORTH = 16384 };
    state.rows_per_part = most(1, WORTH / most(1, row_elements));
    ambidex_run((state.num_rows + state.rows_per_part - 1) / state.rows_per_part, run_part, &state);
}

static void norm_one(const kernel_set *kernels, const void *args, int64_t row) { kernels->norm_row(args, row); }

int32_t ambidex_rms_norm(const ambidex_norm_args *args) {
    const kernel_set *kernels = ambidex_kernels_of(args->level);
    int64_t k = args->num_inputs;
    if (!kernels) return AMBIDEX_BAD_LEVEL;
    if (!is_dtype(args->dtype) || !is_dtype(args->weight_dtype)) return AMBIDEX_BAD_DTYPE;
    if (args->num_rows < 0 || k < 1 || args->x_stride < k || args->y_stride < k) return AMBIDEX_BAD_SHAPE;
    if (args->residual && args->residual_stride < k) return AMBIDEX_BAD_SHAPE;
    if (args->sum_out && args->sum_stride < k) return AMBIDEX_BAD_SHAPE;
    if (args->num_rows == 0) return AMBIDEX_OK;
    if (!args->x || !args->y || !args->weight) return AMBIDEX_BAD_POINTER;
    run_rows((rows_state){kernels, args, args->num_rows, 0, norm_one}, k);
    return AMBIDEX_OK;
}

static void qkv_one(const kernel_set *kernels, const void *args, int64_t row) { kernels->qkv_token(args, row); }

static int qkv_shapes_fit(const ambidex_qkv_args *args) {
    int64_t d = args->head_size, page = args->page_size;
    int64_t width = (args->num_heads + 2 * args->num_kv_heads) * d, plane = args->num_kv_heads * page * d;
    return args->num_tokens >= 0 && args->num_heads >= 1 && args->num_kv_heads >= 1 && d >= 1 && d <= MAX_HEAD_SIZE &&
           args->rotary_size >= 0 && args->rotary_size <= d && args->rotary_size % 2 == 0 &&
           args->qkv_stride >= width && args->rotation_stride >= args->rotary_size / 2 &&
           args->q_stride >= args->num_heads * d && page >= 8 && (page & (page - 1)) == 0 && args->num_pages >= 0 &&
           (args->page_stride == 0 || args->page_stride >= plane);
}

int32_t ambidex_qkv_rope_store(const ambidex_qkv_args *args) {
    const kernel_set *kernels = ambidex_kernels_of(args->level);
    if (!kernels) return AMBIDEX_BAD_LEVEL;
    if (!is_dtype(args->dtype) || !is_dtype(args->norm_dtype)) return AMBIDEX_BAD_DTYPE;
    if (!qkv_shapes_fit(args)) return AMBIDEX_BAD_SHAPE;
    if (args->num_tokens == 0) return AMBIDEX_OK;
    if (!args->qkv || !args->q || !args->k_pages || !args->v_pages || !args->slots) return AMBIDEX_BAD_POINTER;
    if (args->rotary_size && (!args->cos || !args->sin)) return AMBIDEX_BAD_POINTER;
    for (int64_t t = 0; t < args->num_tokens; t++)
        if (args->slots[t] < -1 || args->slots[t] >= args->num_pages * args->page_size) return AMBIDEX_BAD_SHAPE;
    run_rows((rows_state){kernels, args, args->num_tokens, 0, qkv_one}, args->qkv_stride);
    return AMBIDEX_OK;
}
