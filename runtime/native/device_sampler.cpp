#include "device_sampler.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace layerweave {

namespace {

/** The largest of the alignments that the kernel asks for. */
constexpr size_t kAlignment = 16;
static_assert(sizeof(LayerweaveSampleRow) % kAlignment == 0, "tokens follow the rows");

size_t tokens_bytes(size_t rows) { return (rows * sizeof(int64_t) + kAlignment - 1) / kAlignment * kAlignment; }

/** The best token is found without a workspace. */
size_t workspace_of_row(const SamplerLibrary& library, const std::vector<SampledRow>& rows, int64_t vocab_size) {
  const bool draws = std::any_of(rows.begin(), rows.end(), [](const SampledRow& row) { return row.temperature > 0; });
  return draws ? static_cast<size_t>(library.workspace(1, vocab_size)) : 0;
}

}  // namespace

SamplerLibrary::SamplerLibrary(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  const auto resolve = [&](const char* symbol, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    if (!function) throw std::runtime_error("it lacks " + std::string(symbol) + ", as if it was built for another version of layerweave");
  };
  resolve("layerweave_sample_workspace", workspace);
  resolve("layerweave_seed_sampler", seed);
  resolve("layerweave_sample", sample);
}

DeviceSampler::DeviceSampler(const SamplerLibrary& library, CudaDevice& device, const std::vector<SampledRow>& rows, int64_t vocab_size)
    : library_(library),
      device_(device),
      rows_(rows.size()),
      vocab_size_(vocab_size),
      workspace_per_row_(workspace_of_row(library, rows, vocab_size)),
      // At least one byte of workspace, so that there is an address.
      bytes_(rows_ * sizeof(LayerweaveSampleRow) + tokens_bytes(rows_) + std::max<size_t>(rows_ * workspace_per_row_, kAlignment)),
      memory_(device, bytes_),
      received_(device.cuda().pinned(std::max<size_t>(rows_, 1) * sizeof(int64_t))) {
  std::vector<LayerweaveSampleRow> start;
  for (const SampledRow& row : rows) {
    start.push_back({row.temperature, row.top_p, row.min_p, row.top_k, {}});
    library.seed(row.seed, start.back().state);
  }
  device.copy(memory_.data(), start.data(), start.size() * sizeof(LayerweaveSampleRow));
  device.wait();
}

void DeviceSampler::choose(const float* logits, const std::vector<bool>& chosen) {
  auto* rows = reinterpret_cast<LayerweaveSampleRow*>(memory_.data());
  std::byte* behind = memory_.data() + rows_ * sizeof(LayerweaveSampleRow);
  auto* tokens = reinterpret_cast<int64_t*>(behind);
  std::byte* workspace = behind + tokens_bytes(rows_);
  const std::shared_lock<std::shared_mutex> lock(device_.cuda().calls());
  // A launch for each stretch of neighbours; while no row has ended that is one.
  for (size_t first = 0; first < rows_;) {
    if (!chosen[first]) {
      first++;
      continue;
    }
    size_t end = first + 1;
    while (end < rows_ && chosen[end]) end++;
    const char* problem = library_.sample(static_cast<int64_t>(end - first), vocab_size_, logits + first * static_cast<size_t>(vocab_size_), vocab_size_, rows + first,
                                          tokens + first, workspace + first * workspace_per_row_, device_.stream());
    if (problem) throw std::runtime_error(std::string("CUDA failed at choosing tokens (") + problem + ")");
    first = end;
  }
}

std::vector<int64_t> DeviceSampler::receive() {
  std::vector<int64_t> tokens(rows_);
  const size_t bytes = rows_ * sizeof(int64_t);
  device_.copy(received_.get(), memory_.data() + rows_ * sizeof(LayerweaveSampleRow), bytes);
  device_.wait();
  std::memcpy(tokens.data(), received_.get(), bytes);
  return tokens;
}

}  // namespace layerweave
