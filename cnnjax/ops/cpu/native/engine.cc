#include "engine.h"

namespace cnnjax {

int thread_count = 0;

namespace {
constexpr size_t kKeptScratch = size_t{1} << 28;
constexpr size_t kAlignment = 4096;

struct Scratch {
  char* data = nullptr;
  size_t bytes = 0;
} kept;
}  // namespace

std::mutex& Turn::mutex() {
  static std::mutex* mutex = new std::mutex;  // never destroyed: threads may outlive static destructors
  return *mutex;
}

char* Turn::scratch(size_t bytes) {
  if (bytes > kept.bytes || kept.bytes > kKeptScratch) {
    std::free(kept.data);
    kept = {};
    size_t rounded = (bytes / kAlignment + 1) * kAlignment;
    kept.data = static_cast<char*>(std::aligned_alloc(kAlignment, rounded));
    check(kept.data != nullptr, "no memory for ", rounded, " bytes of scratch");
    kept.bytes = rounded;
  }
  return kept.data;
}

}  // namespace cnnjax

// Sets the number of threads and gives oneDNN's version, 100 * major + minor.
extern "C" __attribute__((visibility("default"))) int cnnjax_start(int threads) {
  cnnjax::thread_count = threads;
  dnnl::set_primitive_cache_capacity(0);  // each kernel keeps its own, bounded
  const dnnl_version_t* version = dnnl_version();
  return 100 * version->major + version->minor;
}

// The version of XLA's call interface that the kernels were compiled for, 1000 * major + minor.
extern "C" __attribute__((visibility("default"))) int cnnjax_interface() {
  return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR;
}
