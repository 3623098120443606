// Writes the block that TokenHeader begins.
#include "token_bytes.h"

#include <algorithm>
#include <stdexcept>

namespace vstar {

std::string compile_tokens(const std::vector<std::string_view>& pieces) {
  TokenHeader h{kTokenMagic, 0, static_cast<int32_t>(pieces.size()), 0};
  std::string block(sizeof h + pieces.size() * kEntryBytes, '\0');
  for (size_t id = 0; id < pieces.size(); ++id) {
    const std::string_view piece = pieces[id];
    const auto size = static_cast<int32_t>(piece.size());
    h.longest = std::max(h.longest, size);
    const size_t at = sizeof h + id * kEntryBytes;
    if (size <= kInlineBytes) {
      std::copy(piece.begin(), piece.end(), block.begin() + at);
      block[at + kInlineBytes] = static_cast<char>(size);
      continue;
    }
    const int32_t place[2] = {static_cast<int32_t>(block.size()), size};
    std::memcpy(&block[at], place, sizeof place);
    block[at + kInlineBytes] = static_cast<char>(kLongToken);
    block.append(piece);
    if (block.size() > INT32_MAX) throw std::invalid_argument("the vocabulary has over 2 GiB of bytes");
  }
  h.bytes = static_cast<int32_t>(block.size());
  std::memcpy(&block[0], &h, sizeof h);
  return block;
}

}  // namespace vstar
