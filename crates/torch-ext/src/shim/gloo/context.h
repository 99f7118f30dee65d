// Declarations in place of Gloo's headers, which libtorch's wheel leaves out. ProcessGroupGloo.hpp names these types and calls
// none of their functions that our code reaches: nothing here is defined or laid out as in Gloo.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  std::chrono::milliseconds getTimeout() const;
};

namespace transport {

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = default;
};

}  // namespace transport

}  // namespace gloo
