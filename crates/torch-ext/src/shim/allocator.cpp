// A CPU allocator that keeps what is freed for the next tensor. The C library maps every large tensor
// anew, and the system then clears each of its pages, which takes longer than many operations do.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>

#include "shim.h"

namespace te {

// Smaller ones are left to the allocator that was there before.
constexpr size_t kSmallest = 64 << 10;
constexpr size_t kLargest = size_t{1} << 48;
constexpr size_t kHugePage = 2 << 20;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A size of which there are eight between two powers of two, so that tensors of about the same size serve
// one another. What is rounded up is never touched: it takes no memory but the rest of a page.
static size_t size_class(size_t n) {
  size_t step = kSmallest / 8;
  while (step * 16 < n) step *= 2;
  return round_up(n, step);
}

class CachingAllocator final : public c10::Allocator {
 public:
  explicit CachingAllocator(c10::Allocator* small) : small_(small) {}

  c10::DataPtr allocate(size_t n) override {
    if (n < kSmallest) return small_->allocate(n);
    TORCH_CHECK_WITH(OutOfMemoryError, n <= kLargest, "out of memory: no ", n, " bytes for a tensor");
    void* data = take(size_class(n));
    return {data, data, &give_back, at::Device(at::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  TeCpuMemory stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(used_), static_cast<int64_t>(peak_), static_cast<int64_t>(used_ + kept_)};
  }

  void reset_peak() {
    const std::lock_guard<std::mutex> lock(mutex_);
    peak_ = used_;
  }

  void release_kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    shrink_to(0);
  }

  static std::atomic<CachingAllocator*> installed;

 private:
  struct Kept {
    void* data;
    uint64_t since;
  };

  void* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* data;
    // Not much more than asked for: a large one is worth keeping for a large tensor.
    const auto fitting = free_.lower_bound(size);
    if (fitting != free_.end() && fitting->first <= size + size / 4) {
      size = fitting->first;
      data = fitting->second.data;
      kept_ -= size;
      free_.erase(fitting);
    } else {
      data = fresh(size);
    }
    sizes_[data] = size;
    used_ += size;
    peak_ = std::max(peak_, used_);
    limit_ = std::max(limit_, bound(used_));
    return data;
  }

  // Used and kept memory stay below this where the most that was used at a time is `most`.
  static size_t bound(size_t most) { return most + most / 16; }

  void* fresh(size_t size) {
    const size_t limit = std::max(limit_, bound(used_ + size));
    if (used_ + size + kept_ > limit) shrink_to(limit - used_ - size);
    void* data = map(size);
    if (!data) {
      shrink_to(0);
      data = map(size);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, data, "out of memory: no ", size, " bytes for a tensor");
    return data;
  }

  static void give_back(void* data) {
    if (!data) return;
    CachingAllocator& self = *installed.load();
    const std::lock_guard<std::mutex> lock(self.mutex_);
    const auto found = self.sizes_.find(data);
    if (found == self.sizes_.end()) return self.small_->raw_deleter()(data);
    const size_t size = found->second;
    self.sizes_.erase(found);
    self.used_ -= size;
    try {
      self.free_.emplace(size, Kept{data, self.clock_++});
      self.kept_ += size;
    } catch (const std::bad_alloc&) {
      munmap(data, size);
    }
  }

  // Returns what was kept longest to the system.
  void shrink_to(size_t kept) {
    while (kept_ > kept) {
      auto oldest = free_.begin();
      for (auto i = free_.begin(); i != free_.end(); ++i)
        if (i->second.since < oldest->second.since) oldest = i;
      munmap(oldest->second.data, oldest->first);
      kept_ -= oldest->first;
      free_.erase(oldest);
    }
  }

  static void* map(size_t size) {
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
    // Fewer misses of the address cache, where the system grants it.
    if (size >= kHugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
    return data;
  }

  c10::Allocator* small_;
  std::mutex mutex_;
  std::multimap<size_t, Kept> free_;  // by size
  std::unordered_map<void*, size_t> sizes_;  // in use
  size_t used_ = 0, peak_ = 0, kept_ = 0;
  size_t limit_ = 0;
  uint64_t clock_ = 0;
};

std::atomic<CachingAllocator*> CachingAllocator::installed = nullptr;

}  // namespace te

using namespace te;

extern "C" {

void te_keep_freed() noexcept {
  static std::once_flag once;
  std::call_once(once, [] {
    auto* allocator = new CachingAllocator(c10::GetCPUAllocator());
    CachingAllocator::installed = allocator;
    c10::SetCPUAllocator(allocator, 1);
  });
}

TeCpuMemory te_cpu_memory() noexcept {
  CachingAllocator* allocator = CachingAllocator::installed;
  return allocator ? allocator->stats() : TeCpuMemory{};
}

void te_cpu_reset_peak() noexcept {
  if (CachingAllocator* allocator = CachingAllocator::installed) allocator->reset_peak();
}

void te_cpu_release() noexcept {
  if (CachingAllocator* allocator = CachingAllocator::installed) allocator->release_kept();
}

}  // extern "C"
