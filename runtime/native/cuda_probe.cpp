#include "cuda_probe.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string_view>

namespace layerweave {

namespace {

/** Whether a file holds `text` as a C string of its own. */
bool holds_string(const std::string& path, const std::string& text) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  struct stat info;
  const bool sized = fstat(descriptor, &info) == 0 && info.st_size > 0;
  void* content = sized ? mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  close(descriptor);
  if (content == MAP_FAILED) return false;
  const std::string_view bytes(static_cast<const char*>(content), static_cast<size_t>(info.st_size));
  const bool found = bytes.find('\0' + text + '\0') != std::string_view::npos;
  munmap(content, bytes.size());
  return found;
}

}  // namespace

CudaFindings probe_cuda(const OrtLibrary& ort, int ordinal) {
  CudaFindings found;
  found.cards = cuda_cards();
  const CudaLibrary& cuda = CudaLibrary::open(ort.folder());
  found.runtime = cuda.path();
  for (const char* name : {"libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"}) {
    const std::string path = ort.folder() + "/" + name;
    if (access(path.c_str(), R_OK) != 0) throw CudaUnavailable("no-provider", std::string(name) + " is not in " + ort.folder());
    // Loading another release's provider ends the process, and nothing in its interface says which release it is of.
    const bool carries_version = std::string_view(name).find("cuda") != std::string_view::npos;
    if (carries_version && !holds_string(path, ort.version())) throw CudaUnavailable("other-provider", path + " is not of release " + ort.version());
  }
  if (ordinal >= 0 && ordinal < static_cast<int>(found.cards.size())) {
    cuda.check(cuda.set_device(ordinal), "choosing card " + std::to_string(ordinal));
    found.free_bytes = cuda.memory().free;
  }
  return found;
}

}  // namespace layerweave
