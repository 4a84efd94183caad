#include "state.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace layerweave {

namespace {

/** @throws std::runtime_error for a size that can't be addressed: extents come from outside. */
size_t bytes_of(ElementType type, const std::vector<int64_t>& shape) {
  constexpr auto kMost = static_cast<size_t>(std::numeric_limits<int64_t>::max());
  size_t bytes = element_bytes(type);
  for (const int64_t extent : shape) {
    if (extent < 0 || (extent > 0 && bytes > kMost / static_cast<size_t>(extent))) throw std::runtime_error("a state buffer would be too large");
    bytes *= static_cast<size_t>(extent);
  }
  return bytes;
}

}  // namespace

std::vector<int64_t> SlotSpec::extents(int64_t batch, int64_t capacity) const {
  std::vector<int64_t> extents = shape;
  for (int64_t& extent : extents) {
    if (extent == kBatch) extent = batch;
    if (extent == kCapacity) extent = capacity;
  }
  return extents;
}

bool SlotSpec::grows() const { return std::find(shape.begin(), shape.end(), kCapacity) != shape.end(); }

Tensor::Tensor(const OrtLibrary& ort, Device& device, ElementType type, std::vector<int64_t> shape, Tally& tally)
    : shape_(std::move(shape)),
      bytes_(bytes_of(type, shape_)),
      tally_(tally),
      memory_(device, bytes_),
      value_(wrap(ort, device, memory_.data(), bytes_, shape_, type)) {
  tally_.now += bytes_;
  tally_.peak = std::max(tally_.peak, tally_.now);
}

int64_t Tensor::capacity(const SlotSpec& spec) const {
  const auto axis = std::find(spec.shape.begin(), spec.shape.end(), kCapacity) - spec.shape.begin();
  return spec.grows() ? shape_[static_cast<size_t>(axis)] : 1;
}

Tensor::~Tensor() { tally_.now -= bytes_; }

namespace {

/** A row is `groups` stretches of capacity x inner bytes; what doesn't grow is one stretch of one position. */
struct RowLayout {
  int64_t groups = 1;
  int64_t inner;
};

RowLayout row_layout(const SlotSpec& spec) {
  RowLayout row{1, static_cast<int64_t>(element_bytes(spec.type))};
  bool behind_capacity = !spec.grows();
  for (size_t axis = 1; axis < spec.shape.size(); axis++) {
    if (spec.shape[axis] == kCapacity) behind_capacity = true;
    else (behind_capacity ? row.inner : row.groups) *= spec.shape[axis];
  }
  return row;
}

}  // namespace

std::vector<Stretch> stretches(const SlotSpec& spec, int64_t capacity, const std::vector<int64_t>& lengths, size_t from, size_t count) {
  const RowLayout row = row_layout(spec);
  const auto inner = static_cast<size_t>(row.inner), groups = static_cast<size_t>(row.groups);
  const int64_t positions = spec.grows() ? *std::max_element(lengths.begin(), lengths.end()) : 1;
  const size_t whole = static_cast<size_t>(positions) * inner, end = from + count;
  if (positions > capacity || end > whole * groups * lengths.size()) throw std::logic_error("the slot holds no such bytes");
  std::vector<Stretch> found;
  for (size_t at = from; at < end;) {
    const size_t group = at / whole, begin = at % whole, bytes = std::min(end - at, whole - begin);
    const size_t own = spec.grows() ? static_cast<size_t>(lengths[group / groups]) * inner : whole;
    found.push_back({group * static_cast<size_t>(capacity) * inner + begin, at, bytes, own > begin ? std::min(own - begin, bytes) : 0});
    at += bytes;
  }
  return found;
}

void copy_row(Device& device, const SlotSpec& spec, Rows<const std::byte> from, int64_t from_row, Rows<std::byte> to, int64_t to_row, int64_t positions) {
  const auto [groups, inner] = row_layout(spec);
  if (!spec.grows()) from.capacity = to.capacity = positions = 1;
  device.copy({to.data + to_row * groups * to.capacity * inner, static_cast<size_t>(to.capacity * inner)},
              {from.data + from_row * groups * from.capacity * inner, static_cast<size_t>(from.capacity * inner)},
              static_cast<size_t>(positions * inner), static_cast<size_t>(groups));
}

}  // namespace layerweave
