"""Linear layers that a model calls on its table of relative positions, not on tokens: DeBERTa's.

    Q_r = P W_q,r      K_r = P W_k,r      (He et al. 2021, arXiv 2006.03654, equation 4)

`P`, the table, is the same for all sequences, but an adapter's delta on `W` is not: in a mixed batch each
adapter has projections of its own. They are computed once for each adapter of the step, as rows beside those
of the tokens, and handed to each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.batch.batched import BatchedLinear


@dataclass(slots=True)
class PositionOwners:
    """Whose projections the layers of the step in flight compute.

    Attributes:
        adapters: how many different adapters the step has, the bare base counted as one.
        of_sequence: `(sequences,)` int64, the one of each sequence of the batch.
    """

    adapters: int = 1
    of_sequence: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))


class PositionLinear(nn.Module):
    """Stands in for one linear layer that is called on the table, and maybe on tokens as well.

    Attributes:
        layer: computes the rows of the table; those are the batch's logit rows.
        tokens: the same linear layer where it is called on tokens, or None if it is not.
        owners: shared by all such layers of the model.
    """

    def __init__(self, layer: BatchedLinear, tokens: BatchedLinear | None, owners: PositionOwners) -> None:
        super().__init__()
        self.layer = layer
        self.tokens = tokens
        self.owners = owners

    def project(self, table: Tensor) -> Tensor:
        """`(sequences, positions, out_features)` of a table `(1, positions, in_features)`."""
        adapters, (_, positions, width) = self.owners.adapters, table.shape
        rows = table.expand(adapters, -1, -1).reshape(-1, width)
        y = self.layer.batch.apply(self.layer, table, rows)
        return y.view(adapters, positions, -1).index_select(0, self.owners.of_sequence)

    def forward(self, x: Tensor) -> Tensor:
        """As the model calls it where nothing else is arranged."""
        y: Tensor = self.project(x) if self.tokens is None else self.tokens(x)
        return y
