// Deep stacks for the threads of a process that is started with this library in LD_PRELOAD.
//
// The TPU compiler walks a long program by recursion, in threads whose stacks are of a few megabytes: ResNet-50 for
// v6e overflows them. Only the pages that are touched become memory; where the address space is limited, stacks stay as
// they are.

#define _GNU_SOURCE
#include <features.h>

#ifdef __GLIBC__
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/resource.h>

static const size_t kStack = (size_t)2 << 30;

int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size) {
  int (*set)(pthread_attr_t *, size_t) = (int (*)(pthread_attr_t *, size_t))dlsym(RTLD_NEXT, __func__);
  struct rlimit space;
  const int is_free = getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur == RLIM_INFINITY;
  return set(attributes, is_free && size < kStack ? kStack : size);
}
#endif
