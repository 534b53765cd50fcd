// Memory whose every access by a kernel is checked; see detector.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace detector {

// Memory of just `size` bytes, with red zones around it. It may be read once it is written, by the host or a kernel.
void* allocate(std::size_t size);

// Makes bytes that no element of a view lies in forbidden; all bytes of an allocation are allowed at first.
void forbid(void* memory, std::size_t size);

// Marks bytes as written by the host.
void initialize(void* memory, std::size_t size);

// Returns true if a kernel or the host has written these bytes.
bool is_initialized(const void* memory, std::size_t size);

// Checks an access of a kernel whose memory is not watched by itself.
void watch(const void* memory, std::size_t size, bool writes);

// Whether kernels watch their memory: else all bytes count as written.
void set_watching(bool watching);

void free_all();

// Prints the names of all barriers that were reached.
void print_barriers();

}  // namespace detector
