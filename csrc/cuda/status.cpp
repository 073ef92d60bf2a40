// Asks Python for a device's status word, once per device.
#include <array>
#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace {
constexpr size_t kMostDevices = 64;
using Source = int32_t* (*)(int32_t device);
std::atomic<Source> source{nullptr};
std::array<std::atomic<int32_t*>, kMostDevices> words{};
}  // namespace

// Called by erase_kernels/_native.py: where words come from.
extern "C" __attribute__((visibility("default"))) void erase_kernels_set_status_source(
    Source function) {
  source = function;
}

namespace erase_kernels {

int32_t* status_word(int32_t device) {
  const size_t index = device < 0 ? 0 : static_cast<size_t>(device);  // the CPU has no number
  std::atomic<int32_t*>& word = words.at(index);
  if (word == nullptr) {
    const Source ask = source;
    word = ask == nullptr ? nullptr : ask(device);
    if (word == nullptr)
      throw std::runtime_error(
          "the status word of the device could not be made: see the error printed above");
  }
  return word;
}

}  // namespace erase_kernels
