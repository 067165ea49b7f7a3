"""Law 4: KV is reused within one (scope, base, adapter digest), and nowhere else."""

from __future__ import annotations

from tests.kit import Families, prompts
from tests.promises.world import World, world

PROMPT = prompts(33, seed=3)[0]
FULL = 32  # tokens of PROMPT in full blocks


def _cached(w: World, ref: str | None, scope: str = "") -> int:
    request_id = w.submit(ref, PROMPT, 4, scope)
    w.finish()
    assert w.wrong() == []
    return w.answers[request_id].cached


def test_the_same_version_in_the_same_scope_reuses(families: Families) -> None:
    with world(families("llama")) as w:
        w.publish("bot", "all")
        assert [_cached(w, "bot"), _cached(w, "bot")] == [0, FULL]
        assert [_cached(w, None), _cached(w, None)] == [0, FULL]


def test_publishing_again_under_a_name_brings_no_stale_kv(families: Families) -> None:
    with world(families("llama")) as w:
        w.publish("bot", "all")
        assert _cached(w, "bot") == 0
        w.publish("bot", "mlp")
        assert _cached(w, "bot") == 0
        w.registry.delete("bot")
        w.publish("bot", "attention")
        assert _cached(w, "bot") == 0


def test_one_content_under_two_names_shares(families: Families) -> None:
    with world(families("llama")) as w:
        assert w.publish("bot", "all") == w.publish("twin", "all")
        assert [_cached(w, "bot"), _cached(w, "twin")] == [0, FULL]


def test_a_rollback_finds_its_own_kv_again(families: Families) -> None:
    with world(families("llama")) as w:
        for content, expected in (("all", 0), ("mlp", 0), ("all", FULL)):
            w.publish("bot", content)
            assert _cached(w, "bot") == expected


def test_scopes_never_share(families: Families) -> None:
    with world(families("llama")) as w:
        w.publish("bot", "all")
        for ref in ("bot", None):
            assert [_cached(w, ref, scope) for scope in ("", "x", "y", "x")] == [0, 0, 0, FULL]


def test_an_evicted_adapter_comes_back_to_its_own_kv(families: Families) -> None:
    with world(families("llama")) as w:
        digest = w.publish("bot", "all")
        assert _cached(w, "bot") == 0
        assert w.core.residency.evict(digest)
        w.core.scheduler.pool.check([])
        assert _cached(w, "bot") == FULL
