#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace layerweave::cpu {

/// Cuts scratch memory into arrays that each begin at a line of the cache, or counts how much they take where there is none.
class Carving {
 public:
  explicit Carving(void* scratch) : base_(static_cast<char*>(scratch)) {}

  template <class T>
  void take(T*& array, int64_t count) {
    if (base_) array = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_ = 0;
};

}  // namespace layerweave::cpu
