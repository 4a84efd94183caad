#include "host_session.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "bindings.h"

namespace layerweave {

namespace {

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

OrtOwned<OrtSession> make_session(const OrtLibrary& ort, const SessionSpec& spec, const HostWeights& weights, OrtSessionOptions* options) {
  const OrtApi& api = ort.api();
  // Errors are raised as well as logged, and reported once is enough; TensorScatter warns on every run.
  ort.check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  ort.check(api.SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL));
  ort.check(api.SetIntraOpNumThreads(options, spec.threads));
  ort.check(api.SetInterOpNumThreads(options, 1));
  // A token's operators are too short to wake threads for each; between runs none of these spins, and the event loop has the cores.
  ort.check(api.AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "1"));
  ort.check(api.AddSessionConfigEntry(options, "session.force_spinning_stop", "1"));
  // A pattern would be one block for all of a run's tensors, larger than what is ever in use at once, with kernels' workspace beside it.
  ort.check(api.DisableMemPattern(options));
  ort.check(api.AddSessionConfigEntry(options, "session.use_env_allocators", "1"));
  if (!spec.kernels.empty()) ort.check(api.RegisterCustomOpsLibrary_V2(options, spec.kernels.c_str()));
  weights.add_to(options, spec.copied);
  const ArenaForSession arena(ort);
  OrtSession* session = nullptr;
  ort.check(api.CreateSession(ort.env(), spec.graph.c_str(), options, &session));
  return {session, api.ReleaseSession};
}

OrtOwned<OrtAllocator> cpu_arena(const OrtLibrary& ort, const OrtSession* session) {
  OrtMemoryInfo* info = nullptr;
  ort.check(ort.api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
  const OrtOwned<OrtMemoryInfo> owned(info, ort.api().ReleaseMemoryInfo);
  return session_allocator(ort, session, info);
}

}  // namespace

HostSession::HostSession(const OrtLibrary& ort, SessionSpec spec, Interruption& interruption)
    : Session(ort, std::move(spec), interruption, std::make_unique<HostDevice>(ort)),
      weights_(ort, *device_, spec_.copied, interruption),
      session_(make_session(ort, spec_, weights_, interruption.session_options())),
      allocator_(cpu_arena(ort, session_.get())),
      binding_(make_binding(ort, session_.get())) {}

std::unique_ptr<float[]> HostSession::forward(ForwardCall& call, size_t& count) {
  count = logit_count(call);
  // One element at least, so that there is an address.
  std::unique_ptr<float[]> logits(new float[std::max<size_t>(count, 1)]);
  run_into(call, logits.get(), count);
  return logits;
}

void HostSession::run_into(ForwardCall& call, float* logits, size_t count) {
  State& state = state_of(call.state);
  const auto [batch, tokens, wanted] = extents_of(state, call);
  make_room(state, call.past_lengths, tokens);

  Bindings bindings(ort_, binding_.get());
  const auto input = [&](const std::string& name, std::vector<int64_t>& values, const std::vector<int64_t>& shape) {
    // ONNX Runtime wants an address for a tensor without elements as well.
    static int64_t nothing;
    void* data = values.empty() ? &nothing : values.data();
    bindings.input(name, wrap(ort_, *device_, data, values.size() * sizeof(int64_t), shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64).get());
  };
  input(spec_.input_ids, call.input_ids, {batch, tokens});
  input(spec_.past_lengths, call.past_lengths, {batch});
  input(spec_.lengths, call.lengths, {batch});
  input(spec_.logit_indices, call.logit_indices, {batch, wanted});
  for (size_t i = 0; i < state.slots.size(); i++) {
    const SlotSpec& spec = spec_.slots[i];
    Slot& slot = state.slots[i];
    Tensor& output = spec.in_place ? own(spec, slot, call.past_lengths) : spare(spec, slot);
    bindings.input(spec.past, slot.current->value());
    bindings.output(spec.present, output.value());
  }
  bindings.output(spec_.logits, wrap(ort_, *device_, logits, count * sizeof(float), {batch, wanted, spec_.vocab_size}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT).get());

  ort_.check(ort_.api().RunWithBinding(session_.get(), interruption_.run_options(), binding_.get()));

  for (size_t i = 0; i < state.slots.size(); i++) {
    if (spec_.slots[i].in_place) continue;
    Slot& slot = state.slots[i];
    std::swap(slot.current, slot.spare);
    if (slot.spare.use_count() > 1) slot.spare = nullptr;
  }
}

Memory HostSession::memory() const {
  const ArenaUse arena = arena_use(ort_, allocator_.get());
  return {arena.now, arena.peak, tally_.now, tally_.peak, nullptr};
}

}  // namespace layerweave
