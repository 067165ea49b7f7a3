"""Law 5: a request finishes on the version it started with, whatever happens to the name meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.errors import AdapterNotFound
from tests.kit import Families, prompts
from tests.promises.world import World, one_adapter, world

PROMPT = prompts(14)[0]


def _replace(w: World) -> None:
    w.publish("bot", "mlp")


def _delete(w: World) -> None:
    w.registry.delete("bot")
    with pytest.raises(AdapterNotFound):
        w.registry.resolve("bot")


def _delete_and_replace(w: World) -> None:
    _delete(w)
    w.publish("bot", "attention")
    w.submit("bot", PROMPT, 9)


def _evict(w: World) -> None:
    for digest in w.contents:
        if digest is not None:
            w.core.residency.evict(digest)


def _crowd_out(w: World) -> None:
    w.publish("other", "patterns")
    w.submit("other", PROMPT, 9)
    w.registry.delete("other")


@pytest.mark.parametrize("event", [_replace, _delete, _delete_and_replace, _evict, _crowd_out])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_whatever_happens_after(steps: int, event: Callable[[World], None], families: Families) -> None:
    """`steps` generated tokens in: still waiting, prefilling, and decoding."""
    family = families("llama")
    with world(family, budget=one_adapter(family), prefill=7) as w:
        digest = w.publish("bot", "all")
        request_id = w.submit("bot", PROMPT, 9)
        while len(w.answers[request_id].tokens) < steps:
            w.step()
        event(w)
        w.finish()
        assert w.asked[request_id][0] == digest
        assert w.answers[request_id].reason == "length"
        assert w.wrong() == []


def test_the_files_of_a_deleted_version_go_when_its_last_request_ends(families: Families) -> None:
    with world(families("llama")) as w:
        digest = w.publish("bot", "all")
        w.submit("bot", PROMPT, 9)
        w.registry.delete("bot")
        assert w.registry._blobs.folder(digest).exists()
        w.finish()
        assert w.wrong() == []
        assert not w.registry._blobs.folder(digest).exists()
