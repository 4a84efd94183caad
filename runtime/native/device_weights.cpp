#include "device_weights.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "weight_file.h"

namespace layerweave {

namespace {

/** What cudaMalloc guarantees, and more than any kernel asks of a weight's address. */
constexpr size_t kAlignment = 256;
constexpr size_t kPieceBytes = size_t{32} << 20;
constexpr size_t kMostReaders = 8;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::vector<size_t> offsets_of(const std::vector<WeightSpec>& weights, size_t& total) {
  std::vector<size_t> offsets;
  total = 0;
  for (const WeightSpec& weight : weights) {
    offsets.push_back(total);
    total += aligned(weight.bytes);
  }
  return offsets;
}

/** A stretch of a file that fits into one buffer, and where it goes. */
struct Piece {
  const WeightFile* file;
  int64_t offset;
  size_t bytes;
  std::byte* target;
};

struct Filled {
  Piece piece;
  PinnedMemory buffer;
};

/** Threads that read pieces into buffers, for one thread that empties them. */
class Readers {
 public:
  Readers(std::deque<Piece> pieces, std::vector<PinnedMemory> buffers, size_t threads) : pieces_(std::move(pieces)), left_(pieces_.size()), free_(std::move(buffers)) {
    for (size_t i = 0; i < threads; i++) threads_.emplace_back([this] { read(); });
  }
  ~Readers() {
    stop();
    for (std::thread& thread : threads_) thread.join();
  }
  Readers(const Readers&) = delete;
  Readers& operator=(const Readers&) = delete;

  /** The next piece that was read, in any order; false after the last. @throws what reading it threw */
  bool next(Filled& filled) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (left_ == 0) return false;
    changed_.wait(lock, [this] { return !filled_.empty() || problem_; });
    if (problem_) std::rethrow_exception(problem_);
    filled = std::move(filled_.front());
    filled_.pop_front();
    left_--;
    return true;
  }

  void give_back(PinnedMemory buffer) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(buffer));
    }
    changed_.notify_all();
  }

 private:
  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      pieces_.clear();
    }
    changed_.notify_all();
  }

  void read() {
    for (;;) {
      Filled filled;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return pieces_.empty() || !free_.empty(); });
        if (pieces_.empty()) return;
        filled = {pieces_.front(), std::move(free_.back())};
        pieces_.pop_front();
        free_.pop_back();
      }
      std::exception_ptr problem;
      try {
        filled.piece.file->read(filled.buffer.get(), filled.piece.bytes, filled.piece.offset);
      } catch (...) {
        problem = std::current_exception();
      }
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (problem) problem_ = problem;
        else filled_.push_back(std::move(filled));
      }
      changed_.notify_all();
      if (problem) return;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  size_t left_;
  std::vector<PinnedMemory> free_;
  std::deque<Filled> filled_;
  std::exception_ptr problem_;
  std::vector<std::thread> threads_;
};

}  // namespace

DeviceWeights::DeviceWeights(const OrtLibrary& ort, CudaDevice& device, const std::vector<WeightSpec>& weights, const Interruption& interruption, const Progress& progress)
    : ort_(ort), slab_(nullptr, Released{&device}) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<size_t> offsets = offsets_of(weights, bytes_);
  slab_.reset(static_cast<std::byte*>(device.allocate_uninitialised(bytes_)));

  std::map<std::string, WeightFile> files;
  std::deque<Piece> pieces;
  size_t total = 0;
  for (size_t i = 0; i < weights.size(); i++) {
    const WeightSpec& weight = weights[i];
    const WeightFile& file = files.try_emplace(weight.file, weight.file).first->second;
    std::byte* target = slab_.get() + offsets[i];
    values_.push_back(wrap(ort, device, target, weight.bytes, weight.shape, weight.type));
    total += weight.bytes;
    for (size_t done = 0; done < weight.bytes; done += kPieceBytes)
      pieces.push_back({&file, weight.offset + static_cast<int64_t>(done), std::min(kPieceBytes, weight.bytes - done), target + done});
  }

  const size_t threads = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, std::min(kMostReaders, std::max<size_t>(pieces.size(), 1)));
  size_t buffer_bytes = 1;
  for (const Piece& piece : pieces) buffer_bytes = std::max(buffer_bytes, piece.bytes);
  // One more than readers: so all can read while the card takes what was read before.
  std::vector<PinnedMemory> buffers(threads + 1);
  for (PinnedMemory& buffer : buffers) buffer = device.cuda().pinned(buffer_bytes);

  Readers readers(std::move(pieces), std::move(buffers), threads);
  Filled filled;
  size_t loaded = 0;
  while (readers.next(filled)) {
    if (interruption.requested()) throw std::runtime_error("loading was interrupted");
    device.copy(filled.piece.target, filled.buffer.get(), filled.piece.bytes);
    device.wait();
    readers.give_back(std::move(filled.buffer));
    loaded += filled.piece.bytes;
    if (progress) progress(loaded, total);
  }
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void DeviceWeights::add_to(OrtSessionOptions* options, const std::vector<WeightSpec>& specs) const {
  for (size_t i = 0; i < specs.size(); i++) ort_.check(ort_.api().AddInitializer(options, specs[i].name.c_str(), values_[i].get()));
}

}  // namespace layerweave
