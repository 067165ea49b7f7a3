"""Every tuner of the installed PEFT is read or refused by name."""

from __future__ import annotations

from importlib.util import find_spec

from peft import PeftType

from adapters.checkpoint.variants.unsupported import UNSUPPORTED

# Read by the common reader: they change what is no linear map, or are LoRA itself.
ELSEWHERE = {"LORA", "ADALORA", "LN_TUNING", "TRAINABLE_TOKENS"}


def test_every_tuner_is_read_or_refused() -> None:
    own = {kind.value for kind in PeftType} - ELSEWHERE
    read = {kind for kind in own if find_spec(f"adapters.checkpoint.variants.{kind.lower()}")}
    assert read | set(UNSUPPORTED) == own
    assert not read & set(UNSUPPORTED)


def test_every_refusal_says_what_to_do() -> None:
    assert all("; " in message for message in UNSUPPORTED.values())
