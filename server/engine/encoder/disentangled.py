"""DeBERTa's attention over relative positions, with the projections of each sequence's own adapter.

    A_ij = Q_i K_j + Q_i K_r(i-j) + K_j Q_r(j-i)      (He et al. 2021, arXiv 2006.03654, equation 4)

`K_r` and `Q_r` are projections of one table of positions, so transformers computes them once for the whole
batch. Here an adapter may change them: `PositionLinear` gives each sequence its own. DeBERTa v1 then works as
it is, since its products broadcast over the batch; the terms of v2 and v3, which are laid out by heads, are
computed below.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.batch.positions import PositionLinear


def position_rows(config: Any, tokens: int) -> int:
    """How many rows of its table a model with this configuration projects for sequences of `tokens`."""
    if not getattr(config, "relative_attention", False):
        return 0
    span = int(getattr(config, "max_relative_positions", -1))
    span = span if span >= 1 else int(config.max_position_embeddings)
    if config.model_type == "deberta":
        return 2 * min(span, tokens)
    buckets = int(getattr(config, "position_buckets", -1))
    return 2 * (buckets if buckets > 0 else span)


def use_own_positions(model: nn.Module) -> None:
    """Have the attention layers of DeBERTa v2 in `model` call `position_scores`."""
    for module in model.modules():
        if hasattr(module, "disentangled_attention_bias"):
            attention: Any = module
            attention.disentangled_attention_bias = partial(position_scores, attention)


def position_scores(
    attention: Any,
    query: Tensor,
    key: Tensor,
    relative_pos: Tensor,
    rel_embeddings: Tensor,
    scale_factor: int,
) -> Tensor:
    """The second and the third term, as `DisentangledSelfAttention` wants them.

    Args:
        query, key: `(sequences * heads, tokens, head_dim)`.
        relative_pos: `(1, tokens, tokens)`, the bucket of `i - j`.
        rel_embeddings: the table, at least `(2 * span, hidden_size)`.
        scale_factor: how many terms there are; each is divided by `sqrt(scale_factor * head_dim)`.

    Returns:
        `(sequences * heads, tokens, tokens)`.
    """
    span = attention.pos_ebd_size
    table = rel_embeddings[: 2 * span][None]
    # Row `i`, column `j`: the place of `i - j` in the table.
    places = (relative_pos.long() + span).clamp(0, 2 * span - 1).view(1, query.shape[1], -1)
    places = places.expand(query.shape[0], -1, -1)
    scores = torch.zeros((), dtype=query.dtype, device=query.device)
    if "c2p" in attention.pos_att_type:
        keys = _project(attention, "key", table)
        scores = scores + (query @ keys.mT).gather(-1, places)
    if "p2c" in attention.pos_att_type:
        queries = _project(attention, "query", table)
        scores = scores + (key @ queries.mT).gather(-1, places.mT).mT
    return scores / math.sqrt(scale_factor * query.shape[-1])


def _project(attention: Any, what: str, table: Tensor) -> Tensor:
    """`(sequences * heads, positions, head_dim)`."""
    layer = getattr(attention, f"{what}_proj" if attention.share_att_key else f"pos_{what}_proj")
    assert isinstance(layer, PositionLinear)
    rows = layer.project(table)
    sequences, positions, _ = rows.shape
    heads = rows.view(sequences, positions, attention.num_attention_heads, -1).transpose(1, 2)
    return heads.reshape(sequences * attention.num_attention_heads, positions, -1)
