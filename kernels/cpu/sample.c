/* Sampling: each block of columns of each row is summarised, then each row takes its token and log-probabilities.
 *
 * Blocks are the same whatever the number of rows and threads, and are reduced in order: so are the bits of a row. */
#include <math.h>
#include <stdatomic.h>

#include "internal.h"

enum {
    BLOCK = 4096, /* columns: they stay in the first cache between two looks at them */
    WORTH = 16384 /* columns for which a thread is woken */
};

typedef struct {
    float largest, sum;     /* of the raw logits: the largest, and Σ e^(x - largest) */
    float largest_allowed;  /* of what tokens are taken from */
} block_summary;

typedef struct {
    const ambidex_sample_args *args;
    const kernel_set *kernels;
    int64_t num_blocks, blocks_per_task;
    block_summary *summaries; /* [M][num_blocks] */
    candidate *tops;          /* [M][num_blocks][num_top] */
    atomic_int is_short_of_memory;
} sample_state;

static const float *raw_row(const ambidex_sample_args *args, int64_t row) {
    return args->logits + row * args->logits_stride;
}
static const float *allowed_row(const ambidex_sample_args *args, int64_t row) {
    return args->allowed ? args->allowed + row * args->num_columns : raw_row(args, row);
}

/* What a token's penalties make of its logit; counts: how often it is in the output. */
static float penalised(const ambidex_sample_args *args, int64_t row, float x, int32_t count) {
    x = x > 0 ? x / args->repetition[row] : x * args->repetition[row];
    return x - args->frequency[row] * (float)count - (count ? args->presence[row] : 0);
}

static int penalise(const ambidex_sample_args *args, int64_t row, float *out) {
    enum { SEEN = 1 << 30 };
    const int64_t *tokens = args->tokens + row * args->tokens_stride, num_bytes = args->num_columns * 4;
    int32_t *counts = ambidex_scratch(ROOM_WORKER, num_bytes);
    if (!counts) return 0;
    memset(counts, 0, (size_t)num_bytes);
    for (int64_t i = 0; i < args->lengths[row]; i++)
        counts[tokens[i]] = (counts[tokens[i]] + (i >= args->prompt_lengths[row])) | SEEN;
    for (int64_t i = 0; i < args->lengths[row]; i++) {
        int32_t *count = counts + tokens[i];
        if (*count) out[tokens[i]] = penalised(args, row, out[tokens[i]], *count & ~SEEN);
        *count = 0;
    }
    return 1;
}

static void allow_row(void *pointer, int64_t row) {
    sample_state *state = pointer;
    const ambidex_sample_args *args = state->args;
    const int64_t num_columns = args->num_columns, num_words = (num_columns + 31) / 32;
    float *out = args->allowed + row * num_columns;
    if (args->mask)
        state->kernels->mask_row(out, raw_row(args, row), args->mask + row * num_words, num_columns);
    else
        memcpy(out, raw_row(args, row), (size_t)num_columns * 4);
    if (args->tokens && !penalise(args, row, out)) atomic_store(&state->is_short_of_memory, 1);
}

/* Keeps the `room` largest in falling order, of equals those that came first. Returns how many are kept. */
static int64_t insert(candidate *list, int64_t count, int64_t room, candidate found) {
    if (count == room && !(found.value > list[count - 1].value)) return count;
    int64_t place = count < room ? count : count - 1;
    for (; place > 0 && found.value > list[place - 1].value; place--) list[place] = list[place - 1];
    list[place] = found;
    return count < room ? count + 1 : count;
}

static void take_top(const sample_state *state, candidate *list, const float *x, int64_t begin, int64_t end) {
    int64_t count = 0, room = state->args->num_top, n = begin;
    for (; n < end && count < room; n++) count = insert(list, count, room, (candidate){x[n], (int32_t)n});
    for (; (n = state->kernels->first_above(x, n, end, list[room - 1].value)) < end; n++)
        insert(list, count, room, (candidate){x[n], (int32_t)n});
}

static void summarise(const sample_state *state, int64_t row, int64_t block) {
    const ambidex_sample_args *args = state->args;
    const kernel_set *kernels = state->kernels;
    const int64_t begin = block * BLOCK, count = least(BLOCK, args->num_columns - begin);
    const int64_t place = row * state->num_blocks + block;
    const float *x = raw_row(args, row), *allowed = allowed_row(args, row);
    block_summary summary = {.largest = kernels->max_of_row(x + begin, count)};
    summary.sum = kernels->exp_sum(x + begin, count, 1, isinf(summary.largest) ? 0 : summary.largest);
    summary.largest_allowed = allowed == x ? summary.largest : kernels->max_of_row(allowed + begin, count);
    state->summaries[place] = summary;
    if (args->num_top) take_top(state, state->tops + place * args->num_top, x, begin, begin + count);
}

static void summarise_some(void *pointer, int64_t index) {
    const sample_state *state = pointer;
    const int64_t first = index * state->blocks_per_task, num_blocks = state->num_blocks;
    const int64_t end = least(first + state->blocks_per_task, state->args->num_rows * num_blocks);
    for (int64_t i = first; i < end; i++) summarise(state, i / num_blocks, i % num_blocks);
}

/* log Σ e^x of a row; NaN where a logit is NaN or +inf, or all are -inf. */
static double log_total(const block_summary *summaries, int64_t num_blocks) {
    float largest = -INFINITY;
    double sum = 0;
    for (int64_t block = 0; block < num_blocks; block++)
        if (summaries[block].largest > largest) largest = summaries[block].largest;
    if (isinf(largest)) return NAN;
    for (int64_t block = 0; block < num_blocks; block++)
        sum += summaries[block].sum * exp((double)summaries[block].largest - largest);
    return largest + log(sum);
}

/* The first of the largest that are allowed; where all are -inf or NaN, column 0. */
static int64_t greedy(const sample_state *state, int64_t row, const block_summary *summaries) {
    int64_t best = 0;
    for (int64_t block = 1; block < state->num_blocks; block++)
        if (summaries[block].largest_allowed > summaries[best].largest_allowed) best = block;
    const float largest = summaries[best].largest_allowed;
    if (largest == -INFINITY) return 0;
    const int64_t begin = best * BLOCK, end = least(begin + BLOCK, state->args->num_columns);
    return state->kernels->first_above(allowed_row(state->args, row), begin, end, nextafterf(largest, -INFINITY));
}

static int64_t drawn(sample_state *state, int64_t row, int64_t largest) {
    const ambidex_sample_args *args = state->args;
    const int is_filtered = args->top_k != NULL;
    const draw_args draw = {.logits = allowed_row(args, row),
                            .num_columns = args->num_columns,
                            .largest = largest,
                            .temperature = args->temperature[row],
                            .seed = args->seeds[row],
                            .position = args->positions[row],
                            .top_k = is_filtered ? args->top_k[row] : 0,
                            .top_p = is_filtered ? args->top_p[row] : 1,
                            .min_p = is_filtered ? args->min_p[row] : 0};
    const int64_t token = ambidex_draw(state->kernels, &draw);
    if (token >= 0) return token;
    atomic_store(&state->is_short_of_memory, 1);
    return largest;
}

static void write_top(const sample_state *state, int64_t row, double total) {
    const ambidex_sample_args *args = state->args;
    const int64_t room = args->num_top;
    candidate *list = state->tops + row * state->num_blocks * room;
    int64_t count = least(room, args->num_columns < BLOCK ? args->num_columns : BLOCK);
    for (int64_t block = 1; block < state->num_blocks; block++) {
        const int64_t found = least(room, least(BLOCK, args->num_columns - block * BLOCK));
        for (int64_t i = 0; i < found; i++) count = insert(list, count, room, list[block * room + i]);
    }
    for (int64_t i = 0; i < room; i++) {
        args->top_ids[row * room + i] = list[i].token;
        args->top_logprobs[row * room + i] = (float)(list[i].value - total);
    }
}

/* From a row whose logits are no numbers nothing is drawn. */
static void finish_row(void *pointer, int64_t row) {
    sample_state *state = pointer;
    const ambidex_sample_args *args = state->args;
    const block_summary *summaries = state->summaries + row * state->num_blocks;
    const double total = log_total(summaries, state->num_blocks);
    int64_t token = greedy(state, row, summaries);
    if (args->temperature && args->temperature[row] > 0 && !isnan(total)) token = drawn(state, row, token);
    args->ids[row] = token;
    args->logprobs[row] = (float)(raw_row(args, row)[token] - total);
    if (args->num_top) write_top(state, row, total);
}

static int is_in_range(const ambidex_sample_args *args) {
    const int64_t columns = args->num_columns;
    if (args->num_rows < 0 || columns < 1 || columns >= INT32_MAX || args->logits_stride < columns) return 0;
    if (args->num_top < 0 || args->num_top > columns) return 0;
    for (int64_t row = 0; args->tokens && row < args->num_rows; row++) {
        if (args->lengths[row] < 0 || args->lengths[row] > args->tokens_stride) return 0;
        for (int64_t i = 0; i < args->lengths[row]; i++) {
            const int64_t token = args->tokens[row * args->tokens_stride + i];
            if (token < 0 || token >= columns) return 0;
        }
    }
    return 1;
}

static int has_what_it_needs(const ambidex_sample_args *args) {
    return args->logits && args->ids && args->logprobs && (!args->num_top || (args->top_ids && args->top_logprobs)) &&
           (args->allowed || (!args->mask && !args->tokens)) && (!args->temperature || (args->seeds && args->positions)) &&
           (!args->top_k || (args->top_p && args->min_p)) &&
           (!args->tokens || (args->prompt_lengths && args->lengths && args->repetition && args->presence &&
                              args->frequency));
}

int32_t ambidex_sample(const ambidex_sample_args *args) {
    sample_state state = {.args = args, .kernels = ambidex_kernels_of(args->level)};
    if (!state.kernels) return AMBIDEX_BAD_LEVEL;
    if (args->num_rows && !has_what_it_needs(args)) return AMBIDEX_BAD_POINTER;
    if (!is_in_range(args)) return AMBIDEX_BAD_SHAPE;
    if (args->num_rows == 0) return AMBIDEX_OK;
    state.num_blocks = (args->num_columns + BLOCK - 1) / BLOCK;
    state.blocks_per_task = most(1, WORTH / least(args->num_columns, BLOCK));
    const int64_t num_summaries = args->num_rows * state.num_blocks;
    const int64_t summary_bytes = round_up(num_summaries * (int64_t)sizeof(block_summary), 64);
    char *room = ambidex_scratch(ROOM_CALL,
                                 summary_bytes + num_summaries * args->num_top * (int64_t)sizeof(candidate));
    if (!room) return AMBIDEX_NO_MEMORY;
    state.summaries = (block_summary *)room;
    state.tops = (candidate *)(room + summary_bytes);
    if (args->allowed) ambidex_run(args->num_rows, allow_row, &state);
    ambidex_run((num_summaries + state.blocks_per_task - 1) / state.blocks_per_task, summarise_some, &state);
    if (args->temperature)
        ambidex_run(args->num_rows, finish_row, &state);
    else
        for (int64_t row = 0; row < args->num_rows; row++) finish_row(&state, row);
    return state.is_short_of_memory ? AMBIDEX_NO_MEMORY : AMBIDEX_OK;
}
