#include "order.h"

#include <algorithm>
#include <string>

namespace emulator {

bool Order::set(const char* name, uint64_t seed) {
  const std::string wanted = name;
  if (wanted != "forward" && wanted != "reverse" && wanted != "shuffled") return false;
  kind_ = wanted == "forward" ? kForward : wanted == "reverse" ? kReverse : kShuffled;
  seed_ = seed;
  return true;
}

void Order::begin(const char* name, dim3 grid, dim3 block, size_t shared_bytes) {
  random_ = seed_;
  const auto mix = [this](uint64_t part) { random_ = next() ^ part; };
  for (const char* c = name; *c != 0; ++c) mix(static_cast<unsigned char>(*c));
  for (const unsigned part : {grid.x, grid.y, grid.z, block.x, block.y, block.z}) mix(part);
  mix(shared_bytes);
}

std::vector<uint3> Order::blocks(dim3 grid) {
  std::vector<uint3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
  if (kind_ == kReverse) std::reverse(blocks.begin(), blocks.end());
  if (kind_ == kShuffled)
    for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[next() % i]);
  return blocks;
}

void Order::choose_pace() {
  constexpr uint64_t kPaces[] = {0, 3, 63, ~uint64_t{0}};
  restless_ = kPaces[next() % 4];
}

}  // namespace emulator
