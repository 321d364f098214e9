// Why the last call of this thread failed, as a sentence.
#pragma once
#include <string>
#include "atb/types.h"

namespace emulation {

// Keeps the sentence and returns the code, so that a check is `return fail(code, sentence);`.
// With ATB_LOG_TO_STDOUT=1 in the environment it is printed too.
atb::Status fail(atb::Status code, const std::string& sentence);

// Puts words before the sentence of a failure that came from within; returns its code.
atb::Status within(const std::string& where, atb::Status code);

// f16, bf16, f32, i32, ...
std::string name_of(aclDataType dtype);
// nd, nz
std::string name_of(aclFormat format);
// [2, 3]
std::string text(const atb::Dims& shape);
// f16[2, 3], f16[2, 3] nz
std::string text(const atb::TensorDesc& desc);

}  // namespace emulation
