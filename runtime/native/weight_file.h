#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace layerweave {

/** A file of weights, open while this lives. @throws std::runtime_error when it can't be opened or read */
class WeightFile {
 public:
  explicit WeightFile(std::string path) : path_(std::move(path)), descriptor_(open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw std::runtime_error(path_ + " can't be opened: " + std::strerror(errno));
  }
  ~WeightFile() { close(descriptor_); }
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  void read(std::byte* to, size_t bytes, int64_t offset) const {
    while (bytes > 0) {
      const ssize_t got = pread(descriptor_, to, bytes, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw std::runtime_error(path_ + " can't be read: " + std::strerror(errno));
      if (got == 0) throw std::runtime_error(path_ + " ends before its weights do");
      to += got;
      bytes -= static_cast<size_t>(got);
      offset += got;
    }
  }

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace layerweave
