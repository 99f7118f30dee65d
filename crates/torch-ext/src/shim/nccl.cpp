// NCCL's collectives as a backend of c10d's. NCCL is a C library of its own, which the caller has loaded: libtorch's own
// backend for it is in libtorch_cuda.so, whose headers need CUDA's.
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <future>
#include <thread>

#include "collective.h"
#include "shim.h"

namespace te {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPatience{5000};
constexpr int kSuccess = 0, kInProgress = 7;
constexpr int kReduceSum = 0, kReduceMax = 2;

struct UniqueId {
  char bytes[128];
};

// The part of NCCL's options that there has been since 2.14; `version` says that there is no more of it.
struct Config {
  size_t size = sizeof(Config);
  uint32_t magic = 0xcafebeef, version = 21400;
  int32_t blocking = 0;
};

// Functions of nccl.h; mirrored in ffi.rs.
struct Functions {
  const char* (*error_string)(int result);
  const char* (*last_error)(void* comm);
  int (*unique_id)(UniqueId* id);
  int (*init)(void** comm, int size, UniqueId id, int rank, Config* config);
  int (*async_error)(void* comm, int* result);
  int (*finalize)(void* comm);
  int (*destroy)(void* comm);
  int (*abort)(void* comm);
  int (*all_reduce)(const void* send, void* recv, size_t count, int dtype, int op, void* comm, void* stream);
  int (*broadcast)(const void* send, void* recv, size_t count, int dtype, int root, void* comm, void* stream);
  int (*all_gather)(const void* send, void* recv, size_t count, int dtype, void* comm, void* stream);
  int (*reduce_scatter)(const void* send, void* recv, size_t count, int dtype, int op, void* comm, void* stream);
};

static int dtype(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kChar: return 0;
    case at::kByte: return 1;
    case at::kInt: return 2;
    case at::kLong: return 4;
    case at::kHalf: return 6;
    case at::kFloat: return 7;
    case at::kDouble: return 8;
    case at::kBFloat16: return 9;
    default: TORCH_CHECK(false, "NCCL takes no ", t.scalar_type());
  }
}

static int reduction(const c10d::ReduceOp& op) { return op == c10d::ReduceOp::SUM ? kReduceSum : kReduceMax; }

// First without giving the processor away, for operations of microseconds.
class Pause {
 public:
  void operator()() {
    if (++turns_ < 200) return std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

 private:
  int turns_ = 0;
};

// A communicator, which is not to be waited for by way of NCCL itself: there a missing rank ends in no error, but in no end.
class Communicator {
 public:
  Communicator(const Functions& nccl, std::chrono::milliseconds timeout) : nccl_(nccl), timeout_(timeout) {}
  Communicator(const Communicator&) = delete;

  ~Communicator() {
    if (!comm_) return;
    // The others may still be reading from this rank; if they are gone there is no sense in waiting long.
    try {
      settle(nccl_.finalize(comm_), std::min(timeout_, kPatience));
      end(nccl_.destroy);
    } catch (const std::exception&) {
      give_up();
    }
  }

  void init(int rank, int size, c10d::Store& store) {
    constexpr const char* key = "nccl";
    UniqueId id{};
    if (rank == 0) {
      check(nccl_.unique_id(&id));
      store.set(key, std::vector<uint8_t>(id.bytes, id.bytes + sizeof id.bytes));
    } else {
      const auto bytes = store.get(key);
      TORCH_CHECK(bytes.size() == sizeof id.bytes, "rank 0's NCCL is another one");
      std::memcpy(id.bytes, bytes.data(), sizeof id.bytes);
    }
    Config config;
    const int result = nccl_.init(&comm_, size, id, rank, &config);
    settle(result, timeout_);
  }

  // Runs what begins an operation and waits until it has begun.
  template <class F>
  void begin(F call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_alive();
    settle(call(comm_), timeout_);
  }

  // Waits until `done`, an operation's end.
  template <class F>
  void wait(F done) {
    const auto last = Clock::now() + timeout_;
    for (Pause pause; !done(); pause()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      check_alive();
      const int result = state();
      if (result != kSuccess && result != kInProgress) fail(result);
      if (Clock::now() >= last) time_out();
    }
    // Of what was given up the numbers are wrong.
    const std::lock_guard<std::mutex> lock(mutex_);
    check_alive();
  }

  // From any thread: ends what is under way and what another thread waits for.
  void abort() {
    aborted_ = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    give_up();
  }

 private:
  void check_alive() const { TORCH_CHECK(comm_ && !aborted_, "NCCL was given up after an error"); }

  int state() {
    int result = kSuccess;
    const int asked = nccl_.async_error(comm_, &result);
    return asked == kSuccess ? result : asked;
  }

  void settle(int result, std::chrono::milliseconds timeout) {
    const auto end = Clock::now() + timeout;
    for (Pause pause; result == kInProgress; pause()) {
      if (aborted_) give_up();
      check_alive();
      result = state();
      if (result == kInProgress && Clock::now() > end) time_out();
    }
    check(result);
  }

  void check(int result) {
    if (result != kSuccess) fail(result);
  }

  [[noreturn]] void fail(int result) {
    std::string message = std::string("NCCL: ") + nccl_.error_string(result);
    const char* detail = nccl_.last_error(comm_);
    if (detail && *detail) message += std::string(": ") + detail;
    give_up();
    TORCH_CHECK(false, message);
  }

  [[noreturn]] void time_out() {
    give_up();
    TORCH_CHECK(false, "NCCL timed out after ", timeout_.count(), " ms");
  }

  // Ends what is under way, so that nothing waits for it for ever.
  void give_up() noexcept { end(nccl_.abort); }

  // Parts with the communicator. Either way of NCCL's waits for the other ranks of the machine, however long they live: it is
  // left to a thread and waited for a little.
  void end(int (*how)(void* comm)) noexcept {
    void* comm = std::exchange(comm_, nullptr);
    if (!comm) return;
    try {
      std::promise<void> ended;
      const auto wait = ended.get_future();
      std::thread([how, comm, ended = std::move(ended)]() mutable {
        how(comm);
        ended.set_value();
      }).detach();
      wait.wait_for(kPatience);
    } catch (const std::exception&) {
      // No thread to be had: the process's end parts with it.
    }
  }

  const Functions nccl_;
  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::atomic<bool> aborted_ = false;
  void* comm_ = nullptr;
};

// What a group and its operations share.
struct Shared {
  Shared(const Functions& nccl, std::chrono::milliseconds timeout, at::Device device)
      : communicator(nccl, timeout), device(device), guard(device.type()) {
    if (!device.is_cpu()) stream = guard.getStreamFromGlobalPool(device, /*isHighPriority=*/true);
  }

  Communicator communicator;
  const at::Device device;
  const c10::impl::VirtualGuardImpl guard;
  // Where the operations run, beside what the device computes; none where the device is the host.
  std::optional<c10::Stream> stream;
};

class NcclWork final : public c10d::Work {
 public:
  NcclWork(std::shared_ptr<Shared> shared, std::vector<Tensor> tensors)
      : shared_(std::move(shared)), tensors_(std::move(tensors)) {}

  ~NcclWork() override {
    if (!shared_->stream) return;
    try {
      const c10::DeviceGuard on_device(shared_->device);
      end_.reset();
      // Not waited for: memory that the stream may still use is not to serve another tensor.
      for (const Tensor& tensor : tensors_)
        shared_->guard.recordDataPtrOnStream(tensor.storage().data_ptr(), *shared_->stream);
    } catch (const std::exception&) {
      // CUDA has failed: what is done next with it says why.
    }
  }

  void begun() {
    if (shared_->stream) end_.emplace(shared_->device.type()).record(*shared_->stream);
  }

  // Waits for the device and not only on its stream: no rank is to go on with numbers that are not there.
  bool wait(std::chrono::milliseconds) override {
    const c10::DeviceGuard on_device(shared_->device);
    shared_->communicator.wait([&] { return !end_ || end_->query(); });
    tensors_.clear();
    return true;
  }

 private:
  const std::shared_ptr<Shared> shared_;
  std::vector<Tensor> tensors_;
  std::optional<c10::Event> end_;
};

class NcclGroup final : public c10d::Backend {
 public:
  NcclGroup(const Store& store, int rank, int size, at::Device device, std::chrono::milliseconds timeout,
            const Functions& nccl)
      : Backend(rank, size), nccl_(nccl) {
    const c10::DeviceGuard on_device(device);
    shared_ = std::make_shared<Shared>(nccl, timeout, device);
    shared_->communicator.init(rank, size, *store);
  }

  const std::string getBackendName() const override { return "nccl"; }

  void abort() override { shared_->communicator.abort(); }

  Work allreduce(std::vector<Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    const Tensor& t = tensors.at(0);
    const int op = reduction(options.reduceOp);
    return run({t}, [&](void* comm, void* stream) {
      return nccl_.all_reduce(t.data_ptr(), t.data_ptr(), t.numel(), dtype(t), op, comm, stream);
    });
  }

  Work broadcast(std::vector<Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    const Tensor& t = tensors.at(0);
    return run({t}, [&](void* comm, void* stream) {
      return nccl_.broadcast(t.data_ptr(), t.data_ptr(), t.numel(), dtype(t), options.rootRank, comm, stream);
    });
  }

  Work _allgather_base(Tensor& all, Tensor& own, const c10d::AllgatherOptions&) override {
    fits(all, own);
    return run({all, own}, [&](void* comm, void* stream) {
      return nccl_.all_gather(own.data_ptr(), all.data_ptr(), own.numel(), dtype(own), comm, stream);
    });
  }

  Work _reduce_scatter_base(Tensor& own, Tensor& all, const c10d::ReduceScatterOptions&) override {
    fits(all, own);
    return run({own, all}, [&](void* comm, void* stream) {
      return nccl_.reduce_scatter(all.data_ptr(), own.data_ptr(), own.numel(), dtype(own), kReduceSum, comm, stream);
    });
  }

 private:
  void fits(const Tensor& all, const Tensor& own) const {
    TORCH_CHECK(all.numel() == own.numel() * size_ && all.scalar_type() == own.scalar_type(), all.sizes(), " in ",
                all.scalar_type(), " is not what ", size_, " ranks have of ", own.sizes(), " in ", own.scalar_type());
  }

  template <class F>
  Work run(std::vector<Tensor> tensors, F call) {
    const at::Device device = shared_->device;
    for (const Tensor& t : tensors)
      TORCH_CHECK(t.device() == device && t.is_contiguous(), "NCCL takes contiguous tensors on ", device);
    const c10::DeviceGuard on_device(device);
    void* stream = nullptr;
    if (shared_->stream) {
      c10::Event ready(device.type());
      ready.record(shared_->guard.getStream(device));
      ready.block(*shared_->stream);
      stream = shared_->stream->native_handle();
    }
    auto work = c10::make_intrusive<NcclWork>(shared_, std::move(tensors));
    shared_->communicator.begin([&](void* comm) { return call(comm, stream); });
    work->begun();
    return work;
  }

  const Functions nccl_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace te

using namespace te;

extern "C" {

// Of a CUDA device, or of the CPU where `device` is negative, for functions that stand in for NCCL's.
char* te_group_nccl(Store* store, int32_t rank, int32_t size, int64_t device, int64_t timeout, const Functions* nccl,
                    Group** out) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto where = device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, index);
    *out = new Group(c10::make_intrusive<NcclGroup>(*store, rank, size, where, millis(timeout), *nccl));
  });
}

}  // extern "C"
