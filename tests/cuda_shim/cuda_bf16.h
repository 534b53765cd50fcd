#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) {  // to nearest, ties to even
    std::uint32_t wide;
    std::memcpy(&wide, &v, sizeof wide);
    bits = v == v ? (wide + 0x7fff + (wide >> 16 & 1)) >> 16 : 0x7fff;
  }
};
inline float __bfloat162float(__nv_bfloat16 v) {
  const std::uint32_t wide = std::uint32_t(v.bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
