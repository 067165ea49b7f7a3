"""Where adapters may act beside linear maps is seen on the model at hand, and proved on rows alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.batch.sites import RowAxis, Site, find_sites, watch
from adapters.batch.survey import survey
from tests.kit import Families
from tests.tiny import FAMILIES

NOT_BY_ROWS = {"router", "gate", "experts", "self_attn"}  # of several outputs or inputs


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_layers_norms_and_tables_are_sites(name: str, families: Families) -> None:
    stock = families(name).stock
    spec = survey(stock).describe(stock, name="base", digest="d")
    own = {path for path, module in stock.named_modules() if [*module.parameters(recurse=False)]}
    assert spec.replaceable <= own
    assert {path.rpartition(".")[2] for path in own - spec.replaceable} <= NOT_BY_ROWS
    assert spec.replaceable <= spec.linears.keys() | spec.other_modules


@pytest.mark.parametrize(
    ("name", "table", "scale", "head"),
    [
        ("llama", "model.embed_tokens", 1, None),
        ("qwen2", "model.embed_tokens", 1, "lm_head"),
        ("gpt2", "transformer.wte", 1, "lm_head"),
        ("opt", "model.decoder.embed_tokens", 1, "lm_head"),
        ("gemma3_text", "model.embed_tokens", 48**0.5, "lm_head"),
    ],
)
def test_tables_of_token_ids_with_scale_and_head(
    name: str, table: str, scale: float, head: str | None, families: Families
) -> None:
    sites = survey(families(name).stock).sites
    assert [site.name for site in sites.values() if site.embed_scale is not None] == [table]
    assert sites[table].embed_scale == pytest.approx(scale)
    assert sites[table].head == head
    assert [site.name for site in sites.values() if site.on_logits] == ["lm_head"]


def test_a_twin_shares_the_parameters_and_is_no_part_of_the_model(families: Families) -> None:
    stock = families("llama").stock
    norm = survey(stock).sites["model.norm"]
    assert norm.twin is not None
    assert norm.twin is not stock.model.norm
    assert norm.twin.weight is stock.model.norm.weight
    assert not any(module._forward_hooks for module in stock.modules())


class _Model(nn.Module):
    """Modules used in ways that replacing rows can and can't express."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.LayerNorm(4)
        self.twice = nn.LayerNorm(4)
        self.turned = nn.LayerNorm(4)
        self.mixing = _Mixing()
        self.fixed = nn.LayerNorm(4)
        self.scaled = _Scaled(9, 4)
        self.table = nn.Embedding(9, 4)
        self.positions = nn.Embedding(23, 4)
        self.head = nn.Linear(4, 9)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        x = self.plain(self.scaled(ids) + self.table(ids) + self.positions(torch.arange(23)[None]))
        x = self.twice(self.twice(x)) + self.fixed(torch.ones(1, 5, 4)).sum()
        heads = x[:, None].expand(1, 3, -1, 4)
        x = self.turned(heads).sum(1) + self.mixing(x)
        x *= 2  # into what a module gave
        y: Tensor = self.head(x[:, -1:])
        return y


class _Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) * self.weight


class _Scaled(nn.Embedding):
    """Does more than a scale: no adapter can add to it, though it can be replaced."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


def _sites(*, padded: bool = False) -> tuple[_Model, dict[str, Site]]:
    torch.manual_seed(0)
    model = _Model().requires_grad_(False)
    with watch(model) as calls:
        model(torch.arange(23)[None] % 9)
    found = find_sites(
        model,
        calls,
        linears=["head"],
        tables=["scaled", "table"],
        row_counts={23},
        head_rows=1,
        padded=padded,
    )
    return model, found


def test_what_runs_twice_or_on_other_rows_or_mixes_them_is_no_site() -> None:
    model, found = _sites()
    assert found.keys() == {"plain", "turned", "scaled", "table", "positions", "head"}
    assert (found["table"].embed_scale, found["scaled"].embed_scale) == (1.0, None)
    assert found["plain"].rows == RowAxis(1, True)
    assert found["turned"].rows == RowAxis(2, False)
    assert found["head"].on_logits
    assert found["head"].shapes == {"weight": (9, 4), "bias": (9,)}
    assert not any(module._forward_hooks for module in model.modules())


def test_beside_other_sequences_a_table_of_positions_is_no_site() -> None:
    """It may be called with one row of positions for all of them."""
    assert _sites()[1].keys() - _sites(padded=True)[1].keys() == {"positions"}


@pytest.mark.parametrize(
    ("axis", "shape", "count"),
    [
        (RowAxis(0, True), (6, 4), 6),
        (RowAxis(1, True), (1, 6, 4), 6),
        (RowAxis(1, True), (2, 3, 4), 6),
        (RowAxis(2, False), (1, 5, 6, 4), 6),
    ],
)
def test_rows_are_counted_and_cut(axis: RowAxis, shape: tuple[int, ...], count: int) -> None:
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    assert axis.count(x) == count
    part = axis.cut(x, 2, 5)
    flat = x.movedim(axis.dim, 0) if not axis.flat else x.reshape(6, 4)
    assert part.dim() == x.dim()
    assert torch.equal(part.movedim(axis.dim, 0).flatten(), flat[2:5].flatten())
    part.zero_()  # it is a view
    assert not axis.cut(x, 2, 5).any()
    assert axis.cut(x, 0, 2)[..., 1:].all()


def test_a_survey_without_a_tied_head_looks_at_the_weights(families: Families) -> None:
    """Not at the configuration, which may say otherwise."""
    stock: Any = copy.deepcopy(families("qwen2").stock)
    stock.lm_head.weight = nn.Parameter(stock.lm_head.weight.clone(), requires_grad=False)
    assert survey(stock).sites["model.embed_tokens"].head is None
