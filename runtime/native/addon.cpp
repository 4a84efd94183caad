// What JavaScript sees: `openSession` and its session, `probe` and its kind. Every call on a session is a promise; the work is done
// on the session's own thread, and settled here.
#include <napi.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_probe.h"
#include "cuda_session.h"
#include "host_session.h"
#include "session_thread.h"

namespace layerweave {
namespace {

using Settlement = std::function<void(Napi::Env)>;

/** The addon in one JavaScript thread: its open sessions, and the way back from their threads. */
class Addon {
 public:
  explicit Addon(Napi::Env env) : back_(Back::New(env, "layerweave", 0, 1, nullptr)) {
    // The process lives on while a call is pending, and no longer.
    back_.Unref(env);
  }

  Napi::FunctionReference session_class;

  SessionThread& start(const OrtLibrary& ort) {
    auto thread = std::make_unique<SessionThread>(ort);
    SessionThread& started = *thread;
    threads_.emplace(&started, std::move(thread));
    return started;
  }

  bool has(SessionThread* thread) const { return threads_.count(thread) > 0; }

  /** A function that a call made on a session is told by, until the call is settled. */
  using Listener = uint64_t;
  static constexpr Listener kNobody = 0;

  Listener listen(Napi::Function listener) {
    listeners_.emplace(++last_listener_, Napi::Persistent(listener));
    return last_listener_;
  }

  /** Called on a session's thread; `arguments` makes values of what there is to tell. */
  template <typename Arguments>
  void tell(Listener listener, Arguments arguments) {
    settle_later([this, listener, arguments](Napi::Env env) {
      const auto found = listeners_.find(listener);
      if (found != listeners_.end()) found->second.Call(arguments(env));
    });
  }

  /** Promises what `work` makes of the session on its thread; `work` returns how to make a value of it for JavaScript. */
  template <typename Work>
  Napi::Promise submit(Napi::Env env, SessionThread& thread, Work work, Listener listener = kNobody) {
    const auto deferred = expect(env);
    thread.post([this, deferred, work, listener](std::unique_ptr<Session>& session) mutable {
      try {
        settle_later([this, deferred, listener, value = work(session)](Napi::Env e) {
          settled(e, listener);
          deferred.Resolve(value(e));
        });
      } catch (const std::exception& error) {
        settle_later([this, deferred, listener, problem = std::string(error.what())](Napi::Env e) {
          settled(e, listener);
          deferred.Reject(Napi::Error::New(e, problem).Value());
        });
      }
    });
    return deferred.Promise();
  }

  /** Finishes the calls already made and releases the session. */
  Napi::Promise close(Napi::Env env, SessionThread& thread) {
    const auto deferred = expect(env);
    finish(thread, [this, deferred](Napi::Env e) {
      settled(e, kNobody);
      deferred.Resolve(e.Undefined());
    });
    return deferred.Promise();
  }

  /** As `close`, for a session that nobody waits for. */
  void discard(SessionThread& thread) {
    finish(thread, [](Napi::Env) {});
  }

  /** When the JavaScript thread ends: interrupts every session and waits for its thread. */
  void shut_down() {
    threads_.clear();
    listeners_.clear();
    back_.Release();
    session_class.Reset();
  }

 private:
  static void arrive(Napi::Env env, Napi::Function, std::nullptr_t*, Settlement* settlement) {
    const std::unique_ptr<Settlement> owned(settlement);
    // Without an environment the thread is ending, and nobody is there to be told.
    if (env != nullptr) (*owned)(env);
  }
  using Back = Napi::TypedThreadSafeFunction<std::nullptr_t, Settlement, arrive>;

  Napi::Promise::Deferred expect(Napi::Env env) {
    if (pending_++ == 0) back_.Ref(env);
    return Napi::Promise::Deferred::New(env);
  }

  void settled(Napi::Env env, Listener listener) {
    listeners_.erase(listener);
    if (--pending_ == 0) back_.Unref(env);
  }

  /** Called on a session's thread. */
  void settle_later(Settlement settle) {
    auto settlement = std::make_unique<Settlement>(std::move(settle));
    if (back_.BlockingCall(settlement.get()) == napi_ok) settlement.release();
  }

  void finish(SessionThread& thread, Settlement then) {
    thread.finish([this, &thread, then = std::move(then)] {
      settle_later([this, &thread, then](Napi::Env env) {
        threads_.erase(&thread);
        then(env);
      });
    });
  }

  Back back_;
  size_t pending_ = 0;
  std::map<SessionThread*, std::unique_ptr<SessionThread>> threads_;
  std::map<Listener, Napi::FunctionReference> listeners_;
  Listener last_listener_ = kNobody;
};

std::string text(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::String>().Utf8Value(); }
int64_t integer(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::Number>().Int64Value(); }

std::vector<int64_t> int64s(const Napi::Value& value) {
  const auto array = value.As<Napi::BigInt64Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

ONNXTensorElementDataType weight_type(const std::string& name) {
  if (name == "int8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  if (name == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  if (name == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (name == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (name == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  return element_type_named(name);
}

std::vector<int64_t> extents(const Napi::Array& shape) {
  std::vector<int64_t> extents;
  for (uint32_t axis = 0; axis < shape.Length(); axis++) {
    const Napi::Value dim = shape.Get(axis);
    extents.push_back(dim.IsNumber() ? dim.As<Napi::Number>().Int64Value() : dim.As<Napi::String>().Utf8Value() == "B" ? kBatch : kCapacity);
  }
  return extents;
}

std::vector<WeightSpec> weight_specs(const Napi::Array& weights) {
  std::vector<WeightSpec> specs;
  for (uint32_t i = 0; i < weights.Length(); i++) {
    const auto weight = weights.Get(i).As<Napi::Object>();
    specs.push_back({text(weight, "name"), text(weight, "file"), integer(weight, "offset"), static_cast<size_t>(integer(weight, "bytes")),
                     weight_type(text(weight, "dtype")), extents(weight.Get("shape").As<Napi::Array>())});
  }
  return specs;
}

std::shared_ptr<const CudaSpec> cuda_spec(const Napi::Object& object) {
  auto spec = std::make_shared<CudaSpec>();
  spec->ordinal = static_cast<int>(integer(object, "ordinal"));
  spec->graphs = object.Get("graphs").As<Napi::Boolean>().Value();
  spec->arena_bytes = static_cast<size_t>(integer(object, "arenaBytes"));
  spec->weights = weight_specs(object.Get("weights").As<Napi::Array>());
  return spec;
}

SessionSpec session_spec(const Napi::Object& object) {
  SessionSpec spec{text(object, "graph"),        text(object, "kernels"), static_cast<int>(integer(object, "threads")),
                   integer(object, "vocabSize"), integer(object, "contextLength"),
                   text(object, "inputIds"),     text(object, "pastLengths"),
                   text(object, "lengths"),      text(object, "logitIndices"),
                   text(object, "logits"),       {},
                   nullptr,                      nullptr};
  const Napi::Value cuda = object.Get("cuda");
  if (cuda.IsObject()) spec.cuda = cuda_spec(cuda.As<Napi::Object>());
  spec.copied = weight_specs(object.Get("copied").As<Napi::Array>());
  const auto slots = object.Get("state").As<Napi::Array>();
  for (uint32_t i = 0; i < slots.Length(); i++) {
    const auto slot = slots.Get(i).As<Napi::Object>();
    spec.slots.push_back({text(slot, "past"), text(slot, "present"), element_type_named(text(slot, "dtype")), extents(slot.Get("shape").As<Napi::Array>()),
                          slot.Get("inPlace").As<Napi::Boolean>().Value()});
  }
  return spec;
}

std::vector<SampledRow> sampled_rows(const Napi::Array& rows) {
  std::vector<SampledRow> sampled;
  for (uint32_t i = 0; i < rows.Length(); i++) {
    const auto row = rows.Get(i).As<Napi::Object>();
    const auto number = [&](const char* key) { return row.Get(key).As<Napi::Number>().DoubleValue(); };
    sampled.push_back({number("temperature"), number("topP"), number("minP"), integer(row, "topK"), static_cast<uint64_t>(integer(row, "seed"))});
  }
  return sampled;
}

/** Numbers handed over to JavaScript without a copy. */
Napi::Float32Array float32_array(Napi::Env env, const std::shared_ptr<std::unique_ptr<float[]>>& numbers, size_t count) {
  if (count == 0) return Napi::Float32Array::New(env, 0);
  float* data = numbers->release();
  const auto buffer = Napi::ArrayBuffer::New(env, data, count * sizeof(float), [](Napi::Env, void* memory) { delete[] static_cast<float*>(memory); });
  return Napi::Float32Array::New(env, count, buffer, 0);
}

Napi::BigInt64Array token_array(Napi::Env env, const std::vector<int64_t>& tokens) {
  auto array = Napi::BigInt64Array::New(env, tokens.size());
  std::copy(tokens.begin(), tokens.end(), array.Data());
  return array;
}

Napi::Object numbers(Napi::Env env, std::initializer_list<std::pair<const char*, double>> entries) {
  const auto object = Napi::Object::New(env);
  for (const auto& [key, value] : entries) object.Set(key, Napi::Number::New(env, value));
  return object;
}

/** A session that is on a card. */
CudaSession& on_card(Session& session) {
  auto* card = dynamic_cast<CudaSession*>(&session);
  if (!card) throw std::logic_error("the session is not on a card");
  return *card;
}

/** A session as JavaScript holds it. One that is collected unclosed is closed. */
class NativeSession : public Napi::ObjectWrap<NativeSession> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeSession",
                       {InstanceMethod<&NativeSession::create_state>("createState"), InstanceMethod<&NativeSession::copy_state>("copyState"),
                        InstanceMethod<&NativeSession::release_state>("releaseState"), InstanceMethod<&NativeSession::forward>("forward"),
                        InstanceMethod<&NativeSession::create_sampler>("createSampler"), InstanceMethod<&NativeSession::release_sampler>("releaseSampler"),
                        InstanceMethod<&NativeSession::forward_sampled>("forwardSampled"), InstanceMethod<&NativeSession::decode>("decode"),
                        InstanceMethod<&NativeSession::pinned_logits>("pinnedLogits"), InstanceMethod<&NativeSession::forward_into>("forwardInto"),
                        InstanceMethod<&NativeSession::read_state>("readState"), InstanceMethod<&NativeSession::read_bytes>("readBytes"),
                        InstanceMethod<&NativeSession::write_bytes>("writeBytes"),
                        InstanceMethod<&NativeSession::copy_row>("copyRow"), InstanceMethod<&NativeSession::memory>("memory"),
                        InstanceMethod<&NativeSession::measure_device>("measureDevice"), InstanceMethod<&NativeSession::step_times>("stepTimes"),
                        InstanceMethod<&NativeSession::close>("close")});
  }

  /** Takes External<SessionThread> and External<std::shared_ptr<Addon>>: only `openSession` has them. */
  explicit NativeSession(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeSession>(info) {
    if (!info[0].IsExternal() || !info[1].IsExternal()) throw Napi::TypeError::New(info.Env(), "a session is opened with openSession");
    thread_ = info[0].As<Napi::External<SessionThread>>().Data();
    addon_ = *info[1].As<Napi::External<std::shared_ptr<Addon>>>().Data();
  }

  ~NativeSession() override {
    if (thread_ && addon_->has(thread_)) addon_->discard(*thread_);
  }

 private:
  template <typename Work>
  Napi::Value submit(const Napi::CallbackInfo& info, Work work) {
    check_open(info.Env());
    return addon_->submit(info.Env(), *thread_, std::move(work));
  }

  void check_open(Napi::Env env) const {
    if (!thread_) throw Napi::Error::New(env, "the session is closed");
  }

  static uint32_t id(const Napi::Value& value) { return value.As<Napi::Number>().Uint32Value(); }

  Napi::Value create_state(const Napi::CallbackInfo& info) {
    return submit(info, [batch = info[0].As<Napi::Number>().Int64Value(), capacity = info[1].As<Napi::Number>().Int64Value()](auto& session) {
      return [created = session->create_state(batch, capacity)](Napi::Env env) { return Napi::Number::New(env, created); };
    });
  }

  Napi::Value copy_state(const Napi::CallbackInfo& info) {
    return submit(info, [state = id(info[0])](auto& session) {
      return [copy = session->copy_state(state)](Napi::Env env) { return Napi::Number::New(env, copy); };
    });
  }

  Napi::Value release_state(const Napi::CallbackInfo& info) {
    return submit(info, [state = id(info[0])](auto& session) {
      session->release_state(state);
      return [](Napi::Env env) { return env.Undefined(); };
    });
  }

  Napi::Value forward(const Napi::CallbackInfo& info) {
    ForwardCall call{id(info[0]), int64s(info[1]), int64s(info[2]), int64s(info[3]), int64s(info[4])};
    return submit(info, [call = std::move(call)](auto& session) mutable {
      size_t count = 0;
      auto logits = std::make_shared<std::unique_ptr<float[]>>(session->forward(call, count));
      return [logits, count](Napi::Env env) { return float32_array(env, logits, count); };
    });
  }

  /** Page-locked memory for so many logits. */
  Napi::Value pinned_logits(const Napi::CallbackInfo& info) {
    return submit(info, [count = static_cast<size_t>(info[0].As<Napi::Number>().Int64Value())](auto& session) {
      return [memory = on_card(*session).lend(count * sizeof(float)), count](Napi::Env env) {
        auto* kept = new PinnedMemory(memory);
        const auto buffer = Napi::ArrayBuffer::New(env, memory.get(), count * sizeof(float), [](Napi::Env, void*, PinnedMemory* owner) { delete owner; }, kept);
        return Napi::Float32Array::New(env, count, buffer, 0);
      };
    });
  }

  /** As `forward`, with the logits written to an array that the caller keeps until this is settled: how many there are. */
  Napi::Value forward_into(const Napi::CallbackInfo& info) {
    ForwardCall call{id(info[0]), int64s(info[1]), int64s(info[2]), int64s(info[3]), int64s(info[4])};
    auto into = info[5].As<Napi::Float32Array>();
    return submit(info, [call = std::move(call), logits = into.Data(), room = into.ElementLength()](auto& session) mutable {
      return [count = session->forward_into(call, logits, room)](Napi::Env env) { return Napi::Number::New(env, static_cast<double>(count)); };
    });
  }

  Napi::Value create_sampler(const Napi::CallbackInfo& info) {
    return submit(info, [rows = sampled_rows(info[0].As<Napi::Array>())](auto& session) {
      return [created = on_card(*session).create_sampler(rows)](Napi::Env env) { return Napi::Number::New(env, created); };
    });
  }

  Napi::Value release_sampler(const Napi::CallbackInfo& info) {
    return submit(info, [sampler = id(info[0])](auto& session) {
      on_card(*session).release_sampler(sampler);
      return [](Napi::Env env) { return env.Undefined(); };
    });
  }

  Napi::Value forward_sampled(const Napi::CallbackInfo& info) {
    ForwardCall call{id(info[0]), int64s(info[1]), int64s(info[2]), int64s(info[3]), int64s(info[4])};
    const auto flags = info[6].As<Napi::Uint8Array>();
    const std::vector<bool> chosen(flags.Data(), flags.Data() + flags.ElementLength());
    return submit(info, [call = std::move(call), sampler = id(info[5]), chosen](auto& session) mutable {
      return [tokens = on_card(*session).forward_sampled(call, sampler, chosen)](Napi::Env env) { return token_array(env, tokens); };
    });
  }

  /** → { done: Promise, stop(): what has begun is finished, nothing more is begun } */
  Napi::Value decode(const Napi::CallbackInfo& info) {
    check_open(info.Env());
    DecodeCall call{id(info[0]), int64s(info[1]), int64s(info[2]), int64s(info[3]), int64s(info[4])};
    const Addon::Listener listener = addon_->listen(info[6].As<Napi::Function>());
    const auto stopped = std::make_shared<std::atomic<bool>>(false);
    const auto decoding = Napi::Object::New(info.Env());
    decoding.Set("stop", Napi::Function::New(info.Env(), [stopped](const Napi::CallbackInfo&) { *stopped = true; }));
    const auto work = [addon = addon_.get(), listener, stopped, call = std::move(call), sampler = id(info[5])](auto& session) {
      on_card(*session).decode(call, sampler, [&] { return stopped->load(); }, [&](std::vector<int64_t> tokens) {
        addon->tell(listener, [tokens = std::move(tokens)](Napi::Env env) -> std::vector<napi_value> { return {token_array(env, tokens)}; });
      });
      return [](Napi::Env env) { return env.Undefined(); };
    };
    decoding.Set("done", addon_->submit(info.Env(), *thread_, work, listener));
    return decoding;
  }

  Napi::Value read_state(const Napi::CallbackInfo& info) {
    const int64_t positions = info[2].IsNumber() ? info[2].As<Napi::Number>().Int64Value() : -1;
    return submit(info, [state = id(info[0]), slot = id(info[1]), positions](auto& session) {
      std::vector<int64_t> shape;
      auto numbers = std::make_shared<std::unique_ptr<float[]>>(session->read_state(state, slot, positions, shape));
      return [numbers, shape](Napi::Env env) {
        const auto content = Napi::Object::New(env);
        const auto extents = Napi::Array::New(env, shape.size());
        size_t count = 1;
        for (uint32_t axis = 0; axis < shape.size(); axis++) {
          extents.Set(axis, Napi::Number::New(env, static_cast<double>(shape[axis])));
          count *= static_cast<size_t>(shape[axis]);
        }
        content.Set("shape", extents);
        content.Set("data", float32_array(env, numbers, count));
        return content;
      };
    });
  }

  /** Both take memory that the caller keeps until they are settled. */
  Napi::Value read_bytes(const Napi::CallbackInfo& info) {
    auto into = info[4].As<Napi::Uint8Array>();
    return submit(info, [state = id(info[0]), slot = id(info[1]), lengths = int64s(info[2]), from = static_cast<size_t>(info[3].As<Napi::Number>().Int64Value()), data = into.Data(), count = into.ElementLength()](auto& session) {
      session->read_bytes(state, slot, lengths, from, reinterpret_cast<std::byte*>(data), count);
      return [](Napi::Env env) { return env.Undefined(); };
    });
  }

  Napi::Value write_bytes(const Napi::CallbackInfo& info) {
    auto content = info[4].As<Napi::Uint8Array>();
    return submit(info, [state = id(info[0]), slot = id(info[1]), lengths = int64s(info[2]), from = static_cast<size_t>(info[3].As<Napi::Number>().Int64Value()), data = content.Data(), count = content.ElementLength()](auto& session) {
      session->write_bytes(state, slot, lengths, from, reinterpret_cast<const std::byte*>(data), count);
      return [](Napi::Env env) { return env.Undefined(); };
    });
  }

  Napi::Value copy_row(const Napi::CallbackInfo& info) {
    return submit(info, [from = id(info[0]), from_row = id(info[1]), positions = id(info[2]), to = id(info[3]), to_row = id(info[4])](auto& session) {
      session->copy_row(from, from_row, positions, to, to_row);
      return [](Napi::Env env) { return env.Undefined(); };
    });
  }

  Napi::Value memory(const Napi::CallbackInfo& info) {
    return submit(info, [](auto& session) {
      return [memory = session->memory()](Napi::Env env) {
        const auto bytes = [](size_t count) { return static_cast<double>(count); };
        const auto content = numbers(env, {{"arena", bytes(memory.arena_now)}, {"arenaPeak", bytes(memory.arena_peak)}, {"state", bytes(memory.state_now)}, {"statePeak", bytes(memory.state_peak)}});
        if (const auto& card = memory.card)
          content.Set("card", numbers(env, {{"weights", bytes(card->weights)},
                                      {"arenaReserved", bytes(card->arena_reserved)},
                                      {"exchange", bytes(card->exchange)},
                                      {"loadSeconds", card->load_seconds},
                                      {"usedBefore", bytes(card->used_before)},
                                      {"usedNow", bytes(card->used_now)},
                                      {"total", bytes(card->total)}}));
        return content;
      };
    });
  }

  Napi::Value measure_device(const Napi::CallbackInfo& info) {
    return submit(info, [](auto& session) {
      return [rates = on_card(*session).measure_card()](Napi::Env env) {
        return numbers(env, {{"copyBytesPerSecond", rates.copy_bytes_per_second}, {"gemmOperationsPerSecond", rates.gemm_operations_per_second}});
      };
    });
  }

  Napi::Value step_times(const Napi::CallbackInfo& info) {
    return submit(info, [state = id(info[0])](auto& session) {
      return [times = on_card(*session).step_times(state)](Napi::Env env) {
        return numbers(env, {{"steps", static_cast<double>(times.steps)},
                             {"hostSeconds", times.host_seconds},
                             {"waitSeconds", times.wait_seconds},
                             {"launches", static_cast<double>(times.launches)}});
      };
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    if (!thread_) throw Napi::Error::New(info.Env(), "the session is closed");
    return addon_->close(info.Env(), *std::exchange(thread_, nullptr));
  }

  SessionThread* thread_ = nullptr;
  std::shared_ptr<Addon> addon_;
};

Napi::Value open_session(const Napi::CallbackInfo& info) {
  const auto addon = *info.Env().GetInstanceData<std::shared_ptr<Addon>>();
  const auto options = info[0].As<Napi::Object>();
  SessionSpec spec = session_spec(options);
  SessionThread& thread = addon->start(OrtLibrary::open(text(options, "library")));
  Addon::Listener listener = Addon::kNobody;
  if (options.Get("onProgress").IsFunction()) {
    listener = addon->listen(options.Get("onProgress").As<Napi::Function>());
    spec.progress = [addon = addon.get(), listener](size_t done, size_t total) {
      addon->tell(listener, [done, total](Napi::Env env) -> std::vector<napi_value> { return {Napi::Number::New(env, static_cast<double>(done)), Napi::Number::New(env, static_cast<double>(total))}; });
    };
  }
  return addon->submit(info.Env(), thread, [addon, &thread, spec](std::unique_ptr<Session>& session) {
    try {
      const OrtLibrary& ort = thread.ort();
      if (spec.cuda) session = std::make_unique<CudaSession>(ort, CudaLibrary::open(ort.folder()), spec, thread.interruption());
      else session = std::make_unique<HostSession>(ort, spec, thread.interruption());
    } catch (const std::exception&) {
      addon->discard(thread);
      throw;
    }
    return [addon, &thread](Napi::Env env) -> Napi::Value {
      auto owner = addon;
      return addon->session_class.New({Napi::External<SessionThread>::New(env, &thread), Napi::External<std::shared_ptr<Addon>>::New(env, &owner)});
    };
  }, listener);
}

/** probe(library, kernels): the version of ONNX Runtime; throws where it, or the library of kernels ("": none), can't be used. */
Napi::Value probe(const Napi::CallbackInfo& info) {
  const OrtLibrary& ort = OrtLibrary::open(info[0].As<Napi::String>().Utf8Value());
  const std::string kernels = info[1].As<Napi::String>().Utf8Value();
  if (!kernels.empty()) check_kernels(ort, kernels);
  return Napi::String::New(info.Env(), ort.version());
}

/** probeSampler(kernels): throws where the library of kernels can't choose tokens. */
Napi::Value probe_sampler(const Napi::CallbackInfo& info) {
  const SamplerLibrary library(info[0].As<Napi::String>().Utf8Value());
  return info.Env().Undefined();
}

/** Looks at a card off the JavaScript thread: making a context on it takes a while. */
class CudaProbing : public Napi::AsyncWorker {
 public:
  CudaProbing(Napi::Env env, std::string library, int ordinal)
      : Napi::AsyncWorker(env, "layerweave"), deferred_(Napi::Promise::Deferred::New(env)), library_(std::move(library)), ordinal_(ordinal) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    try {
      found_ = probe_cuda(OrtLibrary::open(library_), ordinal_);
    } catch (const CudaUnavailable& error) {
      code_ = error.code();
      throw;
    }
  }

  void OnOK() override {
    const Napi::Env env = Env();
    const auto cards = Napi::Array::New(env, found_.cards.size());
    for (uint32_t i = 0; i < found_.cards.size(); i++) {
      const auto card = Napi::Object::New(env);
      card.Set("name", found_.cards[i].name);
      card.Set("computeCapability", std::to_string(found_.cards[i].major) + "." + std::to_string(found_.cards[i].minor));
      card.Set("bytes", Napi::Number::New(env, static_cast<double>(found_.cards[i].bytes)));
      cards.Set(i, card);
    }
    const auto result = Napi::Object::New(env);
    result.Set("cards", cards);
    result.Set("runtime", found_.runtime);
    result.Set("freeBytes", Napi::Number::New(env, static_cast<double>(found_.free_bytes)));
    deferred_.Resolve(result);
  }

  void OnError(const Napi::Error& error) override {
    error.Value().Set("code", code_);
    deferred_.Reject(error.Value());
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::string library_;
  int ordinal_;
  CudaFindings found_;
  std::string code_ = "failed";
};

/** probeCuda(library, ordinal): the cards, and how much of one is free; rejects with a `code` where CUDA can't be used. */
Napi::Value probe_cuda_later(const Napi::CallbackInfo& info) {
  // It deletes itself when it is done.
  auto* probing = new CudaProbing(info.Env(), info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::Number>().Int32Value());
  const Napi::Promise promise = probing->promise();
  probing->Queue();
  return promise;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto addon = std::make_shared<Addon>(env);
  addon->session_class = Napi::Persistent(NativeSession::define(env));
  env.SetInstanceData(new std::shared_ptr<Addon>(addon));
  // After the thread-safe function was made: hooks run in reverse order, and threads must end before their way back does.
  env.AddCleanupHook([addon] { addon->shut_down(); });
  exports.Set("openSession", Napi::Function::New(env, open_session, "openSession"));
  exports.Set("probe", Napi::Function::New(env, probe, "probe"));
  exports.Set("probeSampler", Napi::Function::New(env, probe_sampler, "probeSampler"));
  exports.Set("probeCuda", Napi::Function::New(env, probe_cuda_later, "probeCuda"));
  return exports;
}

}  // namespace
}  // namespace layerweave

Napi::Object Init(Napi::Env env, Napi::Object exports) { return layerweave::init(env, exports); }
NODE_API_MODULE(layerweave_native, Init)
