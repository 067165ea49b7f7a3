"""PVeRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PveraConfig

from adapters.checkpoint.variants import pvera
from adapters.checkpoint.variants.common import check_fields
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(pvera, PveraConfig)


def test_linear_layers_with_projections_saved(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, PveraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    check(pvera, llama, files, rank=4)
    with pytest.raises(InvalidAdapter, match="tensor 'pvera_A' is not used with save_projection=false"):
        read(pvera, llama, files, save_projection=False)


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_conv1d_with_projections_made(gpt2: Any, tmp_path: Path) -> None:
    config = PveraConfig(r=4, target_modules=["c_attn", "c_fc"], save_projection=False, projection_prng_key=5)
    check(pvera, gpt2, save(gpt2, tmp_path, config), rank=4)


def test_sampling_is_refused() -> None:
    with pytest.raises(InvalidAdapter, match="sample_at_inference: an answer must not depend on chance"):
        check_fields({"sample_at_inference": True}, pvera.APPLIED, pvera.NO_EFFECT, pvera.REFUSED)
