#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>

#include "session.h"

namespace layerweave {

/**
 * The thread that owns one session: it alone enters it, from loading to releasing. (Contexts and captured graphs of
 * some execution providers belong to the thread that ran first.)
 */
class SessionThread {
 public:
  /** What the thread does next; it gets the session, which only `open` and `close` of this class make and end. */
  using Task = std::function<void(std::unique_ptr<Session>&)>;

  explicit SessionThread(const OrtLibrary& ort);
  /** Ends at once: see `abandon`. */
  ~SessionThread();

  const OrtLibrary& ort() const { return ort_; }
  Interruption& interruption() { return interruption_; }

  /** Appends a task; it is carried out after those before it. Tasks don't throw. */
  void post(Task task);
  /** Carries out what was posted, then releases the session, does `last` and ends. Nothing may be posted afterwards. */
  void finish(std::function<void()> last);
  /** Drops what was posted, interrupts what runs, releases the session and waits for the thread's end. */
  void abandon();

 private:
  void run();
  void look_out() const;

  const OrtLibrary& ort_;
  Interruption interruption_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<Task> tasks_;
  /** Whether there is anything to do: changed under the mutex, read without. */
  std::atomic<bool> called_{false};
  bool finishing_ = false;
  std::function<void()> last_;
  std::thread thread_;
};

}  // namespace layerweave
