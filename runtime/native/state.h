#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "element.h"

namespace layerweave {

/** In a slot's shape: the batch size, and the capacity of a buffer that grows per token. */
constexpr int64_t kBatch = -1;
constexpr int64_t kCapacity = -2;

/** One piece of state that a layer carries from run to run: an entry of the manifest's `state`. */
struct SlotSpec {
  std::string past;
  std::string present;
  ElementType type;
  /** Extents, kBatch or kCapacity. */
  std::vector<int64_t> shape;
  /** Past and present are one buffer: what a run writes there lies beyond the positions that count. */
  bool in_place;

  std::vector<int64_t> extents(int64_t batch, int64_t capacity) const;
  bool grows() const;
};

/** Bytes of all tensors of a session, now and at most. */
struct Tally {
  size_t now = 0;
  size_t peak = 0;
};

/** A zeroed tensor of ours that ONNX Runtime reads and writes where it is. */
class Tensor {
 public:
  /** @throws std::runtime_error when there is no memory */
  Tensor(const OrtLibrary& ort, Device& device, ElementType type, std::vector<int64_t> shape, Tally& tally);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  std::byte* data() const { return memory_.data(); }
  size_t bytes() const { return bytes_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  const OrtValue* value() const { return value_.get(); }
  /** Positions there is room for; 1 in a slot that doesn't grow. */
  int64_t capacity(const SlotSpec& spec) const;

 private:
  std::vector<int64_t> shape_;
  size_t bytes_;
  Tally& tally_;
  DeviceMemory memory_;
  OrtOwned<OrtValue> value_;
};

/** Copies of a state share a tensor until one of them moves on. */
using SharedTensor = std::shared_ptr<Tensor>;

struct Slot {
  SharedTensor current;
  /** For a slot that isn't updated in place: what a run writes, so that no run allocates state. */
  SharedTensor spare;
};

/** What a batch of sequences carries from run to run. */
struct State {
  int64_t batch;
  int64_t capacity;
  std::vector<Slot> slots;
};

/** The numbers of one slot for a batch of rows, with room for `capacity` positions where the slot grows per token. */
template <typename Byte>
struct Rows {
  Byte* data;
  int64_t capacity;
};

/** A stretch of bytes that follow one another both in a tensor and in a slot of as many positions as its longest row has. */
struct Stretch {
  size_t in_tensor;
  size_t in_slot;
  size_t bytes;
  /** Of those, the ones of positions that count. */
  size_t counted;
};

/** What bytes `from` … `from + count` of a slot are, whose rows hold `lengths` tokens and have room for `capacity`. @throws std::logic_error beyond its end */
std::vector<Stretch> stretches(const SlotSpec& spec, int64_t capacity, const std::vector<int64_t>& lengths, size_t from, size_t count);

/** Copies one row to another: of a buffer that grows the first `positions`, of one that doesn't all. */
void copy_row(Device& device, const SlotSpec& spec, Rows<const std::byte> from, int64_t from_row, Rows<std::byte> to, int64_t to_row, int64_t positions);

}  // namespace layerweave
