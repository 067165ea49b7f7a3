"""Every tuner of PEFT has a reader, or is refused with a reason."""

from __future__ import annotations

import pytest
from peft import PeftType

from adapters.checkpoint.config_fields import COMMON_APPLIED, COMMON_NO_EFFECT
from adapters.checkpoint.variants.table import READERS, tuner
from adapters.checkpoint.variants.unsupported import UNSUPPORTED
from adapters.errors import InvalidAdapter


@pytest.mark.parametrize("peft_type", sorted(READERS))
def test_each_reader_is_whole(peft_type: str) -> None:
    reader = tuner(peft_type)
    assert callable(reader.records)
    fields = [*reader.APPLIED, *reader.NO_EFFECT, *reader.REFUSED]
    assert len(fields) == len(set(fields))
    assert not {*fields} & (COMMON_APPLIED | {*COMMON_NO_EFFECT})


@pytest.mark.parametrize(
    "peft_type", sorted({each.value for each in PeftType} - {*READERS, "LORA", "ADALORA"})
)
def test_all_others_are_refused_by_name(peft_type: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        tuner(peft_type)
    assert f"peft_type '{peft_type}' is not supported: " in str(caught.value)
    assert any(advice in str(caught.value) for advice in ("train", "serve", "convert"))


def test_nothing_is_both() -> None:
    assert not READERS.keys() & UNSUPPORTED.keys()
