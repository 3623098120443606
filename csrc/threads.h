// Work that is shared out to threads.
#pragma once

#include <cstdint>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

namespace vstar {

// Calls `work` in this thread and in up to `threads` - 1 more, and waits for all; each takes turns at the
// work until none is left. Where the system gives no further thread, those that there are do it all.
template <class Work>
void on_threads(int64_t threads, const Work& work) {
  std::vector<std::thread> pool;
  pool.reserve(threads > 1 ? static_cast<size_t>(threads - 1) : 0);
  try {
    for (int64_t i = 1; i < threads; ++i) pool.emplace_back(std::cref(work));
  } catch (const std::system_error&) {
  }
  work();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace vstar
