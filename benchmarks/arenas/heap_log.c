/* Logs the sizes of large allocations while it is armed; preloaded into the process whose engine is looked at. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MOST 65536
#define PLAIN 1
#define ALIGNED 2

static atomic_int armed, count;
static size_t least = 1024, sizes[MOST];

static int wanted;

void heap_log_start(size_t smallest, int kinds) { least = smallest; wanted = kinds; atomic_store(&count, 0); atomic_store(&armed, 1); }
int heap_log_stop(void) { atomic_store(&armed, 0); int n = atomic_load(&count); return n < MOST ? n : MOST; }
const size_t *heap_log_sizes(void) { return sizes; }

static void note(size_t size) {
    if (!atomic_load(&armed) || size < least) return;
    int place = atomic_fetch_add(&count, 1);
    if (place < MOST) sizes[place] = size;
}

extern void *__libc_malloc(size_t);
extern void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) { if (wanted & PLAIN) note(size); return __libc_malloc(size); }
void *memalign(size_t alignment, size_t size) { if (wanted & ALIGNED) note(size); return __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { if (wanted & ALIGNED) note(size); return __libc_memalign(alignment, size); }
int posix_memalign(void **where, size_t alignment, size_t size) {
    if (wanted & ALIGNED) note(size);
    void *got = __libc_memalign(alignment, size);
    if (!got) return 12;
    *where = got;
    return 0;
}
