// The key-value store and the collectives of c10d.
#define USE_C10D_GLOO

#include "collective.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "shim.h"

namespace te {

static c10d::ReduceOp reduction(int32_t op) {
  switch (op) {
    case 0: return c10d::ReduceOp::SUM;
    case 1: return c10d::ReduceOp::MAX;
    default: TORCH_CHECK(false, "no such reduction: ", op);
  }
}

// Begins an operation. Gloo's go on record in a map that all groups of a process share (FlightRecorder::all_pg_status_), which
// libtorch 2.11 reads and writes before it takes the lock: groups of several threads would tear it.
template <class F>
static char* begin(const Group& group, F operation) {
  static std::mutex record;
  return guarded([&] {
    std::unique_lock<std::mutex> lock(record, std::defer_lock);
    if (dynamic_cast<c10d::ProcessGroupGloo*>(group.get())) lock.lock();
    operation();
  });
}

}  // namespace te

using namespace te;

extern "C" {

char* te_store_connect(const char* host, uint16_t port, bool serve, int64_t timeout, const char* prefix, Store** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.waitWorkers = false;
    options.timeout = millis(timeout);
    Store store = c10::make_intrusive<c10d::TCPStore>(host, options);
    if (*prefix) store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    *out = new Store(std::move(store));
  });
}

char* te_store_clone(Store* store, Store** out) {
  return guarded([&] { *out = new Store((*store)->clone()); });
}

char* te_store_set(Store* store, const char* key, const char* value) {
  return guarded([&] {
    (*store)->set(key, std::string(value));
    // A set key is sent and not answered; an answer says that the store has taken it in.
    (*store)->check({key});
  });
}

// Null in `out` where there is no such key.
char* te_store_get(Store* store, const char* key, char** out) {
  return guarded([&] { *out = (*store)->check({key}) ? text((*store)->get_to_str(key)) : nullptr; });
}

void te_store_free(Store* store) { delete store; }

char* te_group_gloo(Store* store, int32_t rank, int32_t size, int64_t timeout, Group** out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create_default(millis(timeout));
    *out = new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(*store, rank, size, std::move(options)));
  });
}

// Ends an NCCL group's operations.
char* te_group_abort(Group* group) {
  return guarded([&] { (*group)->abort(); });
}

void te_group_free(Group* group) { delete group; }

char* te_group_all_reduce(Group* group, Tensor* tensor, int32_t op, Work** out) {
  return begin(*group, [&] {
    c10d::AllreduceOptions options;
    options.reduceOp = reduction(op);
    std::vector<Tensor> tensors{*tensor};
    *out = new Work((*group)->allreduce(tensors, options));
  });
}

char* te_group_broadcast(Group* group, Tensor* tensor, int32_t root, Work** out) {
  return begin(*group, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<Tensor> tensors{*tensor};
    *out = new Work((*group)->broadcast(tensors, options));
  });
}

char* te_group_all_gather(Group* group, Tensor* all, Tensor* own, Work** out) {
  return begin(*group, [&] { *out = new Work((*group)->_allgather_base(*all, *own)); });
}

char* te_group_reduce_scatter(Group* group, Tensor* own, Tensor* all, Work** out) {
  return begin(*group, [&] { *out = new Work((*group)->_reduce_scatter_base(*own, *all)); });
}

char* te_work_wait(Work* work) {
  return guarded([&] { TORCH_CHECK((*work)->wait(), "the operation was given up"); });
}

void te_work_free(Work* work) { delete work; }

}  // extern "C"
