// Deep stacks for the threads of a process that is started with this library in LD_PRELOAD.
//
// The TPU compiler walks a long program by recursion, in threads whose stacks are of a few megabytes: ResNet-50 for
// v6e overflows them. Only the pages that are touched become memory.

#define _GNU_SOURCE
#include <features.h>

#ifdef __GLIBC__
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

static const size_t kStack = (size_t)2 << 30;

int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size) {
  int (*set)(pthread_attr_t *, size_t) = (int (*)(pthread_attr_t *, size_t))dlsym(RTLD_NEXT, __func__);
  return set(attributes, size < kStack ? kStack : size);
}
#endif
