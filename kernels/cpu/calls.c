/* Recorded calls, run in a row. */
#include "internal.h"

static int32_t run_call(const ambidex_call *call) {
    switch (call->function) {
    case AMBIDEX_LINEAR: return ambidex_linear(call->args);
    case AMBIDEX_RMS_NORM: return ambidex_rms_norm(call->args);
    case AMBIDEX_QKV_ROPE_STORE: return ambidex_qkv_rope_store(call->args);
    case AMBIDEX_PAGED_ATTENTION: return ambidex_paged_attention(call->args);
    case AMBIDEX_UNPACK_ROWS: return ambidex_unpack_rows(call->args);
    case AMBIDEX_SAMPLE: return ambidex_sample(call->args);
    default: return AMBIDEX_BAD_POINTER;
    }
}

int32_t ambidex_run_calls(const ambidex_call *calls, int64_t num_calls) {
    for (int64_t i = 0; i < num_calls; i++) {
        const int32_t status = run_call(&calls[i]);
        if (status) return status;
    }
    return AMBIDEX_OK;
}
