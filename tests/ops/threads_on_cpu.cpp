// The kernels of value_match.cu, their own source, on the CPU: every thread of every block in turn, since
// they share nothing.
#define __device__
#define __global__ static

struct Index {
  int x;
};
static Index threadIdx, blockIdx;

#include "../../csrc/value_match.cu"

using namespace vstar;

template <class Kernel>
static void run_threads(int32_t count, Kernel kernel) {
  for (int32_t i = 0; i < (count + kThreads - 1) / kThreads * kThreads; ++i) {
    blockIdx.x = i / kThreads;
    threadIdx.x = i % kThreads;
    kernel();
  }
}

static LabelTables view(const uint8_t* block) {
  return {*reinterpret_cast<const LabelHeader*>(block), block};
}

// `job`: the pointers of a ValueJob in order.
static ValueJob job_of(const int64_t* p, int32_t rows, int32_t pick, int32_t kind, int32_t most) {
  return {reinterpret_cast<const double*>(p[0]),
          reinterpret_cast<const double*>(p[1]),
          reinterpret_cast<const double*>(p[2]),
          reinterpret_cast<const int32_t*>(p[3]),
          reinterpret_cast<const int64_t*>(p[4]),
          reinterpret_cast<int32_t*>(p[5]),
          reinterpret_cast<double*>(p[6]),
          reinterpret_cast<double*>(p[7]),
          reinterpret_cast<const int32_t*>(p[8]),
          reinterpret_cast<int32_t*>(p[9]),
          reinterpret_cast<int32_t*>(p[10]),
          rows,
          pick,
          kind,
          most};
}

extern "C" void values_of_text(const uint8_t* tables, const uint8_t* text, const int64_t* offsets,
                               const int64_t* job, int32_t rows, int32_t pick, int32_t kind, int32_t most) {
  run_threads(rows,
              [=] { match_values(view(tables), {text, offsets}, job_of(job, rows, pick, kind, most)); });
}

// Ragged ids, int32.
extern "C" void values_of_ids(const uint8_t* tables, const uint8_t* tokens, const int32_t* ids,
                              const int64_t* offsets, const int64_t* job, int32_t rows, int32_t pick,
                              int32_t kind, int32_t most, uint8_t* scratch, int64_t scratch_bytes,
                              int32_t workers) {
  const TokenTable table(*reinterpret_cast<const TokenHeader*>(tokens), tokens);
  const IdRows source{ids, offsets, nullptr, 0, 0, 0};
  run_threads(workers, [=] {
    match_id_values(view(tables), table, source, job_of(job, rows, pick, kind, most), scratch, scratch_bytes,
                    workers);
  });
}
