// The log that a library adds to its messages. Its own file, so that a library that brings this
// function itself does not get a second one.
extern "C" __attribute__((visibility("default"))) const char* atb_emulation_last_error();

extern "C" __attribute__((visibility("default"))) const char* gdsl_runtime_log() {
  return atb_emulation_last_error();
}
