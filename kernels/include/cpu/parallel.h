#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace layerweave::cpu {

/// Where a kernel's tasks run. `run` calls body(data, i) once for every i below count, in any order and on any threads, and
/// returns when all have returned. How work is cut into tasks never depends on it, so results don't depend on the threads.
struct Parallel {
  using Body = void (*)(void* data, size_t index);
  void (*run)(void* context, Body body, void* data, size_t count);
  void* context;
};

template <class F>
void parallel_for(const Parallel& parallel, int64_t count, F&& body) {
  if (count <= 0) return;
  if (count == 1) {
    body(int64_t{0});
    return;
  }
  using Callable = std::remove_reference_t<F>;
  const Parallel::Body call = [](void* data, size_t index) { (*static_cast<Callable*>(data))(static_cast<int64_t>(index)); };
  parallel.run(parallel.context, call, const_cast<void*>(static_cast<const void*>(&body)), static_cast<size_t>(count));
}

}  // namespace layerweave::cpu
