#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
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

/**
 * Registers an arena with the process's environment. A session that is made meanwhile takes it over, and nobody else: so its
 * statistics are that session's, and closing the session frees it.
 *
 * It splits every chunk: by default as much as half of a chunk stays unused and counts as in use.
 */
class ArenaForSession {
 public:
  explicit ArenaForSession(const OrtLibrary& ort) : ort_(ort), lock_(mutex()), info_(make_info(ort)) {
    const OrtApi& api = ort.api();
    constexpr const char* kKeys[] = {"arena_extend_strategy", "max_dead_bytes_per_chunk"};
    constexpr size_t kValues[] = {1 /* grows by what is asked for */, 1};
    OrtArenaCfg* config = nullptr;
    ort.check(api.CreateArenaCfgV2(kKeys, kValues, 2, &config));
    const OrtOwned<OrtArenaCfg> owned(config, api.ReleaseArenaCfg);
    ort.check(api.CreateAndRegisterAllocator(ort.env(), info_.get(), config));
  }
  ~ArenaForSession() { ort_.api().ReleaseStatus(ort_.api().UnregisterAllocator(ort_.env(), info_.get())); }
  ArenaForSession(const ArenaForSession&) = delete;
  ArenaForSession& operator=(const ArenaForSession&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static OrtOwned<OrtMemoryInfo> make_info(const OrtLibrary& ort) {
    OrtMemoryInfo* info = nullptr;
    ort.check(ort.api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
    return {info, ort.api().ReleaseMemoryInfo};
  }

  const OrtLibrary& ort_;
  const std::lock_guard<std::mutex> lock_;
  const OrtOwned<OrtMemoryInfo> info_;
};

OrtOwned<OrtSession> make_session(const OrtLibrary& ort, const SessionSpec& spec, OrtSessionOptions* options) {
  const OrtApi& api = ort.api();
  // Errors are raised as well as logged, and reported once is enough; TensorScatter warns on every run.
  ort.check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  ort.check(api.SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL));
  ort.check(api.SetIntraOpNumThreads(options, spec.threads));
  ort.check(api.SetInterOpNumThreads(options, 1));
  // Threads that spin between operators take the cores the event loop needs.
  ort.check(api.AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"));
  // A pattern would be one block for all of a run's tensors, larger than what is ever in use at once, with kernels' workspace beside it.
  ort.check(api.DisableMemPattern(options));
  ort.check(api.AddSessionConfigEntry(options, "session.use_env_allocators", "1"));
  if (!spec.kernels.empty()) ort.check(api.RegisterCustomOpsLibrary_V2(options, spec.kernels.c_str()));
  const ArenaForSession arena(ort);
  OrtSession* session = nullptr;
  ort.check(api.CreateSession(ort.env(), spec.graph.c_str(), options, &session));
  return {session, api.ReleaseSession};
}

OrtOwned<OrtAllocator> make_allocator(const OrtLibrary& ort, const OrtSession* session) {
  const OrtApi& api = ort.api();
  OrtMemoryInfo* info = nullptr;
  ort.check(api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
  const OrtOwned<OrtMemoryInfo> owned_info(info, api.ReleaseMemoryInfo);
  OrtAllocator* allocator = nullptr;
  ort.check(api.CreateAllocator(session, info, &allocator));
  return {allocator, api.ReleaseAllocator};
}

OrtOwned<OrtIoBinding> make_binding(const OrtLibrary& ort, OrtSession* session) {
  OrtIoBinding* binding = nullptr;
  ort.check(ort.api().CreateIoBinding(session, &binding));
  return {binding, ort.api().ReleaseIoBinding};
}

/** Binds tensors for one run; a binding left behind would keep them. */
class Bindings {
 public:
  Bindings(const OrtLibrary& ort, OrtIoBinding* binding) : ort_(ort), binding_(binding) {}
  ~Bindings() {
    ort_.api().ClearBoundInputs(binding_);
    ort_.api().ClearBoundOutputs(binding_);
  }
  Bindings(const Bindings&) = delete;
  Bindings& operator=(const Bindings&) = delete;

  void input(const std::string& name, const OrtValue* value) { ort_.check(ort_.api().BindInput(binding_, name.c_str(), value)); }
  void output(const std::string& name, const OrtValue* value) { ort_.check(ort_.api().BindOutput(binding_, name.c_str(), value)); }

  void input(const std::string& name, std::vector<int64_t>& values, const std::vector<int64_t>& shape) {
    // ONNX Runtime wants an address for a tensor without elements as well.
    static int64_t nothing;
    void* data = values.empty() ? &nothing : values.data();
    const auto value = wrap(ort_, data, values.size() * sizeof(int64_t), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    input(name, value.get());
  }

 private:
  const OrtLibrary& ort_;
  OrtIoBinding* binding_;
};

}  // namespace

Interruption::Interruption(const OrtLibrary& ort)
    : ort_(ort), run_options_(make_run_options(ort)), session_options_(make_session_options(ort)) {}

void Interruption::request() {
  // Neither can fail with valid options, and there is nothing to do if they did: the run then takes its time.
  for (OrtStatus* status : {ort_.api().RunOptionsSetTerminate(run_options_.get()),
                            ort_.api().SessionOptionsSetLoadCancellationFlag(session_options_.get(), true)})
    ort_.api().ReleaseStatus(status);
}

Session::Session(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption)
    : ort_(ort),
      spec_(std::move(spec)),
      interruption_(interruption),
      session_(make_session(ort, spec_, interruption.session_options())),
      allocator_(make_allocator(ort, session_.get())),
      binding_(make_binding(ort, session_.get())) {}

State& Session::state_of(StateId id) {
  const auto found = states_.find(id);
  if (found == states_.end()) throw std::logic_error("no state " + std::to_string(id));
  return found->second;
}

SharedTensor Session::make_tensor(std::vector<int64_t> shape) { return std::make_shared<Tensor>(ort_, std::move(shape), tally_); }

StateId Session::create_state(int64_t batch, int64_t capacity) {
  State state{batch, capacity, {}};
  for (const SlotSpec& spec : spec_.slots) state.slots.push_back({make_tensor(spec.extents(batch, capacity)), nullptr});
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
  SharedTensor copy = make_tensor(spec.extents(batch, capacity));
  for (int64_t row = 0; row < batch; row++)
    layerweave::copy_row(spec, {tensor.data(), tensor.capacity(spec)}, row, {copy->data(), capacity}, row, used[static_cast<size_t>(row)]);
  return copy;
}

/** The slot's tensor, no longer shared with copies of the state. */
Tensor& Session::own(const SlotSpec& spec, Slot& slot, const std::vector<int64_t>& used) {
  if (slot.current.use_count() > 1) slot.current = resized(spec, *slot.current, slot.current->capacity(spec), used);
  return *slot.current;
}

std::unique_ptr<float[]> Session::forward(ForwardCall& call, size_t& count) {
  State& state = state_of(call.state);
  const auto batch = static_cast<size_t>(state.batch);
  if (call.past_lengths.size() != batch || call.lengths.size() != batch || call.input_ids.empty() || call.input_ids.size() % batch != 0 ||
      call.logit_indices.size() % batch != 0)
    throw std::logic_error("a run must hold B x T token ids, B past lengths, B lengths and B x L logit indices");
  const auto tokens = static_cast<int64_t>(call.input_ids.size() / batch);
  const auto wanted = static_cast<int64_t>(call.logit_indices.size() / batch);
  make_room(state, call.past_lengths, tokens);

  Bindings bindings(ort_, binding_.get());
  bindings.input(spec_.input_ids, call.input_ids, {state.batch, tokens});
  bindings.input(spec_.past_lengths, call.past_lengths, {state.batch});
  bindings.input(spec_.lengths, call.lengths, {state.batch});
  bindings.input(spec_.logit_indices, call.logit_indices, {state.batch, wanted});
  for (size_t i = 0; i < state.slots.size(); i++) {
    const SlotSpec& spec = spec_.slots[i];
    Slot& slot = state.slots[i];
    if (!spec.in_place && !slot.spare) slot.spare = make_tensor(slot.current->shape());
    Tensor& output = spec.in_place ? own(spec, slot, call.past_lengths) : *slot.spare;
    bindings.input(spec.past, slot.current->value());
    bindings.output(spec.present, output.value());
  }
  count = batch * static_cast<size_t>(wanted * spec_.vocab_size);
  // One element at least, so that there is an address.
  std::unique_ptr<float[]> logits(new float[std::max<size_t>(count, 1)]);
  bindings.output(spec_.logits, wrap(ort_, logits.get(), count * sizeof(float), {state.batch, wanted, spec_.vocab_size}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT).get());

  ort_.check(ort_.api().RunWithBinding(session_.get(), interruption_.run_options(), binding_.get()));

  for (size_t i = 0; i < state.slots.size(); i++) {
    if (spec_.slots[i].in_place) continue;
    Slot& slot = state.slots[i];
    std::swap(slot.current, slot.spare);
    if (slot.spare.use_count() > 1) slot.spare = nullptr;
  }
  return logits;
}

std::unique_ptr<float[]> Session::read_state(StateId id, size_t slot, std::vector<int64_t>& shape) {
  const State& state = state_of(id);
  const Tensor& tensor = *state.slots.at(slot).current;
  shape = tensor.shape();
  std::unique_ptr<float[]> copy(new float[std::max<size_t>(tensor.bytes() / sizeof(float), 1)]);
  std::memcpy(copy.get(), tensor.data(), tensor.bytes());
  return copy;
}

void Session::write_state(StateId id, size_t slot, const std::vector<float>& numbers) {
  State& state = state_of(id);
  const SlotSpec& spec = spec_.slots.at(slot);
  // As many positions as the numbers make, or all numbers of a slot that doesn't grow.
  const std::vector<int64_t> one = spec.extents(state.batch, 1);
  const auto per_position = std::accumulate(one.begin(), one.end(), int64_t{1}, std::multiplies<int64_t>());
  const auto positions = static_cast<int64_t>(numbers.size()) / per_position;
  if (positions * per_position != static_cast<int64_t>(numbers.size()) || positions > (spec.grows() ? state.capacity : 1) || (!spec.grows() && positions != 1))
    throw std::logic_error("the numbers don't fit the slot");
  Tensor& tensor = own(spec, state.slots[slot], std::vector<int64_t>(static_cast<size_t>(state.batch), 0));
  for (int64_t row = 0; row < state.batch; row++)
    layerweave::copy_row(spec, {numbers.data(), positions}, row, {tensor.data(), state.capacity}, row, positions);
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
    layerweave::copy_row(spec_.slots[i], {source.slots[i].current->data(), source.capacity}, from_row,
                         {target.slots[i].current->data(), target.capacity}, to_row, positions);
}

Memory Session::memory() const {
  const OrtApi& api = ort_.api();
  OrtKeyValuePairs* stats = nullptr;
  ort_.check(api.AllocatorGetStats(allocator_.get(), &stats));
  const OrtOwned<OrtKeyValuePairs> owned(stats, api.ReleaseKeyValuePairs);
  const auto stat = [&](const char* key) -> size_t {
    const char* value = api.GetKeyValue(stats, key);
    if (!value) throw std::runtime_error(std::string("ONNX Runtime's allocator does not report ") + key);
    return std::strtoull(value, nullptr, 10);
  };
  return {stat("InUse"), stat("MaxInUse"), tally_.now, tally_.peak};
}

void check_kernels(const OrtLibrary& ort, const std::string& path) {
  const auto options = make_session_options(ort);
  ort.check(ort.api().RegisterCustomOpsLibrary_V2(options.get(), path.c_str()));
}

}  // namespace layerweave
