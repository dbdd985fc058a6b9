// Large blocks of memory used again, for a process that is started with this library in LD_PRELOAD.
//
// XLA:CPU allocates the workspace of a step anew at each step, up to gigabytes that the C library takes from
// the system and gives back, and that the system clears page by page. Here the last freed blocks, at most 1 GiB
// and one block of more than that, wait for an allocation of about their size. They remain the C library's own
// blocks, so whatever else looks at them (realloc, malloc_usable_size) needs to know nothing.

#include <features.h>

#ifdef __GLIBC__
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

void __libc_free(void *block);
void *__libc_malloc(size_t size);
void *__libc_memalign(size_t alignment, size_t size);

enum { SLOTS = 8 };
static const size_t kLarge = (size_t)4 << 20, kMost = (size_t)1 << 30;
static const size_t kAlignment = 64;  // an array of NumPy's that has it goes to XLA without a copy

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *kept[SLOTS];  // the oldest first
static int count = 0;
static size_t bytes = 0;  // of all that are kept

static void *huge = NULL;  // the one block of more than kMost that waits
static int in_use = 0, surplus = 0;  // such blocks in use; how many of them are given back when they are freed

// A forked process must not inherit the lock of a thread that it does not have.
static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
__attribute__((constructor)) static void guard_forks(void) { pthread_atfork(lock, unlock, unlock); }

static void *removed(int i) {
  void *block = kept[i];
  bytes -= malloc_usable_size(block);
  for (--count; i < count; ++i) kept[i] = kept[i + 1];
  return block;
}

static int fits(void *block, size_t alignment, size_t size) {
  size_t usable = malloc_usable_size(block);
  return usable >= size && usable - size <= size / 8 && (uintptr_t)block % alignment == 0;
}

// A kept block that fits, or NULL; then the oldest one goes, as what is asked for has changed.
static void *reused(size_t alignment, size_t size) {
  void *found = NULL, *stale = NULL;
  lock();
  for (int i = count - 1; i >= 0 && !found; --i)
    if (fits(kept[i], alignment, size)) found = removed(i);
  if (!found && count) stale = removed(0);
  unlock();
  __libc_free(stale);
  return found;
}

// The one that waits, or NULL. Where a step asks for its workspace before that of the last step is free, the new
// one waits later and the old one never does, so that both are touched for no longer than without this library.
static void *reused_huge(size_t alignment, size_t size) {
  lock();
  void *found = huge, *stale = NULL;
  if (found && !fits(found, alignment, size)) stale = found, found = NULL;
  huge = NULL;
  if (!found && in_use) ++surplus;
  ++in_use;
  unlock();
  __libc_free(stale);
  return found;
}

static void free_huge(void *block) {
  lock();
  if (in_use) --in_use;
  if (surplus) {
    --surplus;
  } else {
    void *before = huge;
    huge = block, block = before;
  }
  unlock();
  __libc_free(block);
}

static void free_all(void) {
  lock();
  while (count) __libc_free(removed(count - 1));
  __libc_free(huge);
  huge = NULL;
  unlock();
}

static void *allocate(size_t alignment, size_t size) {
  void *block = NULL;
  if (size > kMost) {
    block = reused_huge(alignment, size);
  } else if (size >= kLarge) {
    block = reused(alignment, size);
  }
  if (!block) block = __libc_memalign(alignment, size);
  if (block) return block;
  free_all();
  return __libc_memalign(alignment, size);
}

void *malloc(size_t size) {
  int waits = size >= kLarge && size <= kMost;  // a larger one is not a step's workspace, and is not counted as one
  return waits ? allocate(kAlignment, size) : __libc_malloc(size);
}

void *aligned_alloc(size_t alignment, size_t size) { return allocate(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size) {
  if (alignment % sizeof(void *) || alignment & (alignment - 1) || !alignment) return EINVAL;
  void *found = allocate(alignment, size);
  if (!found) return ENOMEM;
  *block = found;
  return 0;
}

void free(void *block) {
  size_t size = block ? malloc_usable_size(block) : 0;
  if (size > kMost) {
    free_huge(block);
  } else if (size >= kLarge) {
    lock();
    while (count == SLOTS || bytes + size > kMost) __libc_free(removed(0));
    kept[count++] = block;
    bytes += size;
    unlock();
  } else {
    __libc_free(block);
  }
}
#endif
