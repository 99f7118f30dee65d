// What every file of the shim shares: the error convention and tensor lists.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "kernels.h"

// Mirrored in ffi.rs.
struct TeAttentionOptions {
  double scale;
  double dropout_p;
  uint64_t dropout_seed;
  int64_t window;  // 0: none
  int64_t max_len;
};

struct TeMemoryStats {
  int64_t allocated, peak_allocated, reserved, peak_reserved, free, total, alloc_retries, ooms;
};

struct TeCpuMemory {
  int64_t allocated, peak_allocated, reserved;
};

extern "C" char* te_text(const char* text, size_t len);

namespace te {

using at::Tensor;
using List = Tensor* const*;

inline char* text(const std::string& s) { return te_text(s.data(), s.size()); }

// Runs f; null if it returned, a message if it threw.
template <class F>
char* guarded(F f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& e) {
    return text(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return text(e.what());
  } catch (...) {
    return text("unknown C++ exception");
  }
}

inline std::vector<Tensor> list(List tensors, size_t n) {
  std::vector<Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; i++) out.push_back(tensors[i] ? *tensors[i] : Tensor());
  return out;
}

inline Tensor* own(Tensor t) { return t.defined() ? new Tensor(std::move(t)) : nullptr; }

// A tensor [rows, heads, dim] as the kernels take it, its last dimension dense.
inline Heads heads(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }
inline Tensor dense(const Tensor& t) { return t.stride(2) == 1 ? t : t.contiguous(); }

// The kernels for this machine.
const Kernels& kernels();

// The kernels' name of a tensor's dtype.
Dtype dtype_of(const Tensor& t);

}  // namespace te
