"""What the base itself drops by chance, drawn for each job as it would be without neighbours.

Old bases, such as GPT-2, come with dropout that acts while they train. Torch has one random generator for
all of a pass; here each job has its own, and draws from it in the shapes that its rows have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adapters.batch.trainable import Share, TrainableAdapter
from training.joint.passes import Chance

_PROBE = (2, 11)


class OwnChance(TorchFunctionMode):
    """Inside, dropout of the base draws from the generators of the pass's shares."""

    def __init__(self, shares: Sequence[Share], width: int) -> None:
        super().__init__()
        self._shares, self._width = shares, width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return F.dropout(x, p, training, inplace)
        sequences = sum(share.sequences for share in self._shares)
        rows = x.view(sequences, self._width, -1) if x.dim() == 2 else x
        # Of attention's weights, `(sequences, heads, width, width)`, both last dimensions are tokens.
        dims = (1,) if rows.dim() == 3 else (2, 3)
        return self._each(lambda own: F.dropout(own, p), dims, rows).view(x.shape)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options.pop("attn_mask", None)

        def attend(query: Tensor, key: Tensor, value: Tensor, *mask: Tensor) -> Tensor:
            width = query.shape[2]
            cut = mask[0][..., :width, :width] if mask else None
            return F.scaled_dot_product_attention(query, key, value, attn_mask=cut, **options)

        masks = () if mask is None else (mask.expand(len(query), *mask.shape[1:]),)
        return self._each(attend, (2,), query, key, value, *masks)

    def _each(self, draw: Callable[..., Tensor], dims: tuple[int, ...], *tensors: Tensor) -> Tensor:
        """`draw` of each share's sequences without padding along `dims`, put together and padded again."""
        pieces = []
        start = 0
        for share in self._shares:
            own = [tensor[start : start + share.sequences] for tensor in tensors]
            for dim in dims:
                own = [tensor.narrow(dim, 0, share.width) for tensor in own]
            with drawing(share.adapter.generator):
                piece = draw(*own)
            for dim in dims:
                behind = 2 * (piece.dim() - 1 - dim)
                piece = F.pad(piece, (0,) * behind + (0, self._width - share.width))
            pieces.append(piece)
            start += share.sequences
        return torch.cat(pieces)


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch draws from `generator` on its device."""
    cuda = generator.device.type == "cuda"
    before = torch.cuda.get_rng_state(generator.device) if cuda else torch.get_rng_state()
    _set(generator, generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.cuda.get_rng_state(generator.device) if cuda else torch.get_rng_state())
        _set(generator, before)


def _set(generator: torch.Generator, state: Tensor) -> None:
    if generator.device.type == "cuda":
        torch.cuda.set_rng_state(state, generator.device)
    else:
        torch.set_rng_state(state)


def own_chance(model: Any, checkpointing: bool) -> Chance:
    """What to run passes of `model` in, as it trains: seen in a probe.

    `checkpointing`: parts of a pass are computed twice.

    Raises:
        ValueError: it draws random numbers in a way that can't be kept apart.
    """
    share = Share(TrainableAdapter({}, generator=torch.Generator(model.device)), *_PROBE)
    share.adapter.generator.manual_seed(0)
    ids = torch.ones(_PROBE, dtype=torch.long, device=model.device)

    def draws(inside: AbstractContextManager[Any]) -> bool:
        generator = torch.Generator(model.device).manual_seed(1)
        before = generator.get_state()
        with drawing(generator), torch.no_grad(), inside:
            model(input_ids=ids, use_cache=False)
        return not torch.equal(before, generator.get_state())

    if not draws(nullcontext()):
        return lambda shares, width: nullcontext()
    if checkpointing:
        raise ValueError(
            "the base has dropout of its own, and gradient_checkpointing is on: train one at a time"
        )
    if draws(OwnChance([share], _PROBE[1])):
        raise ValueError("the base draws random numbers that can't be kept apart by job: train one at a time")
    return OwnChance
