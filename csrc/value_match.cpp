// match_number and match_interval on the CPU, row by row.
#include "value_match.h"

namespace vstar {

void match_values_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                      const ValueJob& job, bool interval) {
  for (int32_t r = 0; r < job.rows; ++r) {
    const auto* text = reinterpret_cast<const uint8_t*>(texts[r].data());
    const auto end = static_cast<int32_t>(texts[r].size());
    interval ? interval_row(tables, text, end, job, r) : number_row(tables, text, end, job, r);
  }
}

int32_t find_unit(const std::string& name) {
  for (int32_t i = 0; i < kUnits; ++i)
    if (name == unit_at(i).name) return i;
  return -1;
}

}  // namespace vstar
