// Members of string streams that libstdc++ has had for a few years only, and which PyTorch's headers use for messages:
// defined here, a library that is compiled on a new system runs on an older one.
#include <sstream>

#if defined(__GLIBCXX__)
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;
#endif
