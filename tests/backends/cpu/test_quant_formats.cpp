// Quantised weights in every kind of format.
#include "quantcheck.hpp"

using namespace check;
using gd::f16;

int main() {
  test_both<8, 0, false, float, bf16>();
  test_both<8, 0, true, float, float>();
  test_both<8, 16, false, f16, bf16>();
  test_both<8, 16, false, float, float>();
  test_both<8, 32, false, f16, float>();
  test_both<8, 64, true, f16, bf16>();
  test_both<8, 128, false, f16, bf16>();
  test_both<4, 0, false, float, float>();
  test_both<4, 16, true, f16, bf16>();
  test_both<4, 32, false, f16, bf16>();
  test_both<4, 32, false, f16, float>();
  test_both<4, 32, true, f16, bf16>();
  test_both<4, 64, false, f16, bf16>();
  test_both<4, 128, true, f16, float>();
  return finish("quant formats");
}
