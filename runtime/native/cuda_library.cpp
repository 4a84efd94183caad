#include "cuda_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <mutex>

namespace layerweave {

namespace {

template <typename Function>
void resolve(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (!function) throw std::runtime_error(std::string("it lacks ") + symbol);
}

/** A library that stays. Global: the provider's own references are then met by name, wherever the library was found. */
void* open_library(const std::string& name, const std::vector<std::string>& folders, std::string& problem) {
  for (const std::string& folder : folders) {
    const std::string path = folder.empty() ? name : folder + "/" + name;
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) return handle;
    // What the linker itself says of a bare name is the least misleading.
    if (problem.empty()) problem = dlerror();
  }
  return nullptr;
}

std::string path_of(void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : "";
}

constexpr int kMajors[] = {13, 12};
constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation


}  // namespace

std::vector<CudaCard> cuda_cards() {
  // The driver's own interface: unlike the runtime's, its structures don't change with CUDA's version.
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!driver) throw CudaUnavailable("no-driver", dlerror());
  int (*init)(unsigned);
  int (*count)(int*);
  int (*name)(char*, int, int);
  int (*total)(size_t*, int);
  int (*attribute)(int*, int, int);
  int (*error_name)(int, const char**);
  try {
    resolve(driver, "cuInit", init);
    resolve(driver, "cuDeviceGetCount", count);
    resolve(driver, "cuDeviceGetName", name);
    resolve(driver, "cuDeviceTotalMem_v2", total);
    resolve(driver, "cuDeviceGetAttribute", attribute);
    resolve(driver, "cuGetErrorName", error_name);
  } catch (const std::runtime_error& error) {
    throw CudaUnavailable("no-driver", std::string("libcuda.so.1 can't be used: ") + error.what());
  }
  const auto check = [&](int status, const char* call) {
    if (status == 0) return;
    const char* text = nullptr;
    error_name(status, &text);
    throw CudaUnavailable("no-driver", std::string(call) + " says " + (text ? text : std::to_string(status)));
  };
  constexpr int kNoDevice = 100;
  const int status = init(0);
  if (status == kNoDevice) return {};
  check(status, "cuInit");
  int cards = 0;
  check(count(&cards), "cuDeviceGetCount");
  std::vector<CudaCard> found;
  for (int ordinal = 0; ordinal < cards; ordinal++) {
    constexpr int kMajor = 75, kMinor = 76;
    CudaCard card{std::string(256, '\0'), 0, 0, 0};
    check(name(card.name.data(), static_cast<int>(card.name.size()), ordinal), "cuDeviceGetName");
    card.name.resize(card.name.find('\0'));
    check(attribute(&card.major, kMajor, ordinal), "cuDeviceGetAttribute");
    check(attribute(&card.minor, kMinor, ordinal), "cuDeviceGetAttribute");
    check(total(&card.bytes, ordinal), "cuDeviceTotalMem");
    found.push_back(std::move(card));
  }
  return found;
}

bool CudaLibrary::is_fault(Status status) {
  // cudaErrorECCUncorrectable, NvlinkUncorrectable, IllegalAddress, LaunchTimeout, ContextIsDestroyed, Assert, HardwareStackError,
  // IllegalInstruction, MisalignedAddress, InvalidAddressSpace, InvalidPc, LaunchFailure
  constexpr int kFaults[] = {214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719};
  return std::find(std::begin(kFaults), std::end(kFaults), status) != std::end(kFaults);
}

const CudaLibrary& CudaLibrary::open(const std::string& folder) {
  static std::mutex mutex;
  static CudaLibrary* library = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!library) library = new CudaLibrary(folder);
  return *library;
}

CudaLibrary::CudaLibrary(const std::string& folder) {
  const std::vector<std::string> folders{"", folder, "/usr/local/cuda/lib64"};
  std::string problem;
  void* runtime = nullptr;
  int major = 0;
  for (const int candidate : kMajors) {
    major = candidate;
    runtime = open_library("libcudart.so." + std::to_string(candidate), folders, problem);
    if (runtime) break;
  }
  if (!runtime) throw CudaUnavailable("no-libraries", problem);
  // cublas needs cublasLt, so that comes first.
  for (const std::string& name : {"libcublasLt.so." + std::to_string(major), "libcublas.so." + std::to_string(major), std::string("libcurand.so.10")}) {
    std::string missing;
    if (!open_library(name, folders, missing)) throw CudaUnavailable("no-libraries", missing);
  }
  try {
    resolve(runtime, "cudaSetDevice", set_device);
    resolve(runtime, "cudaMalloc", malloc);
    resolve(runtime, "cudaFree", free);
    resolve(runtime, "cudaMemsetAsync", memset_async);
    resolve(runtime, "cudaMemcpyAsync", copy_async);
    resolve(runtime, "cudaMemcpy2DAsync", copy_2d_async);
    resolve(runtime, "cudaStreamCreateWithFlags", stream_create);
    resolve(runtime, "cudaStreamDestroy", stream_destroy);
    resolve(runtime, "cudaStreamSynchronize", stream_synchronize);
    resolve(runtime, "cudaStreamBeginCapture", begin_capture);
    resolve(runtime, "cudaStreamEndCapture", end_capture);
    resolve(runtime, "cudaGraphGetNodes", graph_nodes);
    resolve(runtime, "cudaGraphNodeGetType", node_type);
    resolve(runtime, "cudaGraphDestroy", graph_destroy);
    resolve(runtime, "cudaGetLastError", get_last_error_);
    resolve(runtime, "cudaGetErrorName", error_name_);
    resolve(runtime, "cudaGetErrorString", error_text_);
    resolve(runtime, "cudaMemGetInfo", mem_get_info_);
    resolve(runtime, "cudaHostAlloc", host_alloc_);
    resolve(runtime, "cudaFreeHost", free_host_);
  } catch (const std::runtime_error& error) {
    throw CudaUnavailable("no-libraries", "libcudart.so." + std::to_string(major) + " can't be used: " + error.what());
  }
  path_ = path_of(reinterpret_cast<void*>(set_device));
}

void* CudaLibrary::symbol(const char* name) const {
  // Every library was opened for all to see.
  void* found = dlsym(RTLD_DEFAULT, name);
  if (!found) throw std::runtime_error(std::string("CUDA's libraries lack ") + name);
  return found;
}

void CudaLibrary::check(Status status, const std::string& doing) const {
  if (status == 0) return;
  // The error is reported here; left in place it would be found again by whoever looks next.
  get_last_error_();
  const std::string what = std::string(error_name_(status)) + ": " + error_text_(status);
  if (is_fault(status)) throw std::runtime_error("CUDA failed at " + doing + " (" + what + "): the card's context is lost");
  throw std::runtime_error(status == kOutOfMemory ? "no memory for " + doing + " on the card (" + what + ")" : "CUDA failed at " + doing + " (" + what + ")");
}

CudaLibrary::Memory CudaLibrary::memory() const {
  const std::shared_lock<std::shared_mutex> lock(calls_);
  Memory memory{};
  check(mem_get_info_(&memory.free, &memory.total), "asking for the memory");
  return memory;
}

PinnedMemory CudaLibrary::pinned(size_t bytes) const {
  const std::shared_lock<std::shared_mutex> lock(calls_);
  void* memory = nullptr;
  check(host_alloc_(&memory, bytes, 0), "page-locked memory of " + std::to_string(bytes) + " bytes");
  // Freeing fails only once the context is broken, and then everything else says so.
  return {static_cast<std::byte*>(memory), [this](std::byte* owned) {
            const std::shared_lock<std::shared_mutex> freeing(calls_);
            free_host_(owned);
          }};
}

}  // namespace layerweave
