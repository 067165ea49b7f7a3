"""A plan becomes one flat row: decode rows first, adapters side by side, logits only where they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.batch.segment import Segment
from server.engine.attention import AttentionPlan, StepLayout
from server.engine.core import EngineCore
from tests.kit import Families, Family, ask, engine_core, preload, prompts, run_all

SHORT, LONG = prompts(4, 21)


class Seen:
    """What each forward pass was given."""

    def __init__(self, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[list[int]] = []
        self.positions: list[list[int]] = []
        self.writes: list[list[int]] = []
        self.rows: list[list[int]] = []
        self.segments: list[list[tuple[int, int, str | None]]] = []
        self.heads: list[list[tuple[int, int, str | None]]] = []
        forward, begin = core.model.forward, core.model.batch.begin

        def see(tokens: Any, positions: Any, plan: AttentionPlan, rows: Any) -> torch.Tensor:
            self.tokens.append(tokens.tolist())
            self.positions.append(positions.tolist())
            self.writes.append(plan.layout.slots.tolist())
            self.rows.append(rows.tolist())
            return forward(tokens, positions, plan, rows)

        def set_(segments: list[Segment[Any]], heads: list[Segment[Any]]) -> None:
            self.segments.append(_plain(segments))
            self.heads.append(_plain(heads))
            begin(segments, heads)

        monkeypatch.setattr(core.model, "forward", see)
        monkeypatch.setattr(core.model.batch, "begin", set_)


def _plain(segments: list[Segment[Any]]) -> list[tuple[int, int, str | None]]:
    return [(s.start, s.stop, s.adapter.digest if s.adapter else None) for s in segments]


@pytest.fixture
def llama(families: Families) -> Family:
    return families("llama")


def test_one_sequence_from_prompt_to_end(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_core(llama, prefill=9) as core:
        seen = Seen(core, monkeypatch)
        answer = run_all(core, [ask("x", LONG, max_tokens=3)])["x"].tokens
        assert seen.tokens == [LONG[:9], LONG[9:18], LONG[18:], answer[:1], answer[1:2]]
        assert [row for step in seen.positions for row in step] == [*range(23)]
        assert len({slot for step in seen.writes for slot in step}) == 23
        assert seen.rows == [[0], [0], [2], [0], [0]]  # one that nobody reads where a chunk is unfinished
        assert seen.heads[:3] == [[(0, 1, None)], [(0, 1, None)], [(0, 1, None)]]


def test_decode_rows_come_first_and_adapters_side_by_side(
    llama: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_core(llama, prefill=64, prefix_cache=False) as core:
        preload(core, "all", "mlp")
        for index, adapter in enumerate(["all", None, "mlp", "all", None]):
            core.submit(ask(str(index), SHORT, adapter))
        core.step()
        seen = Seen(core, monkeypatch)
        core.submit(ask("long", LONG, "mlp"))
        core.submit(ask("scored", SHORT, None, prompt_logprobs=0))
        core.step()
        owners = [owner for _, _, owner in seen.segments[0]]
        assert owners == [None, None, "all", "all", "mlp", None, "mlp"]
        edges = [(start, stop) for start, stop, _ in seen.segments[0]]
        assert edges == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 9), (9, 30)]
        assert seen.rows[0] == [0, 1, 2, 3, 4, *range(5, 9), 29]
        assert seen.heads[0] == [*seen.segments[0][:5], (5, 9, None), (9, 10, "mlp")]
        assert len(set(seen.writes[0])) == 30
        core.abort_all()


def test_the_batch_is_empty_between_steps(llama: Family) -> None:
    with engine_core(llama) as core:
        run_all(core, [ask("x", SHORT, "all")])
        assert core.model.batch._tokens is None
        assert core.model.batch._logits is None


def test_merged_weights_serve_only_steps_of_their_own(llama: Family) -> None:
    with engine_core(llama) as core:
        preload(core, "all")
        core.runner.merged_digest = "all"
        used: list[bool] = []
        run = core.runner.run

        def note(plan: Any) -> Any:
            result = run(plan)
            used.append(core.model.batch.use_merged)
            return result

        core.runner.run = note  # type: ignore[method-assign]
        for adapters in (["all", "all"], ["all", None], [None], ["all", "mlp"]):
            used.clear()
            preload(core, "mlp")
            run_all(core, [ask(str(i), SHORT, adapter, max_tokens=2) for i, adapter in enumerate(adapters)])
            assert set(used) == {set(adapters) == {"all"}}
        core.runner.merged_digest = None
        run_all(core, [ask("x", SHORT, "all", max_tokens=1)])
        assert used[-1] is False


class NotedDecode:
    """A decode path that notes what it is asked for, and answers with what it is given."""

    def __init__(self) -> None:
        self.logits: torch.Tensor | None = None
        self.asked: list[tuple[list[int], list[int], list[str | None]]] = []

    def run(self, tokens: Any, layout: StepLayout, adapters: Any) -> torch.Tensor | None:
        digests = [adapter.digest if adapter else None for adapter in adapters]
        self.asked.append((list(tokens), layout.kv_lengths.tolist(), digests))
        return self.logits


def test_steps_of_one_row_for_each_sequence_go_by_the_decode_path(llama: Family) -> None:
    with engine_core(llama, prefill=64, prefix_cache=False) as core:
        preload(core, "all")
        core.runner.decode = path = NotedDecode()
        core.submit(ask("a", SHORT, "all", max_tokens=9))
        core.submit(ask("b", LONG, max_tokens=9))
        core.step()
        assert path.asked == []
        core.step()  # refused: the other way answers
        [(tokens, lengths, digests)] = path.asked
        expected = [llama.expected(None, LONG, 2), llama.expected("all", SHORT, 2)]
        assert (tokens, lengths, digests) == ([e[0] for e in expected], [22, 5], [None, "all"])
        path.logits = torch.zeros(2, core.model.vocab_size)
        path.logits[0, 7] = path.logits[1, 9] = 1.0
        sequences = {s.request.request_id: s for s in core.scheduler.running}
        core.step()
        assert [sequences[name].tokens[-2:] for name in "ba"] == [[expected[0][1], 7], [expected[1][1], 9]]
        core.submit(ask("c", SHORT, max_tokens=1))
        core.step()
        assert len(path.asked) == 2  # a prompt came in
        core.abort_all()


def test_merged_steps_do_not_go_by_the_decode_path(llama: Family) -> None:
    with engine_core(llama) as core:
        preload(core, "all")
        core.runner.decode = path = NotedDecode()
        core.runner.merged_digest = "all"
        run_all(core, [ask("x", SHORT, "all", max_tokens=3)])
        assert path.asked == []
        run_all(core, [ask("x", SHORT, "mlp", max_tokens=3)])
        assert len(path.asked) == 2
        core.runner.merged_digest = None
