// The devices and streams that bindings.cpp finds in the shim: one device, whose current stream is not the default one.
#pragma once

namespace shim {

inline const void* current_stream = nullptr;  // null but while a device is guarded

}  // namespace shim
