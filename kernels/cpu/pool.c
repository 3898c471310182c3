/* The pool of threads: a job waits for its tasks, not for threads.
 *
 * A job is `count` tasks, dealt to shares in turn. A thread takes the tasks of its own share one by one, then what is
 * left of the others', and the caller goes on when all are done. A thread that the system is not running holds up
 * nothing but a task that it has begun: beside another busy process a job loses that process's share. (OpenMP's barrier
 * waits for every thread of its team.)
 *
 * A task is taken before the job is looked at. Who has taken one holds up its caller, so what then stands in `pool` is
 * that task's job; who comes late finds none left and has touched nothing but a counter. Between jobs `left` is at most
 * 0, and the next job's count is stored over whatever latecomers made of it.
 *
 * The pool's threads keep off the processor that the caller runs on, where there are others. A kernel that wakes a
 * thread beside its waker (a virtual machine's may, to leave processors idle) would have a job of two threads take the
 * time of one, and its spinning threads take that from the caller.
 *
 * Idle threads, and callers whose last tasks others hold, spin for about the time between two calls of a step and then
 * sleep. Who finds the pool taken, by another caller or by the job whose task he is, runs his job alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

enum {
    MAX_THREADS = 256,
    SPINS = 2000, /* pauses: 25 to 100 µs */
    STACK_BYTES = 1 << 20
};

typedef void (*task_body)(void *data, int64_t index);

static struct {
    atomic_llong left; /* tasks that nobody has taken; below 0 by latecomers */
    int64_t count;
} __attribute__((aligned(64))) shares[MAX_THREADS];

static struct {
    task_body body;
    void *data;
    atomic_int num_shares;
    atomic_uint num_posted; /* jobs so far: what idle threads wait on */
    atomic_int num_asleep;
    atomic_uint num_done __attribute__((aligned(64))); /* tasks: what the caller waits on */
    atomic_int is_awaited;                             /* by a caller that sleeps */
    atomic_flag is_taken __attribute__((aligned(64))); /* by a caller; what follows is his */
    pthread_t threads[MAX_THREADS];
    int num_started, num_placed; /* of the threads, and how many keep off … */
    int avoided;                 /* … this processor */
    int heeds_fork;
} pool = {.is_taken = ATOMIC_FLAG_INIT};

static atomic_int thread_count = 1;

int32_t ambidex_num_threads(void) { return atomic_load(&thread_count); }

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>

void ambidex_set_num_threads(int32_t num_threads) { atomic_store(&thread_count, (int)least(most(num_threads, 1), MAX_THREADS)); }

static void sleep_while(atomic_uint *word, unsigned value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void wake_all(atomic_uint *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

/* Has the threads keep off the caller's processor. Where there are fewer processors than threads, each may run anywhere. */
static void make_way(void) {
    const int here = sched_getcpu();
    if (here < 0 || here >= CPU_SETSIZE || (here == pool.avoided && pool.num_placed == pool.num_started)) return;
    pool.avoided = here;
    pool.num_placed = pool.num_started;
    cpu_set_t processors;
    if (sched_getaffinity(0, sizeof processors, &processors)) return;
    if (CPU_COUNT(&processors) > pool.num_started) CPU_CLR(here, &processors);
    for (int i = 0; i < pool.num_started; i++) pthread_setaffinity_np(pool.threads[i], sizeof processors, &processors);
}
#else
/* Without futexes nobody could sleep: the calling thread works alone. */
void ambidex_set_num_threads(int32_t num_threads) { (void)num_threads; }
static void sleep_while(atomic_uint *word, unsigned value) { (void)word, (void)value; }
static void wake_all(atomic_uint *word) { (void)word; }
static void make_way(void) {}
#endif

static void relax(void) {
#if AMBIDEX_X86
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Whether the word left `value` while this thread spun. */
static int changes_soon(atomic_uint *word, unsigned value) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(word, memory_order_acquire) != value) return 1;
        relax();
    }
    return 0;
}

/* Runs what is left of a share; returns how many tasks that were. */
static unsigned work_on(int share) {
    unsigned num_done = 0;
    while (atomic_load_explicit(&shares[share].left, memory_order_relaxed) > 0) {
        const int64_t left = atomic_fetch_sub_explicit(&shares[share].left, 1, memory_order_acquire);
        if (left <= 0) break;
        const int64_t turn = shares[share].count - left;
        pool.body(pool.data, turn * atomic_load_explicit(&pool.num_shares, memory_order_relaxed) + share);
        num_done++;
    }
    return num_done;
}

static void work(int number) {
    const int num_shares = atomic_load_explicit(&pool.num_shares, memory_order_relaxed);
    unsigned num_done = 0;
    for (int i = 0; i < num_shares; i++) num_done += work_on((number + i) % num_shares);
    if (!num_done) return;
    atomic_fetch_add(&pool.num_done, num_done);
    if (atomic_load(&pool.is_awaited)) wake_all(&pool.num_done);
}

static void *serve(void *pointer) {
    const int number = (int)(intptr_t)pointer;
    for (;;) {
        const unsigned seen = atomic_load(&pool.num_posted);
        if (number < atomic_load(&thread_count)) work(number);
        if (changes_soon(&pool.num_posted, seen)) continue;
        atomic_fetch_add(&pool.num_asleep, 1);
        sleep_while(&pool.num_posted, seen);
        atomic_fetch_sub(&pool.num_asleep, 1);
    }
    return NULL;
}

static void await_tasks(unsigned count) {
    unsigned done = atomic_load(&pool.num_done);
    while (done != count && changes_soon(&pool.num_done, done)) done = atomic_load(&pool.num_done);
    if (done == count) return;
    atomic_store(&pool.is_awaited, 1);
    while ((done = atomic_load(&pool.num_done)) != count) sleep_while(&pool.num_done, done);
    atomic_store(&pool.is_awaited, 0);
}

/* A forked child has the caller's thread alone, and the pool as any thread may have left it. */
static void forget_threads(void) {
    for (int share = 0; share < MAX_THREADS; share++) atomic_store(&shares[share].left, 0);
    atomic_store(&pool.num_asleep, 0);
    atomic_store(&pool.is_awaited, 0);
    pool.num_started = pool.num_placed = 0;
    atomic_flag_clear(&pool.is_taken);
}

/* Signals are for the program's own threads. Where no thread can be had, those that there are do the work. */
static void start_threads(int num_threads) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (!pool.heeds_fork) pool.heeds_fork = !pthread_atfork(NULL, NULL, forget_threads);
    if (!pool.heeds_fork || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool.num_started + 1 < num_threads; pool.num_started++) {
        pthread_t *thread = &pool.threads[pool.num_started];
        if (pthread_create(thread, &attributes, serve, (void *)(intptr_t)(pool.num_started + 1))) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static void deal(int64_t count, int num_shares) {
    for (int share = 0; share < num_shares; share++) {
        shares[share].count = (count - share + num_shares - 1) / num_shares;
        atomic_store_explicit(&shares[share].left, shares[share].count, memory_order_release);
    }
}

static void run_together(int64_t count, task_body body, void *data, int num_shares) {
    pool.body = body;
    pool.data = data;
    atomic_store_explicit(&pool.num_done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.num_shares, num_shares, memory_order_relaxed);
    deal(count, num_shares);
    atomic_fetch_add(&pool.num_posted, 1);
    if (atomic_load(&pool.num_asleep)) wake_all(&pool.num_posted);
    work(0);
    await_tasks((unsigned)count);
}

void ambidex_run(int64_t count, void (*body)(void *, int64_t), void *data) {
    const int num_threads = (int)least(atomic_load(&thread_count), count);
    if (num_threads < 2 || count > UINT_MAX || atomic_flag_test_and_set(&pool.is_taken)) {
        for (int64_t index = 0; index < count; index++) body(data, index);
        return;
    }
    if (pool.num_started + 1 < num_threads) start_threads(num_threads);
    make_way();
    run_together(count, body, data, num_threads);
    atomic_flag_clear(&pool.is_taken);
}
