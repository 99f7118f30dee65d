// What the collectives' files share.
#pragma once

#define USE_DISTRIBUTED

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace te {

using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<c10d::Backend>;
using Work = c10::intrusive_ptr<c10d::Work>;

inline std::chrono::milliseconds millis(int64_t n) { return std::chrono::milliseconds(n); }

}  // namespace te
