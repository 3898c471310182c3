/* paged_attention: requests, heads and tiles of queries, and the loop over blocks of keys.
 *
 * A task is one key/value head of one request and a tile of its queries; its rows are (query, head of the group). Each
 * block of 64 keys is packed once for all rows: scores = q · kᵀ, the online softmax, out += weights · v. Blocks that no
 * row of a row block sees are skipped, which changes no bits: their weights would be exact zeros. */
#include "internal.h"

enum { TILE_QUERY_ROWS = 224 };

typedef struct {
    int32_t request, kv_head, first_query, num_queries;
} attention_task;

typedef struct {
    const ambidex_attention_args *args;
    const kernel_set *kernels;
    product_ops product; /* of the packed keys and values */
    int32_t packed_dtype;
    int64_t group, queries_per_tile, page_stride;
    int page_shift; /* log2 of the page size */
    int64_t padded; /* head size as the scores' K */
    int64_t num_d_panels;
    int64_t max_rows; /* of a tile, rounded up */
    int64_t num_q_blocks, q_block_bytes;
    const int64_t *first_task; /* [B + 1] */
    int32_t is_short_of_memory;
} attention_state;

/* A worker's scratch. */
typedef struct {
    char *queries, *weights, *keys, *values, *zeros;
    float *scores, *out, *sum, *max;
    int64_t *first_key, *end_key;
} attention_room;

static int64_t carve(int64_t *used, int64_t num_bytes) {
    *used += round_up(num_bytes, 64);
    return *used - round_up(num_bytes, 64);
}

static int make_room(const attention_state *s, attention_room *room) {
    int64_t used = 0, rows = s->max_rows, packed = size_of(s->packed_dtype);
    const int64_t sizes[] = {s->num_q_blocks * s->q_block_bytes,
                             MAX_TILE_ROWS * ROW_BYTES,
                             KEY_BLOCK * s->padded * packed,
                             KEY_BLOCK * s->num_d_panels * PANEL * packed,
                             MAX_HEAD_SIZE * 4,
                             MAX_TILE_ROWS * KEY_BLOCK * 4,
                             s->num_d_panels * rows * PANEL * 4,
                             rows * PANEL * 4,
                             rows * 4,
                             rows * 8,
                             rows * 8};
    int64_t places[sizeof sizes / sizeof *sizes];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) places[i] = carve(&used, sizes[i]);
    char *base = ambidex_scratch(ROOM_WORKER, used);
    if (!base) return 0;
    *room = (attention_room){.queries = base + places[0],
                             .weights = base + places[1],
                             .keys = base + places[2],
                             .values = base + places[3],
                             .zeros = base + places[4],
                             .scores = (float *)(base + places[5]),
                             .out = (float *)(base + places[6]),
                             .sum = (float *)(base + places[7]),
                             .max = (float *)(base + places[8]),
                             .first_key = (int64_t *)(base + places[9]),
                             .end_key = (int64_t *)(base + places[10])};
    memset(room->zeros, 0, MAX_HEAD_SIZE * 4);
    return 1;
}

/* The task behind an index. Long tiles come first, so that the last to finish is short. */
static attention_task find_task(const attention_state *s, int64_t index) {
    const ambidex_attention_args *args = s->args;
    int64_t low = 0, high = args->num_requests;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        *(s->first_task[middle] <= index ? &low : &high) = middle;
    }
    const int64_t place = index - s->first_task[low], queries = args->query_start[low + 1] - args->query_start[low];
    const int64_t tiles = (queries + s->queries_per_tile - 1) / s->queries_per_tile;
    const int64_t tile = tiles - 1 - place / args->num_kv_heads, first = tile * queries / tiles;
    return (attention_task){.request = (int32_t)low,
                            .kv_head = (int32_t)(place % args->num_kv_heads),
                            .first_query = (int32_t)first,
                            .num_queries = (int32_t)((tile + 1) * queries / tiles - first)};
}

static void take_queries(const attention_state *s, const attention_room *room, attention_task task, int64_t num_rows) {
    const ambidex_attention_args *args = s->args;
    const int64_t start = args->query_start[task.request], queries = args->query_start[task.request + 1] - start;
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t query = task.first_query + row / s->group, head = task.kv_head * s->group + row % s->group;
        const int64_t position = args->context_lengths[task.request] - queries + query;
        s->kernels->copy_row(room->queries + row * ROW_BYTES, s->q_block_bytes,
                             at(args->q, (start + query) * args->q_stride + head * args->head_size, args->dtype),
                             args->head_size, s->padded, args->dtype, s->product.left_dtype);
        room->first_key[row] = args->window > 0 ? most(0, position - args->window + 1) : 0;
        room->end_key[row] = position + 1;
        room->max[row] = -__builtin_inff();
    }
    const int64_t touched_bytes = round_up(num_rows, MAX_TILE_ROWS) * PANEL * 4; /* by tiles, few where one token decodes */
    memset(room->sum, 0, (size_t)touched_bytes);
    for (int64_t panel = 0; panel < s->num_d_panels; panel++)
        memset(room->out + panel * s->max_rows * PANEL, 0, (size_t)touched_bytes);
}

/* Where a key's or value's row lies in its plane. */
static const char *row_of(const attention_state *s, attention_task task, const void *plane, int64_t key) {
    const ambidex_attention_args *args = s->args;
    const int64_t page = args->page_table[task.request * args->max_pages + (key >> s->page_shift)];
    const int64_t row = (task.kv_head << s->page_shift) + (key & (args->page_size - 1));
    return at(plane, page * s->page_stride + row * args->head_size, args->dtype);
}

static void pack_block(const attention_state *s, const attention_room *room, attention_task task, int64_t key0,
                       int64_t first_key, int64_t end_key) {
    const ambidex_attention_args *args = s->args;
    const int64_t d = args->head_size;
    const char *keys[KEY_BLOCK], *values[KEY_BLOCK];
    for (int64_t i = 0; i < KEY_BLOCK; i++) {
        const int64_t key = key0 + i;
        keys[i] = values[i] = room->zeros;
        if (key < first_key || key >= end_key) continue;
        keys[i] = row_of(s, task, args->k_pages, key);
        values[i] = row_of(s, task, args->v_pages, key);
    }
    s->kernels->pack_keys(room->keys, keys, d, args->dtype, s->product.left_dtype);
    s->kernels->pack_values(room->values, values, d, args->dtype, s->product.left_dtype);
}

/* What a product of a block prefetches: the rows of the next block, spread over its panels. */
typedef struct {
    attention_task task;
    const void *plane; /* null for nothing */
    int64_t key, end_key;
} upcoming_rows;

static void multiply(const attention_state *s, tile_args t, const char *panels, int64_t num_panels, int64_t panel_bytes,
                     upcoming_rows upcoming) {
    const int64_t row_bytes = s->args->head_size * size_of(s->args->dtype);
    float *c = t.c;
    for (int64_t panel = 0; panel < num_panels; panel += t.num_panels) {
        t.num_panels = (int32_t)least(s->product.max_panels, num_panels - panel);
        for (int p = 0; p < 2; p++) {
            t.b[p] = t.next[p] = panels + least(panel + p, num_panels - 1) * panel_bytes;
            const int64_t key = upcoming.key + (panel + p) * panel_bytes / row_bytes;
            if (!upcoming.plane || key >= upcoming.end_key) continue;
            t.next[p] = row_of(s, upcoming.task, upcoming.plane, key);
        }
        t.distance = upcoming.plane ? panel_bytes : 0;
        t.c = c + panel * t.c_panel;
        s->product.tile(&t);
    }
}

static void attend_rows(const attention_state *s, const attention_room *room, int64_t row, int64_t num_rows,
                        int64_t key0, upcoming_rows upcoming) {
    int64_t first[MAX_TILE_ROWS], end[MAX_TILE_ROWS], is_seen = 0;
    for (int64_t r = 0; r < num_rows; r++) {
        first[r] = room->first_key[row + r] - key0;
        end[r] = room->end_key[row + r] - key0;
        is_seen |= first[r] < KEY_BLOCK && end[r] > 0;
    }
    if (!is_seen) return;
    const int64_t packed = size_of(s->packed_dtype), score_panel = MAX_TILE_ROWS * PANEL;
    const int64_t out_panel = s->max_rows * PANEL;
    tile_args scores = {.a = room->queries + row * ROW_BYTES,
                        .a_block = s->q_block_bytes,
                        .num_inputs = s->padded,
                        .c = room->scores,
                        .c_panel = score_panel,
                        .num_rows = (int32_t)num_rows};
    upcoming.plane = row ? NULL : s->args->k_pages;
    multiply(s, scores, room->keys, KEY_BLOCK / PANEL, s->padded * PANEL * packed, upcoming);
    const softmax_args online = {.scores = room->scores,
                                 .score_panel = score_panel,
                                 .num_rows = num_rows,
                                 .first_key = first,
                                 .end_key = end,
                                 .scale = s->args->scale,
                                 .softcap = s->args->softcap,
                                 .max = room->max + row,
                                 .sum = room->sum + row * PANEL,
                                 .weights = room->weights,
                                 .left_dtype = s->product.left_dtype,
                                 .out = room->out + row * PANEL,
                                 .out_panel = out_panel,
                                 .num_out_panels = s->num_d_panels};
    s->kernels->softmax(&online);
    tile_args out = {.a = room->weights,
                     .num_inputs = KEY_BLOCK,
                     .c = room->out + row * PANEL,
                     .c_panel = out_panel,
                     .num_rows = (int32_t)num_rows,
                     .accumulate = 1};
    upcoming.plane = row ? NULL : s->args->v_pages;
    multiply(s, out, room->values, s->num_d_panels, KEY_BLOCK * PANEL * packed, upcoming);
}

static void store_rows(const attention_state *s, const attention_room *room, attention_task task, int64_t num_rows) {
    const ambidex_attention_args *args = s->args;
    const int64_t start = args->query_start[task.request] + task.first_query;
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t head = task.kv_head * s->group + row % s->group;
        s->kernels->store_attention(
            at_out(args->out, (start + row / s->group) * args->out_stride + head * args->head_size, args->dtype),
            room->out + row * PANEL, s->max_rows * PANEL, room->sum + row * PANEL, args->head_size, args->dtype);
    }
}

static void run_task(void *pointer, int64_t index) {
    attention_state *s = pointer;
    attention_room room;
    if (!make_room(s, &room)) {
        s->is_short_of_memory = 1;
        return;
    }
    const attention_task task = find_task(s, index);
    const int64_t num_rows = task.num_queries * s->group, step = s->product.max_rows;
    const int64_t num_blocks = (num_rows + step - 1) / step;
    take_queries(s, &room, task, num_rows);
    const int64_t first_key = room.first_key[0], end_key = room.end_key[num_rows - 1];
    if (s->product.begin) s->product.begin();
    for (int64_t key0 = first_key / KEY_BLOCK * KEY_BLOCK; key0 < end_key; key0 += KEY_BLOCK) {
        pack_block(s, &room, task, key0, first_key, end_key);
        const upcoming_rows upcoming = {.task = task, .key = key0 + KEY_BLOCK, .end_key = end_key};
        for (int64_t block = 0; block < num_blocks; block++) {
            /* whole tiles: a tile may write up to its maximum of rows, which only the last block has spare */
            attend_rows(s, &room, block * step, least(step, num_rows - block * step), key0, upcoming);
        }
    }
    if (s->product.end) s->product.end();
    store_rows(s, &room, task, num_rows);
}

static int32_t check_shapes(const ambidex_attention_args *a) {
    const int64_t d = a->head_size, plane = a->num_kv_heads * a->page_size * d;
    if (a->num_requests < 0 || a->num_tokens < 0 || a->num_heads < 1 || a->num_kv_heads < 1 || a->num_heads % a->num_kv_heads)
        return AMBIDEX_BAD_SHAPE;
    if (d < 2 || d > MAX_HEAD_SIZE || d % 2 || a->window < 0) return AMBIDEX_BAD_SHAPE;
    if (a->page_size < 8 || (a->page_size & (a->page_size - 1)) || (a->page_stride && a->page_stride < plane))
        return AMBIDEX_BAD_SHAPE;
    if (a->q_stride < a->num_heads * d || a->out_stride < a->num_heads * d) return AMBIDEX_BAD_SHAPE;
    return AMBIDEX_OK;
}

static int32_t check_requests(const ambidex_attention_args *a) {
    for (int64_t b = 0; b < a->num_requests; b++) {
        const int64_t queries = (int64_t)a->query_start[b + 1] - a->query_start[b], context = a->context_lengths[b];
        if (a->query_start[b] < 0 || queries < 0 || context < queries || context > a->max_pages * a->page_size)
            return AMBIDEX_BAD_SHAPE;
        for (int64_t p = 0; queries && p * a->page_size < context; p++) {
            const int64_t page = a->page_table[b * a->max_pages + p];
            const int is_left_behind = a->window > 0 && (p + 1) * a->page_size <= context - queries - a->window + 1;
            if (!is_left_behind && (page < 0 || page >= a->num_pages)) return AMBIDEX_BAD_SHAPE;
        }
    }
    return AMBIDEX_OK;
}

static void prepare(attention_state *s) {
    const ambidex_attention_args *args = s->args;
    const product_ops *bf16 = &s->kernels->products[AMBIDEX_BF16];
    const int is_native = args->dtype == AMBIDEX_BF16 && bf16->left_dtype == AMBIDEX_BF16;
    s->packed_dtype = is_native ? AMBIDEX_BF16 : AMBIDEX_F32;
    s->product = s->kernels->products[s->packed_dtype];
    s->group = args->num_heads / args->num_kv_heads;
    s->queries_per_tile = most(1, TILE_QUERY_ROWS / s->group);
    s->page_stride = args->page_stride ? args->page_stride : args->num_kv_heads * args->page_size * args->head_size;
    s->page_shift = __builtin_ctzll((unsigned long long)args->page_size);
    s->padded = padded_inputs(args->head_size, s->packed_dtype);
    s->num_d_panels = (args->head_size + PANEL - 1) / PANEL;
    s->max_rows = s->queries_per_tile * s->group + MAX_TILE_ROWS;
    s->num_q_blocks = (s->padded * size_of(s->packed_dtype) + BLOCK_BYTES - 1) / BLOCK_BYTES;
    s->q_block_bytes = s->max_rows * ROW_BYTES;
}

/* Rows behind the last request's. */
static void clear_padding(const ambidex_attention_args *args) {
    const int64_t row_bytes = args->num_heads * args->head_size * size_of(args->dtype);
    for (int64_t row = args->query_start[args->num_requests]; row < args->num_tokens; row++)
        memset(at_out(args->out, row * args->out_stride, args->dtype), 0, (size_t)row_bytes);
}

int32_t ambidex_paged_attention(const ambidex_attention_args *args) {
    attention_state s = {.args = args, .kernels = ambidex_kernels_of(args->level)};
    if (!s.kernels) return AMBIDEX_BAD_LEVEL;
    if (!is_dtype(args->dtype)) return AMBIDEX_BAD_DTYPE;
    int32_t status = check_shapes(args);
    if (status || args->num_tokens == 0) return status;
    if (!args->query_start || !args->context_lengths || !args->page_table) return AMBIDEX_BAD_POINTER;
    if ((status = check_requests(args))) return status;
    if (args->query_start[args->num_requests] > args->num_tokens) return AMBIDEX_BAD_SHAPE;
    if (!args->q || !args->k_pages || !args->v_pages || !args->out) return AMBIDEX_BAD_POINTER;
    clear_padding(args);
    prepare(&s);
    int64_t *first_task = ambidex_scratch(ROOM_CALL, (args->num_requests + 1) * 8);
    if (!first_task) return AMBIDEX_NO_MEMORY;
    s.first_task = first_task;
    first_task[0] = 0;
    for (int64_t b = 0; b < args->num_requests; b++) {
        int64_t queries = args->query_start[b + 1] - args->query_start[b];
        first_task[b + 1] =
            first_task[b] + (queries + s.queries_per_tile - 1) / s.queries_per_tile * args->num_kv_heads;
    }
    ambidex_run(first_task[args->num_requests], run_task, &s);
    return s.is_short_of_memory ? AMBIDEX_NO_MEMORY : AMBIDEX_OK;
}
