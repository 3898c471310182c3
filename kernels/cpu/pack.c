/* Weights to and from panel16. */
#include "internal.h"

int64_t ambidex_packed_bytes(int64_t num_outputs, int64_t num_inputs, int32_t dtype) {
    if (!is_dtype(dtype)) return AMBIDEX_BAD_DTYPE;
    if (num_outputs < 0 || num_inputs < 1) return AMBIDEX_BAD_SHAPE;
    return round_up(num_outputs, PANEL) * padded_inputs(num_inputs, dtype) * size_of(dtype);
}

/* Both layouts are a transpose of 4-byte words: a float32, or a pair of bf16. */
static void transpose_panel(uint32_t *panel, const uint32_t *const *rows, int64_t num_words) {
    enum { STRIP = 16 };
    for (int64_t word = 0; word < num_words; word += STRIP) {
        int64_t end = least(word + STRIP, num_words);
        for (int row = 0; row < PANEL; row++)
            for (int64_t w = word; w < end; w++) panel[w * PANEL + row] = rows[row] ? rows[row][w] : 0;
    }
}

static void pack_tail(uint32_t *panel, const char *rows, int64_t row_stride, int64_t num_rows, int64_t num_inputs) {
    int64_t whole = num_inputs / 2, num_words = padded_inputs(num_inputs, AMBIDEX_BF16) / 2;
    for (int64_t word = whole; word < num_words; word++)
        for (int64_t row = 0; row < PANEL; row++) {
            uint16_t last = 0;
            if (row < num_rows && 2 * word < num_inputs)
                memcpy(&last, rows + (row * row_stride + 2 * word) * 2, sizeof last);
            panel[word * PANEL + row] = last;
        }
}

/* Rows of bf16 may begin at any even address: words are read through a type that allows it. */
static void pack_panel(char *panel, const char *rows, int64_t row_stride, int64_t num_rows, int64_t num_inputs,
                       int32_t dtype) {
    const uint32_t *pointers[PANEL];
    int64_t row_bytes = row_stride * size_of(dtype), num_words = num_inputs * size_of(dtype) / 4;
    uint32_t copy[PANEL][256];
    for (int64_t begin = 0; begin < num_words; begin += 256) {
        int64_t count = least(256, num_words - begin);
        for (int64_t row = 0; row < PANEL; row++) {
            pointers[row] = row < num_rows ? copy[row] : NULL;
            if (row < num_rows) memcpy(copy[row], rows + row * row_bytes + begin * 4, (size_t)count * 4);
        }
        transpose_panel((uint32_t *)panel + begin * PANEL, pointers, count);
    }
    if (dtype == AMBIDEX_BF16) pack_tail((uint32_t *)panel, rows, row_stride, num_rows, num_inputs);
}

int32_t ambidex_pack(void *panels, const void *rows, int64_t row_stride, int64_t row0, int64_t num_rows,
                     int64_t num_inputs, int32_t dtype) {
    if (!is_dtype(dtype)) return AMBIDEX_BAD_DTYPE;
    if (row0 < 0 || row0 % PANEL || num_rows < 0 || num_inputs < 1 || row_stride < num_inputs) return AMBIDEX_BAD_SHAPE;
    if (num_rows == 0) return AMBIDEX_OK;
    if (!panels || !rows) return AMBIDEX_BAD_POINTER;
    int64_t panel_bytes = PANEL * padded_inputs(num_inputs, dtype) * size_of(dtype);
    char *panel = (char *)panels + row0 / PANEL * panel_bytes;
    for (int64_t row = 0; row < num_rows; row += PANEL, panel += panel_bytes)
        pack_panel(panel, at(rows, row * row_stride, dtype), row_stride, least(PANEL, num_rows - row), num_inputs,
                   dtype);
    return AMBIDEX_OK;
}

static void unpack_row(char *out, const char *panels, int64_t row, int64_t num_inputs, int32_t dtype) {
    int64_t panel_bytes = PANEL * padded_inputs(num_inputs, dtype) * size_of(dtype);
    const char *word = panels + row / PANEL * panel_bytes + row % PANEL * 4;
    int64_t num_words = num_inputs * size_of(dtype) / 4;
    for (int64_t w = 0; w < num_words; w++) memcpy(out + w * 4, word + w * PANEL * 4, 4);
    if (dtype == AMBIDEX_BF16 && num_inputs % 2) memcpy(out + num_words * 4, word + num_words * PANEL * 4, 2);
}

static void unpack_one(void *pointer, int64_t index) {
    const ambidex_unpack_args *args = pointer;
    unpack_row(at_out(args->out, index * args->out_stride, args->dtype), args->panels, args->ids[index],
               args->num_inputs, args->dtype);
}

int32_t ambidex_unpack_rows(const ambidex_unpack_args *args) {
    if (!is_dtype(args->dtype)) return AMBIDEX_BAD_DTYPE;
    if (args->num_ids < 0 || args->num_inputs < 1 || args->out_stride < args->num_inputs) return AMBIDEX_BAD_SHAPE;
    if (args->num_ids == 0) return AMBIDEX_OK;
    if (!args->out || !args->panels || !args->ids) return AMBIDEX_BAD_POINTER;
    for (int64_t t = 0; t < args->num_ids; t++)
        if (args->ids[t] < 0 || args->ids[t] >= args->num_outputs) return AMBIDEX_BAD_SHAPE;
    ambidex_run(args->num_ids, unpack_one, (void *)args);
    return AMBIDEX_OK;
}
