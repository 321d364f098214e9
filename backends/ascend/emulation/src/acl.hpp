// Streams and the SoC, as other parts of the emulation ask for them.
#pragma once
#include "acl/acl.h"

namespace emulation {

// Notes that work was put on a stream. False where it is no stream.
bool use_stream(aclrtStream stream);

}  // namespace emulation
