// match_number, match_interval and match_sequence on the CPU, row by row.
#include "value_match.h"

#include "spell_rows.h"

namespace vstar {

void match_values_cpu(const LabelTables& tables, const std::vector<std::string_view>& texts,
                      const ValueJob& job, int threads) {
  over_rows(job.rows, bytes_of(texts), threads, [&] {
    return [&](int32_t r) { match_value(tables, row_text(texts[r]), job, r, nullptr, nullptr); };
  });
}

void match_values_ids_cpu(const LabelTables& tables, const TokenTable& tokens, const IdRows& ids,
                          const ValueJob& job, int threads) {
  over_rows(job.rows, bytes_of(ids, job.rows), threads, [&] {
    return [&, speller = Speller(tokens, ids)](int32_t r) mutable {
      match_value(tables, speller.spell(r), job, r, &tokens, &ids);
    };
  });
}

int32_t find_unit(const std::string& name) {
  for (int32_t i = 0; i < kUnits; ++i)
    if (name == unit_at(i).name) return i;
  return -1;
}

}  // namespace vstar
