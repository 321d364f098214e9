// Which dtypes and formats an operation takes.
#pragma once
#include <string>
#include "operation.hpp"

namespace emulation {

// ERROR_INVALID_TENSOR_INI_MATCH with a sentence unless a row of the signature's table has the
// dtypes and formats of all inputs (and of all outputs, where `out` is given).
Status check_table(const Signature& signature, const Descs& in, const Descs* out);

}  // namespace emulation
