// Warp operations: lanes gather per mask, and the last one lets the others go on.
#include <vector>

#include "scheduler.h"

namespace emulator {
namespace {

constexpr int kCollectives = 8;  // of a warp at once: one per mask in use

struct Collective {
  uint32_t mask = 0, arrived = 0, left = 0, votes = 0;
  bool complete = false, computed = false;
  Site site{};
  const char* what = "";
};
struct Exchanged {
  alignas(16) unsigned char lanes[warpSize][kPayloadBytes];
  alignas(64) unsigned char common[kCommonBytes];
};

std::vector<Collective> collectives;  // [warps][kCollectives]
std::vector<Exchanged> exchanged;     // of each of them

// The operation that the lanes of `mask` gather for, begun if need be.
Collective& find_collective(Site site, const char* what, uint32_t mask, int warp) {
  Collective* const all = &collectives[static_cast<size_t>(warp * kCollectives)];
  Collective* unused = nullptr;
  for (Collective* each = all; each < all + kCollectives; ++each) {
    if (each->mask == mask && !each->complete) {
      if (!same_site(each->site, site))
        fail(site, "lanes of one mask are at different warp operations");
      return *each;
    }
    if (each->mask == 0 && unused == nullptr) unused = each;
  }
  if (unused == nullptr) fail(site, "too many warp operations with different masks");
  *unused = Collective{mask, 0, 0, 0, false, false, site, what};
  return *unused;
}

}  // namespace

void begin_exchanges(int threads) {
  const size_t warps = static_cast<size_t>(threads + warpSize - 1) / warpSize;
  if (collectives.size() < warps * kCollectives) {
    collectives.resize(warps * kCollectives);
    exchanged.resize(warps * kCollectives);
  }
  for (Collective& each : collectives) each.mask = 0;
}

Exchange::Exchange(Site site, const char* what, uint32_t mask, const void* mine, size_t bytes,
                   bool vote)
    : mask_(mask) {
  const int lane = lane_id(), warp = current_thread / warpSize;
  if ((mask >> lane & 1u) == 0) fail(site, "a lane calls a warp operation whose mask lacks it");
  Collective& gathered = find_collective(site, what, mask, warp);
  Exchanged& places = exchanged[static_cast<size_t>(&gathered - collectives.data())];
  if (bytes != 0) std::memcpy(places.lanes[lane], mine, bytes);
  gathered.arrived |= 1u << lane;
  gathered.votes |= static_cast<uint32_t>(vote) << lane;
  collective_ = &gathered;
  payloads_ = places.lanes;
  common_ = places.common;
  if (gathered.arrived != mask) {
    wait_as(Waiting::kWarp, site, what);
    return;
  }
  gathered.complete = true;
  races_meeting(warp, mask);
  for (uint32_t rest = mask & ~(1u << lane); rest != 0; rest &= rest - 1)
    make_ready(warp * warpSize + __builtin_ctz(rest));
}

Exchange::~Exchange() {
  Collective* mine = static_cast<Collective*>(collective_);
  mine->left |= 1u << lane_id();
  if (mine->left == mine->mask) mine->mask = 0;
}

uint32_t Exchange::votes() const { return static_cast<Collective*>(collective_)->votes; }

bool Exchange::first_to_ask() const {
  Collective* mine = static_cast<Collective*>(collective_);
  const bool first = !mine->computed;
  mine->computed = true;
  return first;
}

}  // namespace emulator
