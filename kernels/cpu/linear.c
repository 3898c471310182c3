/* linear: how a product is cut into tiles, and which thread takes what.
 *
 * The rows of x are first copied to the left operand's layout (normed on the way), in K-blocks of 1 KiB a row. A strip
 * is one or two panels of W. Few rows (one row block): a strip is read once, from memory to registers, over all of K.
 * Many: for each pass over some K-blocks and each strip, all row blocks of a group, so that the strip's part stays in
 * L1/L2 and the group's part of x in L2; the sums wait in a worker's scratch between passes. The order over K is the
 * same in both. */
#include "internal.h"

enum {
    STREAM_AHEAD = 2048,    /* bytes of a panel that prefetches run ahead when it comes from memory */
    STREAM_BYTES = 1 << 16, /* of a task with few rows, about */
    GROUP_ROWS = 256,       /* about 512 KiB of x a pass */
    PASS_BLOCKS = 2,        /* K-blocks of a pass with many rows */
    PART_STRIPS = 8,        /* strips of a task with many rows: their sums stay in L2 */
    SERIAL_ROWS = 8         /* rows that are copied without waking the others */
};

typedef struct {
    const ambidex_linear_args *args;
    const kernel_set *kernels;
    product_ops product;
    const char *source; /* rows to copy: x, or x normed */
    int64_t source_stride;
    char *left;
    int64_t left_block; /* bytes from K-block to K-block */
    int64_t padded;     /* inputs, padded */
    int64_t panel_bytes;
    int64_t num_strips, strip_panels; /* gated: a strip is a gate's panel and that of `up` */
    int64_t num_parts;
    int64_t num_streams; /* with few rows each thread's parts lie in a row, which its processor reads ahead of itself */
    int64_t num_groups, num_blocks; /* row groups, and row blocks in all */
    void *normed;
    int32_t is_short_of_memory;
} linear_state;

static int64_t first_row(const linear_state *s, int64_t block) { return block * s->args->num_rows / s->num_blocks; }

static void copy_rows(void *pointer, int64_t part) {
    const linear_state *s = pointer;
    const ambidex_linear_args *args = s->args;
    int64_t end = least((part + 1) * SERIAL_ROWS, args->num_rows);
    for (int64_t row = part * SERIAL_ROWS; row < end; row++) {
        if (args->norm_weight) {
            const ambidex_norm_args norm = {.dtype = args->dtype,
                                            .num_rows = args->num_rows,
                                            .num_inputs = args->num_inputs,
                                            .x = args->x,
                                            .x_stride = args->x_stride,
                                            .y = s->normed,
                                            .y_stride = args->num_inputs,
                                            .weight = args->norm_weight,
                                            .weight_dtype = args->norm_dtype,
                                            .eps = args->norm_eps};
            s->kernels->norm_row(&norm, row);
        }
        s->kernels->copy_row(s->left + row * ROW_BYTES, s->left_block,
                             at(s->source, row * s->source_stride, args->dtype), args->num_inputs, s->padded,
                             args->dtype, s->product.left_dtype);
    }
}

static void strip_panels(const linear_state *s, int64_t strip, const char *panels[2]) {
    const char *weight = s->args->weight;
    int64_t first = strip * s->strip_panels, second = first + 1;
    if (s->args->gated) first = strip, second = strip + s->num_strips;
    panels[0] = weight + first * s->panel_bytes;
    panels[1] = weight + second * s->panel_bytes;
}

static int32_t panels_of(const linear_state *s, int64_t strip) {
    if (s->args->gated) return 2;
    return (int32_t)least(s->strip_panels, (s->args->num_outputs + PANEL - 1) / PANEL - strip * s->strip_panels);
}

static void run_tile(const linear_state *s, tile_args t) {
    if (t.num_panels <= s->product.max_panels) {
        s->product.tile(&t);
        return;
    }
    t.num_panels = 1;
    s->product.tile(&t);
    t.b[0] = t.b[1], t.next[0] = t.next[1], t.c += t.c_panel;
    s->product.tile(&t);
}

static void finish_strip(const linear_state *s, const float *c, int64_t c_panel, int64_t row, int64_t num_rows,
                         int64_t strip) {
    const ambidex_linear_args *args = s->args;
    const int64_t width = args->gated ? args->num_outputs / 2 : args->num_outputs;
    const int32_t num_panels = args->gated ? 1 : panels_of(s, strip);
    for (int32_t panel = 0; panel < num_panels; panel++) {
        const int64_t column = (args->gated ? strip : strip * s->strip_panels + panel) * PANEL;
        finish_args f = {.c = c + panel * c_panel,
                         .c_panel = c_panel,
                         .num_rows = num_rows,
                         .num_columns = least(PANEL, width - column),
                         .dtype = args->dtype,
                         .out_dtype = args->out_dtype,
                         .bias_dtype = args->bias_dtype,
                         .gated = args->gated,
                         .residual_stride = args->residual_stride,
                         .y_stride = args->y_stride};
        if (args->bias) f.bias = at(args->bias, column, args->bias_dtype);
        if (args->bias && args->gated) f.bias_up = at(args->bias, width + column, args->bias_dtype);
        if (args->residual) f.residual = at(args->residual, row * args->residual_stride + column, args->dtype);
        f.y = at_out(args->y, row * args->y_stride + column, args->out_dtype);
        s->kernels->finish(&f);
    }
}

/* One row block: each strip is streamed once over all of K. */
static void stream_strips(const linear_state *s, int64_t begin, int64_t end) {
    float c[2 * MAX_TILE_ROWS * PANEL] __attribute__((aligned(64)));
    const int64_t num_rows = s->args->num_rows;
    for (int64_t strip = begin; strip < end; strip++) {
        tile_args t = {.a = s->left,
                       .a_block = s->left_block,
                       .distance = num_rows <= s->product.plain_rows ? 0 : least(STREAM_AHEAD, s->panel_bytes),
                       .num_inputs = s->padded,
                       .c = c,
                       .c_panel = MAX_TILE_ROWS * PANEL,
                       .num_rows = (int32_t)num_rows,
                       .num_panels = panels_of(s, strip)};
        strip_panels(s, strip, t.b);
        strip_panels(s, strip + 1 < end ? strip + 1 : strip, t.next);
        run_tile(s, t);
        finish_strip(s, c, t.c_panel, 0, num_rows, strip);
    }
}

typedef struct {
    int64_t begin, end, first_block, num_blocks;
    float *sums;
    int64_t k;
} many_part;

/* One strip's part of one pass over K, for all row blocks of a group. */
static void multiply_strip(const linear_state *s, const many_part *part, int64_t strip) {
    const int64_t block_inputs = BLOCK_BYTES / size_of(s->product.left_dtype), k = part->k;
    const int64_t num_inputs = least(PASS_BLOCKS * block_inputs, s->padded - k), skip = k * s->panel_bytes / s->padded;
    const int64_t c_panel = s->product.max_rows * PANEL;
    const int is_last_k = k + num_inputs >= s->padded, is_last_strip = strip + 1 == part->end;
    tile_args t = {.num_inputs = num_inputs,
                   .a_block = s->left_block,
                   .c_panel = c_panel,
                   .num_panels = panels_of(s, strip),
                   .accumulate = k > 0};
    strip_panels(s, strip, t.b);
    strip_panels(s, is_last_strip ? (is_last_k ? strip : part->begin) : strip + 1, t.next);
    const int64_t skip_next = is_last_strip && !is_last_k ? (k + num_inputs) * s->panel_bytes / s->padded : skip;
    for (int p = 0; p < 2; p++) t.b[p] += skip, t.next[p] += skip_next;
    for (int64_t block = 0; block < part->num_blocks; block++) {
        const int64_t row = first_row(s, part->first_block + block);
        t.num_rows = (int32_t)(first_row(s, part->first_block + block + 1) - row);
        t.a = s->left + k / block_inputs * s->left_block + row * ROW_BYTES;
        t.c = part->sums + ((strip - part->begin) * part->num_blocks + block) * 2 * c_panel;
        t.distance = block + 1 == part->num_blocks ? num_inputs * s->panel_bytes / s->padded : 0;
        run_tile(s, t);
        if (is_last_k) finish_strip(s, t.c, c_panel, row, t.num_rows, strip);
    }
}

static void run_part(void *pointer, int64_t index) {
    linear_state *s = pointer;
    int64_t part = index % s->num_parts, group = index / s->num_parts;
    if (s->num_blocks == 1) part = index % s->num_streams * (s->num_parts / s->num_streams) + index / s->num_streams;
    const int64_t begin = part * s->num_strips / s->num_parts, end = (part + 1) * s->num_strips / s->num_parts;
    if (s->product.begin) s->product.begin();
    if (s->num_blocks == 1) {
        stream_strips(s, begin, end);
    } else {
        many_part many = {.begin = begin, .end = end, .first_block = group * s->num_blocks / s->num_groups};
        many.num_blocks = (group + 1) * s->num_blocks / s->num_groups - many.first_block;
        many.sums = ambidex_scratch(ROOM_WORKER, (end - begin) * many.num_blocks * 2 * s->product.max_rows * PANEL * 4);
        if (!many.sums) s->is_short_of_memory = 1;
        for (; many.sums && many.k < s->padded; many.k += PASS_BLOCKS * BLOCK_BYTES / size_of(s->product.left_dtype))
            for (int64_t strip = begin; strip < end; strip++) multiply_strip(s, &many, strip);
    }
    if (s->product.end) s->product.end();
}

static int32_t check(const ambidex_linear_args *a) {
    if (!ambidex_kernels_of(a->level)) return AMBIDEX_BAD_LEVEL;
    if (!is_dtype(a->dtype) || (a->out_dtype != a->dtype && a->out_dtype != AMBIDEX_F32)) return AMBIDEX_BAD_DTYPE;
    if ((a->bias && !is_dtype(a->bias_dtype)) || (a->norm_weight && !is_dtype(a->norm_dtype))) return AMBIDEX_BAD_DTYPE;
    if (a->num_rows < 0 || a->num_outputs < 0 || a->num_inputs < 1 || a->x_stride < a->num_inputs)
        return AMBIDEX_BAD_SHAPE;
    if (a->gated && (a->num_outputs % (2 * PANEL) || a->residual)) return AMBIDEX_BAD_SHAPE;
    if (a->y_stride < (a->gated ? a->num_outputs / 2 : a->num_outputs)) return AMBIDEX_BAD_SHAPE;
    if (a->residual && a->residual_stride < a->num_outputs) return AMBIDEX_BAD_SHAPE;
    if (a->num_rows == 0 || a->num_outputs == 0) return AMBIDEX_OK;
    if (!a->x || !a->y || !a->weight || (uintptr_t)a->weight % 64) return AMBIDEX_BAD_POINTER;
    return AMBIDEX_OK;
}

static void cut(linear_state *s) {
    const ambidex_linear_args *args = s->args;
    const int64_t num_panels = (args->num_outputs + PANEL - 1) / PANEL, threads = ambidex_num_threads();
    s->num_blocks = (args->num_rows + s->product.max_rows - 1) / s->product.max_rows;
    s->num_groups = (args->num_rows + GROUP_ROWS - 1) / GROUP_ROWS;
    s->strip_panels = args->gated ? 1 : s->product.max_panels;
    s->num_strips = args->gated ? num_panels / 2 : (num_panels + s->strip_panels - 1) / s->strip_panels;
    s->num_streams = least(threads, s->num_strips);
    if (s->num_blocks > 1) {
        const int64_t parts_a_thread = (s->num_strips + threads * PART_STRIPS - 1) / (threads * PART_STRIPS);
        s->num_parts = least(threads * parts_a_thread, s->num_strips);
    } else {
        const int64_t tasks = num_panels * s->panel_bytes / s->num_streams / STREAM_BYTES;
        s->num_parts = s->num_streams * least(most(1, tasks), s->num_strips / s->num_streams);
    }
}

int32_t ambidex_linear(const ambidex_linear_args *args) {
    int32_t status = check(args);
    if (status || args->num_rows == 0 || args->num_outputs == 0) return status;
    linear_state s = {.args = args,
                      .kernels = ambidex_kernels_of(args->level),
                      .source = args->x,
                      .source_stride = args->x_stride,
                      .padded = padded_inputs(args->num_inputs, args->dtype)};
    s.product = s.kernels->products[args->dtype];
    s.panel_bytes = PANEL * s.padded * size_of(args->dtype);
    s.left_block = round_up(args->num_rows, MAX_TILE_ROWS) * ROW_BYTES;
    const int64_t num_k_blocks = (s.padded * size_of(s.product.left_dtype) + BLOCK_BYTES - 1) / BLOCK_BYTES;
    const int64_t normed_bytes = args->norm_weight ? args->num_rows * args->num_inputs * size_of(args->dtype) : 0;
    s.left = ambidex_scratch(ROOM_CALL, num_k_blocks * s.left_block + normed_bytes);
    if (!s.left) return AMBIDEX_NO_MEMORY;
    if (args->norm_weight) {
        s.normed = s.left + num_k_blocks * s.left_block;
        s.source = s.normed;
        s.source_stride = args->num_inputs;
    }
    cut(&s);
    ambidex_run((args->num_rows + SERIAL_ROWS - 1) / SERIAL_ROWS, copy_rows, &s);
    ambidex_run(s.num_parts * s.num_groups * (s.num_blocks > 1) + s.num_parts * (s.num_blocks == 1), run_part, &s);
    return s.is_short_of_memory ? AMBIDEX_NO_MEMORY : AMBIDEX_OK;
}
