#include "session_thread.h"

#include <chrono>
#include <utility>

namespace layerweave {

namespace {

/** JavaScript takes about as long to choose a token and to ask for the next, and a thread that sleeps to wake. */
constexpr std::chrono::microseconds kPatience(200);

}  // namespace

SessionThread::SessionThread(const OrtLibrary& ort) : ort_(ort), interruption_(ort), thread_([this] { run(); }) {}

SessionThread::~SessionThread() { abandon(); }

void SessionThread::post(Task task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push(std::move(task));
    called_ = true;
  }
  changed_.notify_one();
}

void SessionThread::finish(std::function<void()> last) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finishing_ = true;
    called_ = true;
    last_ = std::move(last);
  }
  changed_.notify_one();
}

void SessionThread::abandon() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finishing_ = true;
    called_ = true;
    last_ = nullptr;
    tasks_ = {};
  }
  interruption_.request();
  changed_.notify_one();
  thread_.join();
}

void SessionThread::look_out() const {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!called_ && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

void SessionThread::run() {
  std::unique_ptr<Session> session;
  for (;;) {
    Task task;
    if (session) look_out();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return finishing_ || !tasks_.empty(); });
      if (tasks_.empty()) break;
      task = std::move(tasks_.front());
      tasks_.pop();
      called_ = finishing_ || !tasks_.empty();
    }
    task(session);
  }
  session.reset();
  std::function<void()> last;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    last = std::move(last_);
  }
  if (last) last();
}

}  // namespace layerweave
