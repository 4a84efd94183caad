#pragma once

#include <cstddef>
#include <memory>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace layerweave {

/** Why CUDA can't be used; `code` is what JavaScript tells the cases apart by. */
class CudaUnavailable : public std::runtime_error {
 public:
  CudaUnavailable(const char* code, const std::string& problem) : std::runtime_error(problem), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

struct CudaCard {
  std::string name;
  int major;
  int minor;
  size_t bytes;
};

/** The cards that the driver offers, in CUDA's order; makes no context on any. @throws CudaUnavailable "no-driver" */
std::vector<CudaCard> cuda_cards();

/** Page-locked host memory, which copies to and from a card at full speed. */
using PinnedMemory = std::shared_ptr<std::byte>;

/**
 * CUDA's runtime, and the libraries of CUDA that ONNX Runtime's provider needs. Opened when they are wanted, so that the
 * addon is built and runs where there are none; kept until the process ends.
 */
class CudaLibrary {
 public:
  using Status = int;   // cudaError_t
  using Stream = void*;  // cudaStream_t
  using Graph = void*;   // cudaGraph_t
  using Node = void*;    // cudaGraphNode_t

  /**
   * Takes what the dynamic linker finds (LD_LIBRARY_PATH), else what lies in `folder` or where CUDA is usually installed.
   * @throws CudaUnavailable "no-libraries"
   */
  static const CudaLibrary& open(const std::string& folder);

  /** @throws std::runtime_error with the error's name and text; "no memory for …" where that is the cause, "… context is lost" after a fault */
  void check(Status status, const std::string& doing) const;

  /** Whether a kernel has gone wrong, or the card: every further call of the process to that card fails. */
  static bool is_fault(Status status);

  struct Memory {
    size_t free;
    size_t total;
  };
  /** Of the current device. */
  Memory memory() const;
  PinnedMemory pinned(size_t bytes) const;

  /**
   * While one thread captures a graph, no other thread of the process may make CUDA calls that could wait or allocate:
   * capturing holds this exclusively, all other calls share it.
   */
  std::shared_mutex& calls() const { return calls_; }

  /** A function of CUDA's libraries that only some need. @throws std::runtime_error */
  void* symbol(const char* name) const;

  const std::string& path() const { return path_; }

  Status (*set_device)(int);
  Status (*malloc)(void**, size_t);
  Status (*free)(void*);
  Status (*memset_async)(void*, int, size_t, Stream);
  Status (*copy_async)(void*, const void*, size_t, int, Stream);
  Status (*copy_2d_async)(void*, size_t, const void*, size_t, size_t, size_t, int, Stream);
  Status (*stream_create)(Stream*, unsigned);
  Status (*stream_destroy)(Stream);
  Status (*stream_synchronize)(Stream);
  Status (*begin_capture)(Stream, int);
  Status (*end_capture)(Stream, Graph*);
  Status (*graph_nodes)(Graph, Node*, size_t*);
  Status (*node_type)(Node, int*);
  Status (*graph_destroy)(Graph);

  /** cudaMemcpyDefault: where the two ends lie follows from their addresses. */
  static constexpr int kCopy = 4;
  /** cudaStreamNonBlocking: does not wait for the default stream, which libraries may use. */
  static constexpr unsigned kNonBlocking = 1;
  /** cudaStreamCaptureModeThreadLocal: what other threads do does not end the capture. */
  static constexpr int kThreadLocal = 1;
  /** cudaGraphNodeTypeKernel */
  static constexpr int kKernelNode = 0;

 private:
  explicit CudaLibrary(const std::string& folder);

  Status (*get_last_error_)();
  const char* (*error_name_)(Status);
  const char* (*error_text_)(Status);
  Status (*mem_get_info_)(size_t*, size_t*);
  Status (*host_alloc_)(void**, size_t, unsigned);
  Status (*free_host_)(void*);
  std::string path_;
  mutable std::shared_mutex calls_;
};

}  // namespace layerweave
