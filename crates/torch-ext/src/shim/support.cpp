// Texts, versions, devices, memory and generators.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Version.h>
#include <c10/core/DeviceGuard.h>
#include <torch/headeronly/version.h>

#include <mutex>

#include "shim.h"

namespace te {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& chosen = [&]() -> const Kernels& {
    const bool fused = __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const char* forced = std::getenv("TORCH_EXT_ISA");
    const std::string most = forced ? forced : "avx512";
    if (fused && wide && most == "avx512") return kernels_avx512;
    if (fused && most != "baseline") return kernels_avx2;
    return kernels_baseline;
  }();
  return chosen;
#else
  return kernels_baseline;
#endif
}

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default: TORCH_CHECK(false, "expected float, bfloat16 or half, got ", t.scalar_type());
  }
}

static at::Generator generator(int64_t device) {
  auto& context = at::globalContext();
  if (device < 0) return context.defaultGenerator(at::Device(at::kCPU));
  return context.defaultGenerator(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
}

static int64_t device_count() {
  const auto accelerator = at::accelerator::getAccelerator();
  return accelerator == at::kCUDA ? at::accelerator::deviceCount() : 0;
}

// The storage of a tensor that is all of it.
static c10::StorageImpl* whole_storage(const Tensor& tensor) {
  TORCH_CHECK(tensor.defined() && tensor.has_storage(), "the tensor has no memory of its own");
  TORCH_CHECK(tensor.storage_offset() == 0 && tensor.is_contiguous(), "the tensor is a view");
  return tensor.storage().unsafeGetStorageImpl();
}

}  // namespace te

using namespace te;

extern "C" {

char* te_text(const char* text, size_t len) {
  char* copy = static_cast<char*>(std::malloc(len + 1));
  if (!copy) std::abort();
  std::memcpy(copy, text, len);
  copy[len] = 0;
  return copy;
}

void te_free(char* text) { std::free(text); }

const char* te_version() { return TORCH_VERSION; }

const char* te_kernel_isa() { return kernels().isa; }

char* te_cpu_capability(char** out) {
  return guarded([&] { *out = text(at::get_cpu_capability()); });
}

char* te_set_device(int64_t device) {
  return guarded([&] { at::accelerator::setDeviceIndex(static_cast<c10::DeviceIndex>(device)); });
}

char* te_device_count(int64_t* out) {
  return guarded([&] { *out = device_count(); });
}

char* te_memory_stats(int64_t device, TeMemoryStats* out) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    // The allocator of a device that nothing used yet has no statistics.
    if (at::getDeviceAllocator(at::kCUDA)->initialized()) {
      const auto stats = at::accelerator::getDeviceStats(index);
      const auto& allocated = stats.allocated_bytes[0];
      const auto& reserved = stats.reserved_bytes[0];
      *out = {allocated.current, allocated.peak, reserved.current, reserved.peak, 0, 0,
              stats.num_alloc_retries, stats.num_ooms};
    }
    const auto [free, total] = at::accelerator::getMemoryInfo(index);
    out->free = static_cast<int64_t>(free);
    out->total = static_cast<int64_t>(total);
  });
}

char* te_reset_peak_stats(int64_t device) {
  return guarded([&] { at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

char* te_empty_cache() {
  return guarded([&] {
    if (device_count() > 0 && at::getDeviceAllocator(at::kCUDA)->initialized())
      at::accelerator::emptyCache();
  });
}

char* te_storage_release(Tensor* tensor) {
  return guarded([&] {
    auto* storage = whole_storage(*tensor);
    storage->set_data_ptr_noswap(at::DataPtr(nullptr, tensor->device()));
    storage->set_nbytes(0);
  });
}

char* te_storage_restore(Tensor* tensor) {
  return guarded([&] {
    auto* storage = whole_storage(*tensor);
    const auto bytes = static_cast<size_t>(tensor->numel() * tensor->element_size());
    if (storage->nbytes() == bytes) return;
    // CUDA's allocator takes the device that is current.
    const c10::DeviceGuard on_device(tensor->device());
    storage->set_data_ptr_noswap(at::GetAllocator(tensor->device().type())->allocate(bytes));
    storage->set_nbytes(bytes);
  });
}

char* te_generator_get(int64_t device, Tensor** out) {
  return guarded([&] {
    auto gen = generator(device);
    const std::lock_guard<std::mutex> lock(gen.mutex());
    *out = own(gen.get_state());
  });
}

char* te_generator_set(int64_t device, Tensor* state) {
  return guarded([&] {
    auto gen = generator(device);
    const std::lock_guard<std::mutex> lock(gen.mutex());
    gen.set_state(*state);
  });
}

char* te_generator_draw(int64_t device, uint64_t* out) {
  return guarded([&] {
    TORCH_CHECK(device < 0, "only the CPU's generator can be drawn from");
    auto gen = generator(device);
    const std::lock_guard<std::mutex> lock(gen.mutex());
    *out = at::check_generator<at::CPUGeneratorImpl>(gen)->random64();
  });
}

}  // extern "C"
