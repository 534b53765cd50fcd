#pragma once

struct __half {
  _Float16 value;
  __half() = default;
  explicit __half(float v) : value(v) {}
};
inline float __half2float(__half v) { return v.value; }
inline __half __float2half_rn(float v) { return __half(v); }
