"""Random graphs, built and compared with the reference: `make fuzz SEEDS=1000` draws more."""

from __future__ import annotations

from typing import Any

import pytest
from random_graphs import kernel_soup, random_layer, random_model

pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_kernel_soup(fuzz_seed: int, dtype: str, compare: Any) -> None:
    compare(kernel_soup(fuzz_seed, dtype), dtype, seed=fuzz_seed)


@pytest.mark.parametrize("make", [random_layer, random_model])
def test_layers_and_models(fuzz_seed: int, make: Any, compare: Any) -> None:
    compare(make(fuzz_seed), seed=fuzz_seed, threads=(1, 2))
