#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace layerweave {

namespace {

OrtOwned<OrtSessionOptions> make_session_options(const OrtLibrary& ort) {
  OrtSessionOptions* options = nullptr;
  ort.check(ort.api().CreateSessionOptions(&options));
  return {options, ort.api().ReleaseSessionOptions};
}

OrtOwned<OrtRunOptions> make_run_options(const OrtLibrary& ort) {
  OrtRunOptions* options = nullptr;
  ort.check(ort.api().CreateRunOptions(&options));
  return {options, ort.api().ReleaseRunOptions};
}

int64_t product(const std::vector<int64_t>& extents) { return std::accumulate(extents.begin(), extents.end(), int64_t{1}, std::multiplies<int64_t>()); }

}  // namespace

Interruption::Interruption(const OrtLibrary& ort)
    : ort_(ort), run_options_(make_run_options(ort)), session_options_(make_session_options(ort)) {}

void Interruption::request() {
  requested_ = true;
  // Neither can fail with valid options, and there is nothing to do if they did: the run then takes its time.
  for (OrtStatus* status : {ort_.api().RunOptionsSetTerminate(run_options_.get()),
                            ort_.api().SessionOptionsSetLoadCancellationFlag(session_options_.get(), true)})
    ort_.api().ReleaseStatus(status);
}

Session::Session(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption, std::unique_ptr<Device> device)
    : ort_(ort), spec_(std::move(spec)), interruption_(interruption), device_(std::move(device)) {}

State& Session::state_of(StateId id) {
  const auto found = states_.find(id);
  if (found == states_.end()) throw std::logic_error("no state " + std::to_string(id));
  return found->second;
}

SharedTensor Session::make_tensor(ElementType type, std::vector<int64_t> shape) {
  return std::make_shared<Tensor>(ort_, *device_, type, std::move(shape), tally_);
}

StateId Session::create_state(int64_t batch, int64_t capacity) {
  State state{batch, capacity, {}};
  for (const SlotSpec& spec : spec_.slots) state.slots.push_back({make_tensor(spec.type, spec.extents(batch, capacity)), nullptr});
  states_.emplace(next_state_, std::move(state));
  return next_state_++;
}

StateId Session::copy_state(StateId id) {
  const State& from = state_of(id);
  State copy{from.batch, from.capacity, {}};
  for (const Slot& slot : from.slots) copy.slots.push_back({slot.current, nullptr});
  states_.emplace(next_state_, std::move(copy));
  return next_state_++;
}

void Session::release_state(StateId id) {
  state_of(id);
  states_.erase(id);
}

void Session::make_room(State& state, const std::vector<int64_t>& used, int64_t tokens) {
  const int64_t needed = *std::max_element(used.begin(), used.end()) + tokens;
  if (needed <= state.capacity) return;
  // Doubling keeps the copying linear in the tokens; the context is what was planned for, and only padding goes beyond it.
  const int64_t doubled = 2 * state.capacity;
  const int64_t capacity = std::max(needed, spec_.context_length > 0 ? std::min(doubled, spec_.context_length) : doubled);
  // All or nothing: a key buffer and a value buffer of different capacities would fit no run.
  std::vector<Slot> slots = state.slots;
  for (size_t i = 0; i < slots.size(); i++)
    if (spec_.slots[i].grows()) slots[i] = {resized(spec_.slots[i], *slots[i].current, capacity, used), nullptr};
  state.slots = std::move(slots);
  state.capacity = capacity;
}

/** A copy with room for `capacity` positions, of which the first `used[b]` of each row are filled. */
SharedTensor Session::resized(const SlotSpec& spec, const Tensor& tensor, int64_t capacity, const std::vector<int64_t>& used) {
  const auto batch = static_cast<int64_t>(used.size());
  SharedTensor copy = make_tensor(spec.type, spec.extents(batch, capacity));
  for (int64_t row = 0; row < batch; row++)
    layerweave::copy_row(*device_, spec, {tensor.data(), tensor.capacity(spec)}, row, {copy->data(), capacity}, row, used[static_cast<size_t>(row)]);
  return copy;
}

/** The slot's tensor, no longer shared with copies of the state. */
Tensor& Session::own(const SlotSpec& spec, Slot& slot, const std::vector<int64_t>& used) {
  if (slot.current.use_count() > 1) slot.current = resized(spec, *slot.current, slot.current->capacity(spec), used);
  return *slot.current;
}

/** The slot's second buffer, for a run that writes there. */
Tensor& Session::spare(const SlotSpec& spec, Slot& slot) {
  if (!slot.spare) slot.spare = make_tensor(spec.type, slot.current->shape());
  return *slot.spare;
}

Session::Extents Session::extents_of(const State& state, const ForwardCall& call) {
  const auto batch = static_cast<size_t>(state.batch);
  if (call.past_lengths.size() != batch || call.lengths.size() != batch || call.input_ids.empty() || call.input_ids.size() % batch != 0 ||
      call.logit_indices.size() % batch != 0)
    throw std::logic_error("a run must hold B x T token ids, B past lengths, B lengths and B x L logit indices");
  return {state.batch, static_cast<int64_t>(call.input_ids.size() / batch), static_cast<int64_t>(call.logit_indices.size() / batch)};
}

size_t Session::logit_count(const ForwardCall& call) {
  const Extents extents = extents_of(state_of(call.state), call);
  return static_cast<size_t>(extents.batch * extents.wanted * spec_.vocab_size);
}

size_t Session::forward_into(ForwardCall& call, float* logits, size_t room) {
  // Before the run: one that fails afterwards would have changed the state.
  const size_t count = logit_count(call);
  if (count > room) throw std::logic_error("there is room for " + std::to_string(room) + " of " + std::to_string(count) + " logits");
  run_into(call, logits, count);
  return count;
}

std::unique_ptr<float[]> Session::read_state(StateId id, size_t slot, int64_t positions, std::vector<int64_t>& shape) {
  const State& state = state_of(id);
  const Tensor& tensor = *state.slots.at(slot).current;
  const SlotSpec& spec = spec_.slots[slot];
  const int64_t capacity = tensor.capacity(spec);
  const int64_t read = !spec.grows() || positions < 0 ? capacity : std::min(positions, capacity);
  shape = spec.extents(state.batch, read);
  const auto count = static_cast<size_t>(product(shape));
  const std::unique_ptr<std::byte[]> stored(new std::byte[std::max<size_t>(count * element_bytes(spec.type), 1)]);
  for (int64_t row = 0; row < state.batch; row++) layerweave::copy_row(*device_, spec, {tensor.data(), capacity}, row, {stored.get(), read}, row, read);
  device_->wait();
  std::unique_ptr<float[]> copy(new float[std::max<size_t>(count, 1)]);
  to_float32(spec.type, stored.get(), copy.get(), count);
  return copy;
}

void Session::read_bytes(StateId id, size_t slot, const std::vector<int64_t>& lengths, size_t from, std::byte* bytes, size_t count) {
  const State& state = state_of(id);
  const Tensor& tensor = *state.slots.at(slot).current;
  const SlotSpec& spec = spec_.slots[slot];
  if (lengths.size() != static_cast<size_t>(state.batch)) throw std::logic_error("a length for each row is wanted");
  for (const Stretch& part : stretches(spec, tensor.capacity(spec), lengths, from, count)) {
    std::byte* to = bytes + (part.in_slot - from);
    if (part.counted > 0) device_->copy(to, tensor.data() + part.in_tensor, part.counted);
    std::fill(to + part.counted, to + part.bytes, std::byte{0});
  }
  device_->wait();
}

void Session::write_bytes(StateId id, size_t slot, const std::vector<int64_t>& lengths, size_t from, const std::byte* bytes, size_t count) {
  State& state = state_of(id);
  const SlotSpec& spec = spec_.slots.at(slot);
  const SharedTensor& shared = state.slots[slot].current;
  if (lengths.size() != static_cast<size_t>(state.batch) || shared.use_count() > 1) throw std::logic_error("a length for each row is wanted, and a state that shares nothing");
  Tensor& tensor = *shared;
  for (const Stretch& part : stretches(spec, tensor.capacity(spec), lengths, from, count)) device_->copy(tensor.data() + part.in_tensor, bytes + (part.in_slot - from), part.bytes);
  device_->wait();
}

void Session::copy_row(StateId from, int64_t from_row, int64_t positions, StateId to, int64_t to_row) {
  const State& source = state_of(from);
  State& target = state_of(to);
  if (from_row < 0 || from_row >= source.batch || to_row < 0 || to_row >= target.batch || positions > source.capacity) throw std::logic_error("no such row");
  // The other rows' lengths are not known here, so all they have room for counts.
  const std::vector<int64_t> all(static_cast<size_t>(target.batch), target.capacity);
  if (positions > target.capacity) make_room(target, all, positions - target.capacity);
  for (size_t i = 0; i < target.slots.size(); i++) own(spec_.slots[i], target.slots[i], all);
  for (size_t i = 0; i < target.slots.size(); i++)
    layerweave::copy_row(*device_, spec_.slots[i], {source.slots[i].current->data(), source.capacity}, from_row,
                         {target.slots[i].current->data(), target.capacity}, to_row, positions);
}

ArenaUse arena_use(const OrtLibrary& ort, const OrtAllocator* allocator) {
  const OrtApi& api = ort.api();
  OrtKeyValuePairs* stats = nullptr;
  ort.check(api.AllocatorGetStats(allocator, &stats));
  const OrtOwned<OrtKeyValuePairs> owned(stats, api.ReleaseKeyValuePairs);
  const auto stat = [&](const char* key) -> size_t {
    const char* value = api.GetKeyValue(stats, key);
    if (!value) throw std::runtime_error(std::string("ONNX Runtime's allocator does not report ") + key);
    return std::strtoull(value, nullptr, 10);
  };
  return {stat("InUse"), stat("MaxInUse"), stat("TotalAllocated")};
}

OrtOwned<OrtAllocator> session_allocator(const OrtLibrary& ort, const OrtSession* session, const OrtMemoryInfo* info) {
  OrtAllocator* allocator = nullptr;
  ort.check(ort.api().CreateAllocator(session, info, &allocator));
  return {allocator, ort.api().ReleaseAllocator};
}

OrtOwned<OrtIoBinding> make_binding(const OrtLibrary& ort, OrtSession* session) {
  OrtIoBinding* binding = nullptr;
  ort.check(ort.api().CreateIoBinding(session, &binding));
  return {binding, ort.api().ReleaseIoBinding};
}

void check_kernels(const OrtLibrary& ort, const std::string& path) {
  const auto options = make_session_options(ort);
  ort.check(ort.api().RegisterCustomOpsLibrary_V2(options.get(), path.c_str()));
}

}  // namespace layerweave
