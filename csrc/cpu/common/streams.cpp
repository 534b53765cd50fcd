// Members of string streams that only recent versions of libstdc++ export, and that PyTorch's headers use for messages.
// With these definitions, a library that is compiled on a new system also runs on an older one.
#include <sstream>

#if defined(__GLIBCXX__)
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;
#endif
