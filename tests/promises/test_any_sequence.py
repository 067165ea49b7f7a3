"""Laws 1, 2, 5 and 10 over random sequences of submit, cancel, step, publish, delete and evict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterNotFound
from tests.kit import Families, Family, prompts
from tests.promises.world import World, one_adapter, world

PREFIX = prompts(11, seed=6)[0]
PROMPTS = [PREFIX, [*PREFIX, 7, 8, 9, 10, 11], prompts(3, seed=7)[0]]
NAMES = ["red", "blue"]
CONTENTS = ["all", "attention", "mlp"]

SUBMIT = st.tuples(
    st.just("submit"), st.sampled_from([None, *NAMES]), st.integers(0, 2), st.sampled_from([1, 4, 9])
)
ACTION = st.one_of(
    SUBMIT,
    SUBMIT,
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("publish"), st.sampled_from(NAMES), st.sampled_from(CONTENTS)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("evict"), st.sampled_from(CONTENTS)),
)


class Model:
    """What a name means now, as told by the actions alone."""

    def __init__(self) -> None:
        self.newest: dict[str, str] = {}


def _submit(w: World, model: Model, name: str | None, prompt: int, tokens: int) -> None:
    if name is not None and name not in model.newest:
        with pytest.raises(AdapterNotFound):
            w.submit(name, PROMPTS[prompt], tokens)
        return
    request_id = w.submit(name, PROMPTS[prompt], tokens, scope="x" if tokens == 4 else "")
    digest = w.asked[request_id][0]
    assert w.contents[digest] == (None if name is None else model.newest[name])


def _act(w: World, model: Model, kind: str, *details: Any) -> None:
    if kind == "submit":
        _submit(w, model, *details)
    elif kind == "cancel" and w.live:
        w.cancel(w.live[details[0] % len(w.live)])
    elif kind == "step":
        for _ in range(details[0]):
            w.step()
    elif kind == "publish":
        name, content = details
        w.publish(name, content)
        model.newest[name] = content
    elif kind == "delete" and details[0] in model.newest:
        w.registry.delete(details[0])
        del model.newest[details[0]]
    elif kind == "evict":
        for digest, content in w.contents.items():
            if content == details[0] and digest is not None:
                leased = digest in w.core.residency.device.leases
                assert w.core.residency.evict(digest) != leased


@pytest.fixture(scope="module")
def llama(families: Families) -> Family:
    family = families("llama")
    for content in (None, *CONTENTS):
        for prompt in PROMPTS:
            family.expected(content, prompt, 9)
    return family


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.lists(ACTION, min_size=10, max_size=45), st.booleans())
def test_nothing_is_lost_and_every_answer_is_its_versions(
    llama: Family, actions: list[tuple[Any, ...]], prefix_cache: bool
) -> None:
    before = llama.model.checksum()
    sizes = {"kv_blocks": 9, "block_size": 4, "max_model_len": 36, "max_running": 5}
    budget = one_adapter(llama)
    with world(llama, budget=budget, prefill=6, prefix_cache=prefix_cache, **sizes) as w:
        model = Model()
        w.publish("red", "all")
        model.newest["red"] = "all"
        for action in actions:
            _act(w, model, *action)
            w.core.check()
            assert w.core.residency.device.bytes <= budget
        w.finish()
        assert w.wrong() == []
        live = {version.digest for version in w.registry.list()}
        assert set(w.registry._blobs.digests()) == live  # what nobody names or holds is gone
    assert llama.model.checksum() == before
