// Quantised weights in formats that together have everything.
#include "quantcheck.hpp"

using namespace check;
using gd::f16;
using gd::Quant;

int main() {
  test_format<Quant<8, 0, false, float, false>, bf16>();
  test_format<Quant<4, 32, false, f16, true>, bf16>();
  test_format<Quant<4, 128, true, f16, false>, float>();
  return finish("quant");
}
