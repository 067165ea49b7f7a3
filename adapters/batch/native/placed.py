"""An adapter in the form that the native products read: panels, and tables of where they are."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.batch.native.panels import Panels, pack_all
from adapters.batch.placed import Groups, Placed, place_input_scales
from adapters.delta import AdapterWeights

Table = npt.NDArray[np.int64]
SHRINK_FIELDS = 3  # struct Shrink of gemm.cpp
EXPAND_FIELDS = 7  # struct Expand
_MAGNITUDE, _SHIFT = 5, 6


@dataclass(frozen=True, eq=False)
class NativeAdapter(Placed):
    """One adapter version in memory of the CPU.

    Attributes:
        shrink: `(groups, 3)`: address, columns and type of each group's `A`; zeros where it has none.
        expand: `(modules, 7)`: address, first column, rank, type and scale of each module's `B`, addresses of
            its magnitude and shift, likewise.
        groups: `(groups,)`: whether it changes the output of any module of the group.
        columns: the most columns of any group.
        panels, terms: what the tables point into.
    """

    shrink: Table
    expand: Table
    groups: npt.NDArray[np.bool_]
    columns: int
    panels: tuple[Panels, ...]
    terms: tuple[Tensor, ...]

    def to(self, device: torch.device) -> NativeAdapter:
        if device.type != "cpu":
            raise ValueError(f"a native adapter can't be moved to {device}")
        return self

    def tensors(self) -> Iterator[Tensor]:
        return iter(())


def place(library: ctypes.CDLL, weights: AdapterWeights, groups: Groups) -> NativeAdapter:
    """Put `weights` into panels; where bfloat16 holds the values exactly, that is what is kept."""
    shrink = np.zeros((len(groups), SHRINK_FIELDS), np.int64)
    expand = np.zeros((sum(len(names) for names in groups), EXPAND_FIELDS), np.int64)
    touched = np.zeros(len(groups), np.bool_)
    terms: list[Tensor] = []
    # What is to be packed, and whose it is: a group's A, or a module's B with its first column and scale.
    matrices: list[Tensor] = []
    owners: list[int | tuple[int, int, float]] = []
    module = 0
    for index, names in enumerate(groups):
        stacked: list[Tensor] = []
        start = 0
        for name in names:
            delta = weights.deltas.get(name)
            if delta is not None:
                for field, term in ((_MAGNITUDE, delta.magnitude), (_SHIFT, delta.shift)):
                    if term is not None:
                        terms.append(term.clone())
                        expand[module, field] = terms[-1].data_ptr()
                if delta.rank:
                    matrices.append(delta.b)
                    owners.append((module, start, delta.scale))
                    stacked.append(delta.a)
                    start += delta.rank
                touched[index] |= bool(delta.rank or expand[module].any())
            module += 1
        if stacked:
            matrices.append(_joined(stacked))
            owners.append(index)
    kept = pack_all(library, matrices)
    for panels, owner in zip(kept, owners, strict=True):
        data, is_bfloat16 = panels.data.data_ptr(), panels.data.dtype == torch.bfloat16
        if isinstance(owner, int):
            shrink[owner] = data, panels.outputs, is_bfloat16
        else:
            module, start, scale = owner
            expand[module, :_MAGNITUDE] = data, start, panels.inputs, is_bfloat16, _bits(scale)
    scales = {key: scale.clone() for key, scale in place_input_scales(weights, groups).items()}
    tensors = (*(panels.data for panels in kept), *terms, *scales.values())
    return NativeAdapter(
        weights.digest,
        sum(tensor.nbytes for tensor in tensors),
        shrink,
        expand,
        touched,
        int(shrink[:, 1].max(initial=0)),
        tuple(kept),
        tuple(terms),
        input_scales=scales,
    )


def _joined(stacked: list[Tensor]) -> Tensor:
    """One below the other; in float32 unless all have the same type."""
    if len(stacked) == 1:
        return stacked[0]
    same = len({part.dtype for part in stacked}) == 1
    return torch.cat(stacked if same else [part.float() for part in stacked])


def _bits(scale: float) -> int:
    """A double in the place of an integer."""
    (bits,) = struct.unpack("<q", struct.pack("<d", scale))
    return int(bits)
