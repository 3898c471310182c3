/* Scratch memory, huge pages, levels, bandwidth. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

int32_t ambidex_interface_version(void) { return AMBIDEX_INTERFACE_VERSION; }

static __thread struct {
    void *memory;
    int64_t num_bytes;
} rooms[NUM_ROOMS];

enum { HUGE_PAGE = 2 << 20 };

void *ambidex_scratch(int room, int64_t num_bytes) {
    if (rooms[room].num_bytes < num_bytes) {
        free(rooms[room].memory);
        rooms[room].num_bytes = 0;
        if (num_bytes >= HUGE_PAGE) num_bytes = round_up(num_bytes, HUGE_PAGE);
        if (posix_memalign(&rooms[room].memory, num_bytes >= HUGE_PAGE ? HUGE_PAGE : 4096, (size_t)num_bytes))
            rooms[room].memory = NULL;
        if (!rooms[room].memory) return NULL;
        rooms[room].num_bytes = num_bytes;
        if (num_bytes >= HUGE_PAGE) ambidex_advise_huge_pages(rooms[room].memory, num_bytes);
    }
    return rooms[room].memory;
}

void ambidex_release_scratch(void) {
    for (int room = 0; room < NUM_ROOMS; room++) {
        free(rooms[room].memory);
        rooms[room].memory = NULL;
        rooms[room].num_bytes = 0;
    }
}

int32_t ambidex_advise_huge_pages(void *buffer, int64_t num_bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t begin = ((uintptr_t)buffer + 4095) & ~(uintptr_t)4095,
              end = ((uintptr_t)buffer + (uintptr_t)num_bytes) & ~(uintptr_t)4095;
    if (end <= begin) return 0;
    return madvise((void *)begin, end - begin, MADV_HUGEPAGE) ? -errno : 0;
#else
    (void)buffer, (void)num_bytes;
    return -ENOSYS;
#endif
}

#if AMBIDEX_X86
#include <cpuid.h>

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#if AMBIDEX_HAS_AMX
static int tiles_permitted(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

int32_t ambidex_cpu_level(void) {
    enum { VECTOR_256 = 0x6, VECTOR_512 = 0xe6, TILES = 0x60000 };
    uint32_t a, b, c, d, features_b, features_d, has_bf16 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return AMBIDEX_GENERIC;
    int has_base = (c >> 12 & 1) && (c >> 27 & 1) && (c >> 28 & 1) && (c >> 29 & 1); /* fma, osxsave, avx, f16c */
    if (!has_base || !__get_cpuid_count(7, 0, &a, &features_b, &c, &features_d)) return AMBIDEX_GENERIC;
    uint32_t max_subleaf = a;
    uint64_t state = enabled_state();
    if ((state & VECTOR_256) != VECTOR_256 || !(features_b >> 5 & 1)) return AMBIDEX_GENERIC;
    if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) has_bf16 = a >> 5 & 1;
    const uint32_t wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* f, dq, bw, vl */
    if ((state & VECTOR_512) != VECTOR_512 || (features_b & wide) != wide || !has_bf16) return AMBIDEX_AVX2;
#if AMBIDEX_HAS_AMX
    const uint32_t tiles = 1u << 22 | 1u << 24; /* amx-bf16, amx-tile */
    if ((state & TILES) == TILES && (features_d & tiles) == tiles && tiles_permitted()) return AMBIDEX_AMX;
#endif
    return AMBIDEX_AVX512_BF16;
}
#else
int32_t ambidex_cpu_level(void) { return AMBIDEX_GENERIC; }
#endif

const kernel_set *ambidex_kernels_of(int32_t level) {
    switch (level) {
    case AMBIDEX_GENERIC: return &ambidex_generic;
#if AMBIDEX_X86
    case AMBIDEX_AVX2: return &ambidex_avx2;
    case AMBIDEX_AVX512_BF16: return &ambidex_avx512;
#endif
#if AMBIDEX_HAS_AMX
    case AMBIDEX_AMX: return &ambidex_amx;
#endif
    default: return NULL;
    }
}

typedef struct {
    const kernel_set *kernels;
    const char *buffer;
    int64_t num_bytes, part_bytes;
    _Atomic uint64_t sum;
} read_state;

static void read_part(void *pointer, int64_t index) {
    read_state *state = pointer;
    int64_t begin = index * state->part_bytes;
    uint64_t sum = state->kernels->read(state->buffer + begin, least(state->part_bytes, state->num_bytes - begin));
    atomic_fetch_xor(&state->sum, sum);
}

uint64_t ambidex_read_bandwidth(int32_t level, const void *buffer, int64_t num_bytes) {
    const kernel_set *kernels = ambidex_kernels_of(level);
    if (!kernels || !buffer || num_bytes <= 0) return 0;
    const int64_t num_parts = 16 * ambidex_num_threads();
    const int64_t part_bytes = round_up((num_bytes + num_parts - 1) / num_parts, 4096);
    read_state state = {
        .kernels = kernels, .buffer = buffer, .num_bytes = num_bytes / 64 * 64, .part_bytes = part_bytes};
    atomic_init(&state.sum, 0);
    ambidex_run((state.num_bytes + part_bytes - 1) / part_bytes, read_part, &state);
    return atomic_load(&state.sum);
}
