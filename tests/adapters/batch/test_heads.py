"""A head that is not whole, or does not fit, is refused by name."""

from __future__ import annotations

import pytest

from adapters.base import BaseSpec, HeadSpec
from adapters.batch.heads import check_head
from adapters.errors import InvalidAdapter

WHOLE = {
    "pooler.dense.weight": (8, 8),
    "pooler.dense.bias": (8,),
    "classifier.weight": (3, 8),
    "classifier.bias": (3,),
}
POOLER = {name: shape for name, shape in WHOLE.items() if name.startswith("pooler")}
CLASSIFIER = {name: shape for name, shape in WHOLE.items() if name.startswith("classifier")}


def _base(given: dict[str, tuple[int, ...]]) -> BaseSpec:
    by_label = frozenset(CLASSIFIER)
    head = HeadSpec({**WHOLE, "classifier.weight": (2, 8)}, by_label, given, ("pooler", "classifier"))
    return BaseSpec("base", "d", {}, heads={"SEQ_CLS": head})


def test_an_adapter_and_the_base_make_a_head_together() -> None:
    check_head(_base({}), "SEQ_CLS", WHOLE)
    check_head(_base(POOLER), "SEQ_CLS", CLASSIFIER)
    check_head(_base(POOLER), "SEQ_CLS", WHOLE)
    check_head(_base({**POOLER, "classifier.weight": (5, 8), "classifier.bias": (5,)}), "SEQ_CLS", CLASSIFIER)
    check_head(_base({}), "FEATURE_EXTRACTION", {})
    check_head(_base({}), None, {})
    check_head(BaseSpec("base", "d", {}), "SEQ_CLS", {"score.weight": (2, 8)})


@pytest.mark.parametrize(
    ("given", "head", "message"),
    [
        (
            {},
            CLASSIFIER,
            "the SEQ_CLS head lacks 'pooler.dense.weight', which the base's checkpoint does not have either; "
            'train and save it with modules_to_save=["pooler", "classifier"]',
        ),
        (
            POOLER,
            {**WHOLE, "score.weight": (3, 8)},
            "tensor 'score.weight': a SEQ_CLS head of base has only pooler.dense.weight, pooler.dense.bias, "
            "classifier.weight, classifier.bias",
        ),
        (
            POOLER,
            {"classifier.weight": (3, 9), "classifier.bias": (3,)},
            "tensor 'classifier.weight' has shape (3, 9); in a head with 3 labels it has (3, 8)",
        ),
        (
            {**POOLER, "classifier.bias": (2,)},
            {"classifier.weight": (3, 8)},
            "tensor 'classifier.weight' has shape (3, 8); in a head with 2 labels it has (2, 8)",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    given: dict[str, tuple[int, ...]], head: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(InvalidAdapter) as error:
        check_head(_base(given), "SEQ_CLS", head)
    assert str(error.value) == message
