#include "cuda_session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace layerweave {

namespace {

/** The run option that keeps a run out of capturing and replaying. */
constexpr int kNoGraph = -1;

/** Steps before one is captured: many states take a few tokens and are done. */
constexpr int kStepsBeforeCapture = 2;

/** Logits of more positions than a few are copied straight to where they go: page-locked memory is the system's, too. */
constexpr size_t kMostPinned = size_t{16} << 20;

/** What cudaMalloc guarantees; kernels may read any input in wide pieces. */
constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void append_provider(const OrtLibrary& ort, const CudaDevice& device, bool graphs, OrtSessionOptions* options) {
  const OrtApi& api = ort.api();
  OrtCUDAProviderOptionsV2* provider = nullptr;
  ort.check(api.CreateCUDAProviderOptions(&provider));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> owned(provider, api.ReleaseCUDAProviderOptions);
  const std::string ordinal = std::to_string(device.ordinal());
  const std::vector<std::pair<const char*, const char*>> settings{
      {"device_id", ordinal.c_str()},
      // Doubling, the default, would take up to twice what is needed.
      {"arena_extend_strategy", "kSameAsRequested"},
      {"enable_cuda_graph", graphs ? "1" : "0"},
      {"do_copy_in_default_stream", "1"},
      // No op of ours is a convolution of its kind, so it need not be installed.
      {"enable_cudnn", "0"},
      {"use_tf32", "0"},
  };
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : settings) {
    keys.push_back(key);
    values.push_back(value);
  }
  ort.check(api.UpdateCUDAProviderOptions(provider, keys.data(), values.data(), keys.size()));
  ort.check(api.UpdateCUDAProviderOptionsWithValue(provider, "user_compute_stream", device.stream()));
  ort.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, provider));
}

OrtOwned<OrtSession> make_session(const OrtLibrary& ort, const SessionSpec& spec, const CudaDevice& device, const DeviceWeights& weights, OrtSessionOptions* options) {
  const OrtApi& api = ort.api();
  // Errors are raised as well as logged, and reported once is enough.
  ort.check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  // The compiler's graph is the one to run; folding constants would also look for weights in the files.
  ort.check(api.SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
  // A pattern is kept for every combination of shapes that was seen, each with memory of its own: more than was planned.
  ort.check(api.DisableMemPattern(options));
  ort.check(api.SetIntraOpNumThreads(options, 1));
  ort.check(api.SetInterOpNumThreads(options, 1));
  append_provider(ort, device, spec.cuda->graphs, options);
  ort.check(api.RegisterCustomOpsLibrary_V2(options, spec.kernels.c_str()));
  weights.add_to(options, spec.cuda->weights);
  const std::shared_lock<std::shared_mutex> lock(device.cuda().calls());
  OrtSession* session = nullptr;
  ort.check(api.CreateSession(ort.env(), spec.graph.c_str(), options, &session));
  return {session, api.ReleaseSession};
}

/** Whatever runs ask for is then cut from one piece, where neighbours that are free are joined; the arena keeps what it has. */
void take_arena(const OrtLibrary& ort, OrtAllocator* allocator, size_t bytes) {
  void* piece = nullptr;
  if (bytes > 0) ort.check(ort.api().AllocatorAlloc(allocator, bytes, &piece));
  if (piece) ort.check(ort.api().AllocatorFree(allocator, piece));
}

double seconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double>(time).count(); }

size_t used(const CudaLibrary& cuda) {
  const auto [free, total] = cuda.memory();
  return total - free;
}

}  // namespace

CudaSession::CudaSession(const OrtLibrary& ort, const CudaLibrary& cuda, SessionSpec spec, Interruption& interruption)
    : Session(ort, spec, interruption, std::make_unique<CudaDevice>(ort, cuda, spec.cuda->ordinal)),
      cuda_(static_cast<CudaDevice&>(*device_)),
      used_before_(used(cuda)),
      sampler_library_(spec_.kernels),
      weights_(std::make_unique<DeviceWeights>(ort, cuda_, spec_.cuda->weights, interruption, spec_.progress)),
      session_(make_session(ort, spec_, cuda_, *weights_, interruption.session_options())),
      allocator_(session_allocator(ort, session_.get(), device_->memory_info())),
      binding_(make_binding(ort, session_.get())),
      exchange_(cuda_) {
  // Runs would otherwise wait for the card twice.
  ort.check(ort.api().AddRunConfigEntry(interruption.run_options(), "disable_synchronize_execution_providers", "1"));
  take_arena(ort, allocator_.get(), spec_.cuda->arena_bytes);
}

CudaSession::~CudaSession() {
  stepping_.clear();
  // ONNX Runtime frees what it allocated on the card.
  const std::shared_lock<std::shared_mutex> lock(cuda_.cuda().calls());
  binding_.reset();
  allocator_.reset();
  session_.reset();
}

void CudaSession::Exchange::Buffer::fit(CudaDevice& device, size_t wanted) {
  if (wanted <= bytes) return;
  PinnedMemory larger = wanted <= kMostPinned ? device.cuda().pinned(wanted) : nullptr;
  card = std::make_unique<DeviceMemory>(device, wanted);
  host = std::move(larger);
  bytes = wanted;
}

CudaSession::Exchange::Offsets CudaSession::Exchange::offsets_of(const Extents& extents) {
  const auto int64s = [](int64_t count) { return aligned(static_cast<size_t>(count) * sizeof(int64_t)); };
  Offsets offsets{};
  offsets.past_lengths = int64s(extents.batch * extents.tokens);
  offsets.lengths = offsets.past_lengths + int64s(extents.batch);
  offsets.logit_indices = offsets.lengths + int64s(extents.batch);
  // Without logits there is still an address for their indices.
  offsets.end = offsets.logit_indices + std::max(int64s(extents.batch * extents.wanted), kAlignment);
  return offsets;
}

void CudaSession::Exchange::fit(const Extents& extents, int64_t vocab_size) {
  offsets_ = offsets_of(extents);
  inputs_.fit(device_, offsets_.end);
  logits_.fit(device_, std::max<size_t>(static_cast<size_t>(extents.batch * extents.wanted * vocab_size) * sizeof(float), kAlignment));
}

void CudaSession::Exchange::send(const ForwardCall& call) {
  const auto put = [&](size_t offset, const std::vector<int64_t>& values) { std::memcpy(inputs_.host.get() + offset, values.data(), values.size() * sizeof(int64_t)); };
  put(0, call.input_ids);
  put(offsets_.past_lengths, call.past_lengths);
  put(offsets_.lengths, call.lengths);
  put(offsets_.logit_indices, call.logit_indices);
  device_.copy(inputs_.card->data(), inputs_.host.get(), offsets_.end);
}

std::unique_ptr<float[]> CudaSession::Exchange::receive(size_t count) {
  std::unique_ptr<float[]> logits(new float[std::max<size_t>(count, 1)]);
  void* target = logits_.host ? static_cast<void*>(logits_.host.get()) : logits.get();
  device_.copy(target, logits_.card->data(), count * sizeof(float));
  device_.wait();
  if (target != logits.get()) std::memcpy(logits.get(), target, count * sizeof(float));
  return logits;
}

void CudaSession::Exchange::receive(size_t count, float* logits) {
  device_.copy(logits, logits_.card->data(), count * sizeof(float));
  device_.wait();
}

void CudaSession::Exchange::bind(const CudaSession& session, Bindings& bindings, const Extents& extents) const {
  const OrtLibrary& ort = session.ort_;
  const SessionSpec& spec = session.spec_;
  const auto [batch, tokens, wanted] = extents;
  const auto input = [&](const std::string& name, size_t offset, const std::vector<int64_t>& shape, int64_t count) {
    bindings.input(name, wrap(ort, device_, inputs_.card->data() + offset, static_cast<size_t>(count) * sizeof(int64_t), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64).get());
  };
  input(spec.input_ids, 0, {batch, tokens}, batch * tokens);
  input(spec.past_lengths, offsets_.past_lengths, {batch}, batch);
  input(spec.lengths, offsets_.lengths, {batch}, batch);
  input(spec.logit_indices, offsets_.logit_indices, {batch, wanted}, batch * wanted);
  const std::vector<int64_t> shape{batch, wanted, spec.vocab_size};
  bindings.output(spec.logits, wrap(ort, device_, logits_.card->data(), static_cast<size_t>(batch * wanted * spec.vocab_size) * sizeof(float), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT).get());
}

// It fails only for a number that was never captured; then there is nothing to release.
CudaSession::CapturedGraph::~CapturedGraph() { ort_.api().ReleaseStatus(ort_.api().SessionReleaseCapturedGraph(session_, number_)); }

void CudaSession::release_state(StateId id) {
  stepping_.erase(id);
  Session::release_state(id);
}

void CudaSession::wait_quietly() noexcept {
  try {
    device_->wait();
  } catch (const std::exception&) {
    // What failed first is being reported.
  }
}

void CudaSession::run(OrtIoBinding* binding, int graph) {
  if (graph != current_graph_) {
    ort_.check(ort_.api().AddRunConfigEntry(interruption_.run_options(), "gpu_graph_id", std::to_string(graph).c_str()));
    current_graph_ = graph;
  }
  try {
    ort_.check(ort_.api().RunWithBinding(session_.get(), interruption_.run_options(), binding));
  } catch (const std::exception& error) {
    // A kernel's fault is noticed by whatever is enqueued next, which ONNX Runtime then names.
    const CudaLibrary& cuda = cuda_.cuda();
    const CudaLibrary::Status status = cuda.stream_synchronize(cuda_.stream());
    if (CudaLibrary::is_fault(status)) cuda.check(status, std::string("what ran before: ") + error.what());
    throw;
  }
}

template <typename Receive>
void CudaSession::run_and_receive(const ForwardCall& call, Receive receive) {
  State& state = state_of(call.state);
  const Extents extents = extents_of(state, call);
  make_room(state, call.past_lengths, extents.tokens);
  for (size_t i = 0; i < state.slots.size(); i++) {
    own(spec_.slots[i], state.slots[i], call.past_lengths);
    if (!spec_.slots[i].grows()) spare(spec_.slots[i], state.slots[i]);
  }
  const bool single = extents.tokens == 1 && extents.wanted == 1;
  const Clock::time_point start = Clock::now();
  Exchange& exchange = spec_.cuda->graphs && single ? step(state, call, extents) : run_once(state, call, extents);
  handed_over_ = Clock::now();
  receive(exchange, extents);
  if (single) {
    times_.steps++;
    times_.host_seconds += seconds(handed_over_ - start);
    times_.wait_seconds += seconds(Clock::now() - handed_over_);
  }
}

std::unique_ptr<float[]> CudaSession::forward(ForwardCall& call, size_t& count) {
  std::unique_ptr<float[]> logits;
  run_and_receive(call, [&](Exchange& exchange, const Extents& extents) {
    count = static_cast<size_t>(extents.batch * extents.wanted * spec_.vocab_size);
    logits = exchange.receive(count);
  });
  return logits;
}

PinnedMemory CudaSession::lend(size_t bytes) const {
  const CudaLibrary& cuda = cuda_.cuda();
  PinnedMemory memory = cuda.pinned(bytes);
  // A thread that has chosen no card would be given a context on the first. Where choosing fails, freeing does, and who waits next is told.
  const auto give_back = [memory, &cuda, ordinal = cuda_.ordinal()](std::byte*) mutable {
    cuda.set_device(ordinal);
    memory.reset();
  };
  return {memory.get(), give_back};
}

void CudaSession::run_into(ForwardCall& call, float* logits, size_t count) {
  run_and_receive(call, [&](Exchange& exchange, const Extents&) { exchange.receive(count, logits); });
}

std::vector<int64_t> CudaSession::forward_sampled(const ForwardCall& call, SamplerId id, const std::vector<bool>& chosen, const std::function<void()>& meanwhile) {
  DeviceSampler& sampler = sampler_of(id);
  // Before the run: one that fails afterwards would have changed the state.
  const auto [batch, tokens, wanted] = extents_of(state_of(call.state), call);
  if (wanted != 1 || static_cast<size_t>(batch) != sampler.rows() || chosen.size() != sampler.rows())
    throw std::logic_error("a sampler of " + std::to_string(sampler.rows()) + " rows takes one logit of each of as many");
  std::vector<int64_t> sampled;
  run_and_receive(call, [&](const Exchange& exchange, const Extents&) {
    sampler.choose(exchange.logits(), chosen);
    handed_over_ = Clock::now();
    meanwhile();
    sampled = sampler.receive();
  });
  return sampled;
}

void CudaSession::decode(const DecodeCall& call, SamplerId id, const std::function<bool()>& stopped, const Delivery& deliver) {
  const auto step = [&](const ForwardCall& one, const std::vector<bool>& chosen, const std::function<void()>& meanwhile) { return forward_sampled(one, id, chosen, meanwhile); };
  decode_steps(call, step, [&] { return stopped() || interruption_.requested(); }, deliver);
}

SamplerId CudaSession::create_sampler(const std::vector<SampledRow>& rows) {
  samplers_.try_emplace(next_sampler_, sampler_library_, cuda_, rows, spec_.vocab_size);
  return next_sampler_++;
}

void CudaSession::release_sampler(SamplerId id) {
  sampler_of(id);
  samplers_.erase(id);
}

DeviceSampler& CudaSession::sampler_of(SamplerId id) {
  const auto found = samplers_.find(id);
  if (found == samplers_.end()) throw std::logic_error("no sampler " + std::to_string(id));
  return found->second;
}

CudaSession::Exchange& CudaSession::run_once(State& state, const ForwardCall& call, const Extents& extents) {
  exchange_.fit(extents, spec_.vocab_size);
  Bindings bindings(ort_, binding_.get());
  exchange_.bind(*this, bindings, extents);
  for (size_t i = 0; i < state.slots.size(); i++) {
    const Slot& slot = state.slots[i];
    bindings.input(spec_.slots[i].past, slot.current->value());
    bindings.output(spec_.slots[i].present, (spec_.slots[i].grows() ? slot.current : slot.spare)->value());
  }
  exchange_.send(call);
  try {
    const std::shared_lock<std::shared_mutex> lock(cuda_.cuda().calls());
    run(binding_.get(), kNoGraph);
  } catch (const std::exception&) {
    // What was launched before the failure still reads and writes our buffers.
    wait_quietly();
    throw;
  }
  for (const Slot& slot : state.slots)
    if (slot.spare) device_->copy(slot.current->data(), slot.spare->data(), slot.current->bytes());
  return exchange_;
}

CudaSession::Exchange& CudaSession::step(State& state, const ForwardCall& call, const Extents& extents) {
  Stepping& stepping = stepping_.try_emplace(call.state, ort_, session_.get(), cuda_).first->second;
  std::vector<const void*> addresses;
  for (const Slot& slot : state.slots) addresses.push_back(slot.current->data());
  if (addresses != stepping.addresses) {
    stepping.graph.reset();
    stepping.steps = 0;
    stepping.addresses = std::move(addresses);
  }
  if (!stepping.graph) {
    if (stepping.steps < kStepsBeforeCapture) {
      stepping.steps++;
      return run_once(state, call, extents);
    }
    stepping.exchange.fit(extents, spec_.vocab_size);
    stepping.exchange.send(call);
    stepping.exchange.bind(*this, stepping.bindings, extents);
    capture(state, stepping);
  } else {
    stepping.exchange.send(call);
  }
  {
    const std::shared_lock<std::shared_mutex> lock(cuda_.cuda().calls());
    run(stepping.binding.get(), stepping.graph->number());
  }
  return stepping.exchange;
}

/** ONNX Runtime runs the model before and after it captures it, each time advancing the state: recurrent state is kept and put back. */
void CudaSession::capture(State& state, Stepping& stepping) {
  for (size_t i = 0; i < state.slots.size(); i++) {
    const Slot& slot = state.slots[i];
    stepping.bindings.input(spec_.slots[i].past, slot.current->value());
    stepping.bindings.output(spec_.slots[i].present, slot.current->value());
    if (slot.spare) device_->copy(slot.spare->data(), slot.current->data(), slot.current->bytes());
  }
  device_->wait();
  const auto put_back = [&] {
    for (const Slot& slot : state.slots)
      if (slot.spare) device_->copy(slot.current->data(), slot.spare->data(), slot.current->bytes());
  };
  auto graph = std::make_unique<CapturedGraph>(ort_, session_.get(), next_graph_++);
  try {
    const std::unique_lock<std::shared_mutex> alone(cuda_.cuda().calls());
    run(stepping.binding.get(), graph->number());
  } catch (const std::exception&) {
    wait_quietly();
    put_back();
    wait_quietly();
    throw;
  }
  put_back();
  stepping.graph = std::move(graph);
}

/** What activations are: keys and values are of their type. */
ElementType CudaSession::compute_type() const {
  for (const SlotSpec& slot : spec_.slots)
    if (slot.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return slot.type;
  throw std::logic_error("no state of the activations' type");
}

StepTimes CudaSession::step_times(StateId id) {
  State& state = state_of(id);
  StepTimes times = std::exchange(times_, {});
  // Before a step, memory for one is not there yet, and none can be taken within a capture.
  if (times.steps > 0) times.launches = count_launches(state, {state.batch, 1, 1});
  return times;
}

/** Captures a step without carrying it out. */
size_t CudaSession::count_launches(State& state, const Extents& extents) {
  const CudaLibrary& cuda = cuda_.cuda();
  exchange_.fit(extents, spec_.vocab_size);
  Bindings bindings(ort_, binding_.get());
  exchange_.bind(*this, bindings, extents);
  for (size_t i = 0; i < state.slots.size(); i++) {
    bindings.input(spec_.slots[i].past, state.slots[i].current->value());
    bindings.output(spec_.slots[i].present, state.slots[i].current->value());
  }
  device_->wait();
  const std::unique_lock<std::shared_mutex> alone(cuda.calls());
  cuda.check(cuda.begin_capture(cuda_.stream(), CudaLibrary::kThreadLocal), "capturing a step");
  CudaLibrary::Graph graph = nullptr;
  try {
    run(binding_.get(), kNoGraph);
  } catch (const std::exception&) {
    // What the run says is the reason; a capture that it broke gives no graph.
    if (cuda.end_capture(cuda_.stream(), &graph) == 0) cuda.graph_destroy(graph);
    throw;
  }
  cuda.check(cuda.end_capture(cuda_.stream(), &graph), "capturing a step");
  const std::unique_ptr<void, CudaLibrary::Status (*)(CudaLibrary::Graph)> owned(graph, cuda.graph_destroy);
  size_t count = 0;
  cuda.check(cuda.graph_nodes(graph, nullptr, &count), "counting a step's launches");
  std::vector<CudaLibrary::Node> nodes(count);
  cuda.check(cuda.graph_nodes(graph, nodes.data(), &count), "counting a step's launches");
  size_t launches = 0;
  for (const CudaLibrary::Node node : nodes) {
    int type = 0;
    cuda.check(cuda.node_type(node, &type), "counting a step's launches");
    if (type == CudaLibrary::kKernelNode) launches++;
  }
  return launches;
}

Memory CudaSession::memory() const {
  const auto [now, peak, reserved] = arena_use(ort_, allocator_.get());
  size_t exchange = exchange_.bytes();
  for (const auto& [id, stepping] : stepping_) exchange += stepping.exchange.bytes();
  for (const auto& [id, sampler] : samplers_) exchange += sampler.bytes();
  const auto [free, total] = cuda_.cuda().memory();
  return {now, peak, tally_.now, tally_.peak, std::make_shared<CardMemory>(CardMemory{weights_->bytes(), reserved, exchange, weights_->seconds(), used_before_, total - free, total})};
}

}  // namespace layerweave
