"""Aliases move by compare-and-set, keep their history, and roll back; on both databases."""

from __future__ import annotations

import pytest

from adapters.errors import (
    AdapterConflict,
    AdapterForbidden,
    AdapterNotFound,
    InvalidAlias,
    InvalidName,
    QuotaExceeded,
)
from adapters.registry import aliases as module
from adapters.registry.aliases import with_canary, without
from adapters.registry.records import Alias, Caller, Target
from adapters.registry.registry import Registry
from tests.adapters.registry.conftest import Shop


def means(alias: Alias) -> dict[int, int]:
    return {target.version: target.percent for target in alias.targets}


def targets(**percents: int) -> tuple[Target, ...]:
    return tuple(Target(int(name[1:]), percent) for name, percent in percents.items())


@pytest.fixture
def three(shop: Shop, registry: Registry) -> Registry:
    """tone@1 to tone@3; `default` means the last."""
    for alpha in (1, 2, 3):
        shop.publish(registry, "tone", alpha)
    return registry


def test_default_follows_the_newest_until_it_is_told_otherwise(shop: Shop, registry: Registry) -> None:
    assert shop.publish(registry, "tone", 1, promote="no") == "tone@1"
    assert registry.resolve("tone").version == 1  # the first one always
    shop.publish(registry, "tone", 2)
    assert registry.resolve("tone").version == 2
    shop.publish(registry, "tone", 3, promote="no")
    assert registry.resolve("tone").version == 2
    shop.publish(registry, "tone", 4)
    assert registry.resolve("tone").version == 2  # it did not mean the newest
    shop.publish(registry, "tone", 5, promote="yes")
    assert registry.resolve("tone").version == 5
    registry.canary("tone@4", 10)
    shop.publish(registry, "tone", 6)
    (default,) = registry.aliases("tone")
    assert means(default) == {4: 10, 5: 90}
    assert shop.publish(registry, "tone", 6, promote="yes") == "tone@6"  # not again, but it is promoted
    assert registry.resolve("tone").version == 6
    assert [version.version for version in registry.versions("tone")] == [1, 2, 3, 4, 5, 6]


def test_a_change_names_the_revision_that_it_expects(three: Registry) -> None:
    first = three.set_alias("tone", "prod", [Target(1)], expected=0)
    assert (first.revision, means(first), first.alias, first.actor) == (1, {1: 100}, "prod", "local")
    with pytest.raises(AdapterConflict, match="'tone@prod' is at revision 1, not 0"):
        three.set_alias("tone", "prod", [Target(2)], expected=0)
    second = three.promote("tone@2", "prod", expected=1)
    assert (second.revision, means(second)) == (2, {2: 100})
    for stale in (
        lambda: three.promote("tone@3", "prod", expected=1),
        lambda: three.canary("tone@3", 5, "prod", expected=1),
        lambda: three.rollback("tone", "prod", expected=1),
        lambda: three.remove_alias("tone", "prod", expected=1),
    ):
        with pytest.raises(AdapterConflict, match="at revision 2, not 1"):
            stale()
    assert means(three.aliases("tone")[1]) == {2: 100}
    three.remove_alias("tone", "prod", expected=2)
    assert [alias.alias for alias in three.aliases("tone")] == ["default"]
    with pytest.raises(AdapterNotFound):
        three.resolve("tone@prod")
    with pytest.raises(AdapterNotFound, match="no alias 'tone@prod'"):
        three.remove_alias("tone", "prod")
    again = three.set_alias("tone", "prod", [Target(3)], expected=0)
    assert again.revision == 4  # so that nobody takes it for the one that was removed
    assert [means(alias) for alias in three.alias_history("tone", "prod")] == [
        {3: 100},
        {},
        {2: 100},
        {1: 100},
    ]


def test_rolling_back_walks_further_back(three: Registry) -> None:
    for number in (1, 2, 3):
        three.promote(f"tone@{number}", "default")
    three.set_alias("tone", "default", targets(v1=20, v2=80), shadow=3)
    back = [means(three.rollback("tone")) for _ in range(3)]
    assert back == [{3: 100}, {2: 100}, {1: 100}]
    three.promote("tone@3")
    assert means(three.rollback("tone")) == {1: 100}  # of before the last change, wherever that came from
    assert means(three.rollback("tone")) == {3: 100}  # what publishing had set
    assert means(three.rollback("tone")) == {2: 100}
    assert means(three.rollback("tone")) == {1: 100}
    with pytest.raises(AdapterConflict, match="has meant nothing else before"):
        three.rollback("tone")
    with pytest.raises(AdapterNotFound):
        three.rollback("tone", "nobody")


def test_what_is_said_twice_is_rolled_back_once(three: Registry) -> None:
    three.set_alias("tone", "default", targets(v1=20, v2=80))
    three.set_alias("tone", "default", targets(v2=80, v1=20), shadow=3)
    assert three.promote("tone@2").revision + 1 == three.promote("tone@2").revision
    assert (means(three.rollback("tone")), three.aliases("tone")[0].shadow) == ({1: 20, 2: 80}, 3)
    assert (means(three.rollback("tone")), three.aliases("tone")[0].shadow) == ({1: 20, 2: 80}, None)
    three.set_alias("tone", "prod", targets(v1=100))
    three.promote("tone@1", "prod")
    with pytest.raises(AdapterConflict, match="has meant nothing else before"):
        three.rollback("tone", "prod")


def test_a_rollback_to_what_is_deleted_is_refused(three: Registry) -> None:
    three.promote("tone@1")
    three.delete("tone@3")
    with pytest.raises(AdapterConflict, match="meant version 3 before, and that is deleted"):
        three.rollback("tone")
    assert three.resolve("tone").version == 1


def test_canaries_and_shadows(three: Registry) -> None:
    assert means(three.canary("tone@1", 10)) == {1: 10, 3: 90}
    assert means(three.canary("tone@1", 50)) == {1: 50, 3: 50}
    assert means(three.canary("tone@2", 20)) == {2: 20, 1: 40, 3: 40}
    assert means(three.canary("tone@2", 0)) == {1: 50, 3: 50}
    assert means(three.canary("tone@1", 100)) == {1: 100}
    alias = three.set_alias("tone", "default", [Target(1)], shadow=2)
    assert alias.shadow == 2
    route = three.route("tone", key="somebody")
    assert (route.version.version, route.alias) == (1, "default")
    assert route.shadow is not None
    assert route.shadow.version == 2
    assert three.canary("tone@2", 10).shadow is None
    assert three.promote("tone@2").shadow is None
    with pytest.raises(InvalidAlias, match="all that the alias means"):
        three.canary("tone@2", 30)
    with pytest.raises(InvalidAlias, match="0 to 100, not 101"):
        three.canary("tone@1", 101)
    with pytest.raises(AdapterNotFound):
        three.canary("tone@1", 10, "nobody")
    three.set_alias("tone", "mix", targets(v1=50, v2=50))
    with pytest.raises(InvalidAlias, match="tone@mix means several versions; name one, such as tone@1"):
        three.promote("tone@mix")
    assert means(three.promote("tone", "mix")) == {2: 100}


def test_what_an_alias_can_t_be(three: Registry) -> None:
    cases: list[tuple[str, tuple[Target, ...], int | None, type[Exception], str]] = [
        ("prod", targets(v1=50), None, InvalidAlias, "percents 50; they must"),
        ("prod", targets(v1=0, v2=100), None, InvalidAlias, "percents 0, 100"),
        ("prod", targets(v1=-1, v2=101), None, InvalidAlias, "percents -1, 101"),
        ("prod", (Target(1, 50), Target(1, 50)), None, InvalidAlias, "names a version twice"),
        ("prod", (), None, InvalidAlias, "no targets"),
        ("prod", targets(v1=100), 1, InvalidAlias, "both as a target and as its shadow"),
        ("prod", targets(v9=100), None, AdapterNotFound, "'tone@9'"),
        ("prod", targets(v1=100), 9, AdapterNotFound, "'tone@9'"),
        ("Prod", targets(v1=100), None, InvalidName, "capital letters"),
        ("latest", targets(v1=100), None, InvalidName, "reserved"),
        ("4", targets(v1=100), None, InvalidName, "reserved"),
    ]
    for alias, wanted, shadow, error, message in cases:
        with pytest.raises(error, match=message):
            three.set_alias("tone", alias, wanted, shadow=shadow)
    assert [each.alias for each in three.aliases("tone")] == ["default"]


def test_an_alias_of_a_reference_with_a_version(three: Registry) -> None:
    with pytest.raises(InvalidName, match="'tone@1' must be an adapter's name without '@'"):
        three.set_alias("tone@1", "prod", [Target(1)])


def test_an_adapter_has_a_bounded_number_of_aliases(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALIASES", 3)
    monkeypatch.setattr(module, "MAX_HISTORY", 2)
    for alias in ("a", "b"):
        three.set_alias("tone", alias, [Target(1)])
    with pytest.raises(QuotaExceeded, match="tone has 3 aliases, the most there may be"):
        three.set_alias("tone", "c", [Target(1)])
    three.set_alias("tone", "b", [Target(2)])
    three.promote("tone@1")
    three.remove_alias("tone", "a")
    three.set_alias("tone", "c", [Target(1)])
    assert [alias.alias for alias in three.aliases("tone")] == ["b", "c", "default"]
    three.set_alias("tone", "b", [Target(3)])
    assert [alias.revision for alias in three.alias_history("tone", "b")] == [3, 2]


def test_default_stays(three: Registry) -> None:
    with pytest.raises(AdapterConflict, match="'tone@default' stays as long as its adapter does"):
        three.remove_alias("tone", "default")


def test_only_the_owner_moves_an_alias(three: Registry) -> None:
    rival = Caller("rival", "key-1")
    with pytest.raises(AdapterNotFound):
        three.promote("default/tone@1", caller=rival)
    three.share("tone", "rival")
    assert [alias.alias for alias in three.aliases("default/tone", rival)] == ["default"]
    with pytest.raises(AdapterForbidden):
        three.promote("default/tone@1", caller=rival)
    with pytest.raises(AdapterForbidden):
        three.set_alias("default/tone", "prod", [Target(1)], caller=rival)


def test_shares_add_up_whatever_they_were() -> None:
    for count in range(1, 8):
        before = with_canary((Target(99),), 1, 1)
        for number in range(2, count + 2):
            before = with_canary(before, number, 100 // (number + 1))
        for percent in (0, 1, 33, 99):
            after = with_canary(before, 1, percent)
            assert sum(target.percent for target in after) == 100
            assert {target.version: target.percent for target in after}.get(1, 0) == percent
            assert min(target.percent for target in after) >= 1
        assert sum(target.percent for target in without(before, 99)) == 100
    assert without((Target(1),), 1) == ()
