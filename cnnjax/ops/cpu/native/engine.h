// What all kernels share: checks that end in an FFI error, threads, scratch memory, the cache of primitives.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <list>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace cnnjax {

namespace ffi = xla::ffi;
using Dims = std::vector<int64_t>;

// A wrong call: shapes, dtypes or attributes that do not belong together.
struct BadCall : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What is right, but has no kernel on this processor.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw BadCall("cnnjax kernel: " + text.str());
}

inline std::string show(const Dims& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

// No axis and no product of axes may come near the 32-bit indices inside the generated code.
constexpr int64_t kLargestAxis = int64_t{1} << 30;
constexpr int64_t kLargestArray = int64_t{1} << 40;

template <class Buffer>
Dims shape(const char* name, Buffer&& buffer) {
  auto span = buffer.dimensions();
  Dims dims(span.begin(), span.end());
  check(!dims.empty(), name, " is a single number, not an array");
  int64_t count = 1;
  for (int64_t size : dims) {
    check(size > 0 && size <= kLargestAxis, name, " ", show(dims), ": an axis must have 1 to 2^30 entries");
    count *= size;
    check(count <= kLargestArray, name, " ", show(dims), ": too large");
  }
  return dims;
}

template <class Buffer>
Dims shape(const char* name, Buffer&& buffer, size_t rank) {
  Dims dims = shape(name, buffer);
  check(dims.size() == rank, name, " ", show(dims), ": must have ", rank, " axes");
  return dims;
}

inline dnnl::memory::data_type compute_type(const char* name, ffi::DataType type) {
  check(type == ffi::DataType::F32 || type == ffi::DataType::BF16, name, " has element type ",
        static_cast<int>(type), ": must be float32 or bfloat16");
  return type == ffi::DataType::F32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

inline void check_type(const char* name, ffi::DataType type, ffi::DataType wanted) {
  check(type == wanted, name, " has element type ", static_cast<int>(type), ", not ", static_cast<int>(wanted));
}

inline void check_shape(const char* name, const Dims& dims, const Dims& wanted) {
  check(dims == wanted, name, " ", show(dims), ": must be ", show(wanted));
}

inline dnnl::engine& cpu() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

extern int thread_count;  // 0: not set, OpenMP's own default

// So many threads for what is called meanwhile, or the fewer that OpenMP grants: oneDNN divides sums among the threads
// it was promised, and with others missing it adds what nobody wrote, or waits for them.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()), dynamic_(omp_get_dynamic()) {
    omp_set_dynamic(0);
    omp_set_num_threads(granted(count));
  }
  ~Threads() {
    omp_set_num_threads(before_);
    omp_set_dynamic(dynamic_);
  }

 private:
  static int granted(int count) {
    bool alone = omp_in_parallel() || omp_get_max_active_levels() < 1;
    return alone ? 1 : std::min(count, omp_get_thread_limit());
  }

  int before_, dynamic_;
};

// One kernel runs at a time, on `thread_count` threads: executions of several devices or of independent
// operations take turns instead of putting more threads on the cores than there are.
class Turn {
 public:
  Turn() : lock_(mutex()), threads_(thread_count > 0 ? thread_count : omp_get_max_threads()) {}
  // At least that many bytes, aligned, until the next call; kept between turns up to a limit.
  char* scratch(size_t bytes);

 private:
  static std::mutex& mutex();
  std::lock_guard<std::mutex> lock_;
  Threads threads_;
};

// Remembers the most recently used entries. Only used inside a `Turn`.
template <class Entry>
class Recent {
 public:
  explicit Recent(size_t capacity) : capacity_(capacity) {}
  Entry& get(const std::string& key, const std::function<Entry()>& make) {
    auto found = index_.find(key);
    if (found != index_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      return order_.front().second;
    }
    order_.emplace_front(key, make());
    index_[key] = order_.begin();
    if (order_.size() > capacity_) {
      index_.erase(order_.back().first);
      order_.pop_back();
    }
    return order_.front().second;
  }

 private:
  size_t capacity_;
  std::list<std::pair<std::string, Entry>> order_;
  std::unordered_map<std::string, typename std::list<std::pair<std::string, Entry>>::iterator> index_;
};

constexpr size_t kPrimitives = 512;

inline std::string cache_key(std::initializer_list<Dims> parts) {
  std::string key;
  for (const Dims& part : parts) {
    int64_t size = static_cast<int64_t>(part.size());
    key.append(reinterpret_cast<const char*>(&size), sizeof size);
    key.append(reinterpret_cast<const char*>(part.data()), part.size() * sizeof(int64_t));
  }
  return key;
}

// Runs a kernel and turns whatever it throws into an error of the FFI.
template <class Kernel>
ffi::Error guarded(Kernel&& kernel) {
  try {
    kernel();
    return ffi::Error::Success();
  } catch (const BadCall& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal("oneDNN status " + std::to_string(error.status) + ": " + error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace cnnjax
