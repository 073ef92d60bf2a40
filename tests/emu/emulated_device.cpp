// Asynchronous copies and tensor-core products of the emulator.
#include "emulated_device.h"

#include <cstddef>
#include <vector>

namespace erase_kernels {
namespace {

constexpr emulator::Site kCopySite{"cp.async", 0};

struct Copy {
  void* shared;
  const void* global;
  size_t bytes;
  bool valid;
};

// Copies of one thread in the order they were started; those of a group that landed are gone.
struct Queue {
  uint64_t block = 0;
  std::vector<Copy> copies;
  std::vector<size_t> ends;  // of the groups, in copies
};
std::vector<Queue> queues;

Queue& my_queue() {
  const size_t thread = static_cast<size_t>(emulator::current_thread);
  if (queues.size() <= thread) queues.resize(thread + 1);
  Queue& mine = queues[thread];
  if (mine.block != emulator::block_serial) {
    mine.block = emulator::block_serial;
    mine.copies.clear();
    mine.ends.clear();
  }
  return mine;
}

bool aligned(const void* place, size_t bytes) {
  return reinterpret_cast<uintptr_t>(place) % bytes == 0;
}

}  // namespace

void emulated_copy(void* shared, const void* global, int bytes, bool valid) {
  const size_t size = static_cast<size_t>(bytes);
  if (!aligned(shared, size) || !aligned(global, size))
    emulator::fail(kCopySite, "an asynchronous copy of misaligned memory");
  emulator::races_access(shared, size, emulator::Access::kWrite);
  std::memset(shared, emulator::kPoison, size);
  my_queue().copies.push_back({shared, global, size, valid});
}

void emulated_increment(emulator::Site site, uint32_t address) {
  if (address % sizeof(uint32_t) != 0) emulator::fail(site, "a misaligned counter");
  if (address + sizeof(uint32_t) > emulator::dynamic_shared_bytes())
    emulator::fail(site, "a counter outside of dynamic shared memory");
  atomicAdd(reinterpret_cast<uint32_t*>(dynamic_shared<unsigned char>() + address), 1u);
}

void emulated_commit() {
  Queue& mine = my_queue();
  mine.ends.push_back(mine.copies.size());
}

void emulated_wait(int groups) {
  Queue& mine = my_queue();
  if (mine.ends.size() <= static_cast<size_t>(groups)) return;
  const size_t landing = mine.ends.size() - static_cast<size_t>(groups);
  const size_t end = mine.ends[landing - 1];
  for (size_t i = 0; i < end; ++i) {
    const Copy& copy = mine.copies[i];
    emulator::races_access(copy.shared, copy.bytes, emulator::Access::kWrite);
    if (copy.valid) emulator::races_access(copy.global, copy.bytes, emulator::Access::kRead);
    if (copy.valid)
      std::memcpy(copy.shared, copy.global, copy.bytes);
    else
      std::memset(copy.shared, 0, copy.bytes);
  }
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + static_cast<std::ptrdiff_t>(end));
  mine.ends.erase(mine.ends.begin(), mine.ends.begin() + static_cast<std::ptrdiff_t>(landing));
  for (size_t& later : mine.ends) later -= end;
}

void emulated_ldmatrix(emulator::Site site, uint32_t (&out)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::fail(site, "a misaligned matrix row");
  emulator::races_access(row, 16, emulator::Access::kRead);
  emulator::Exchange lanes(site, "ldmatrix", 0xffffffffu, &row, sizeof(row));
  const int lane = emulator::lane_id();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const char* source = lanes.of<const char*>(8 * matrix + lane / 4);
    std::memcpy(&out[matrix], source + 4 * (lane % 4), sizeof(uint32_t));
  }
}

void emulated_mma(emulator::Site site, float (&c)[4], const uint32_t (&a)[4],
                  const uint32_t (&b)[2], float (*widen)(uint16_t)) {
  struct Fragments {
    uint32_t a[4], b[2];
    float c[4];
  } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  emulator::Exchange lanes(site, "mma.m16n8k16", 0xffffffffu, &mine, sizeof(mine));
  struct Product {
    float c[16][8];
  };
  const Product product = lanes.common<Product>([&] {
    double left[16][16], right[16][8], sums[16][8];
    const auto half_of = [&](uint32_t word, int which) {
      return static_cast<double>(widen(static_cast<uint16_t>(word >> (16 * which))));
    };
    for (int lane = 0; lane < 32; ++lane) {
      const Fragments each = lanes.of<Fragments>(lane);
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int which = 0; which < 2; ++which) {
        for (int part = 0; part < 4; ++part)
          left[group + part % 2 * 8][pair + part / 2 * 8 + which] = half_of(each.a[part], which);
        for (int part = 0; part < 2; ++part)
          right[pair + part * 8 + which][group] = half_of(each.b[part], which);
        sums[group][pair + which] = static_cast<double>(each.c[which]);
        sums[group + 8][pair + which] = static_cast<double>(each.c[2 + which]);
      }
    }
    Product result;
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k)
        for (int column = 0; column < 8; ++column)
          sums[row][column] += left[row][k] * right[k][column];
      for (int column = 0; column < 8; ++column)
        result.c[row][column] = static_cast<float>(sums[row][column]);
    }
    return result;
  });
  const int group = emulator::lane_id() / 4, pair = emulator::lane_id() % 4 * 2;
  for (int which = 0; which < 2; ++which) {
    c[which] = product.c[group][pair + which];
    c[2 + which] = product.c[group + 8][pair + which];
  }
}

}  // namespace erase_kernels
