"""From the two files of an adapter to its records, checked in full against one base.

    header -> plan (every name and shape fits config and base) -> data (finite) -> records

Everything that can be told from the header is checked before any data is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.config import LoraConfig, parse_config
from adapters.checkpoint.derived import Derived
from adapters.checkpoint.digest import content_digest
from adapters.checkpoint.labels import head_labels
from adapters.checkpoint.plan import AdapterPlan, Parts, plan_adapter
from adapters.checkpoint.safetensors_file import TensorInfo, map_file, read_header, tensor_at
from adapters.checkpoint.variants.common import BaseWeights, no_factors
from adapters.checkpoint.variants.experts import experts_delta
from adapters.checkpoint.variants.lora import (
    dropped_factors,
    from_blocks,
    initial_factors,
    magnified,
    magnitude,
    without,
)
from adapters.checkpoint.variants.per_expert import joined_delta
from adapters.checkpoint.variants.table import tuner
from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, ModuleDelta, all_finite
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits

# Largest difference, as a part of the largest value, of a copy of the base's weights that was rounded to
# bfloat16 on its way.
_ROUNDED = 2**-7


def read_adapter(
    config: bytes,
    weights: Path,
    base: BaseSpec,
    limits: AdapterLimits,
    *,
    dtype: torch.dtype | None = None,
    digest: str | None = None,
    labels: tuple[str, ...] = (),
    base_weights: BaseWeights | None = None,
) -> AdapterWeights:
    """The adapter of `config` (the text of adapter_config.json) and `weights` (a safetensors file).

    Args:
        dtype: the type to cast to; None keeps the file's, and the tensors mapped from it.
        digest: the content digest, where it is known already; None computes it.
        labels: names of the head's outputs.
        base_weights: the base's parameters, which some variants need.

    Raises:
        InvalidAdapter: anything in either file that this base cannot serve exactly as it was trained.
        AdapterTooLarge: over one of `limits`.
    """
    plan = plan_adapter(parse_config(config, limits), read_header(weights, limits), base)
    digest = digest or content_digest(plan.config, weights, limits, labels)
    reader = AdapterReader(plan, weights, Derived(base_weights), dtype)
    return reader.read(digest, labels, limits.max_rank)


class AdapterReader:
    """Reads what a plan says. Tensors that need no cast stay mapped from the file.

    Args:
        dtype: as in `read_adapter`.
        derived: the base's weights, and what is known that follows from them.
    """

    def __init__(
        self,
        plan: AdapterPlan,
        weights: Path,
        derived: Derived,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._plan, self._header, self._derived, self._dtype = plan, plan.header, derived, dtype
        self._data = map_file(weights, plan.header)
        self._finite = _all_finite(self._data, plan.header)

    def read(self, digest: str, labels: tuple[str, ...], max_rank: int) -> AdapterWeights:
        """All records.

        Raises:
            InvalidAdapter: a value is not finite, or does not fit the type; the base's weights are needed and
                not at hand; a copy of the base's weights is not one.
            AdapterTooLarge: a rank, after folding, is over `max_rank`.
        """
        plan, own = self._plan, self._plan.view.own
        config = plan.config
        self._check_copies()
        deltas = {own(module): delta for module, delta in self._deltas()}
        for module, delta in deltas.items():
            if delta.rank > max_rank:
                raise AdapterTooLarge(
                    f"{module} has rank {delta.rank} as {config.variant} is served; the largest rank is "
                    f"{max_rank}; raise --max-adapter-rank"
                )
        head = {name: self._take(key) for name, key in plan.head.items()}
        return AdapterWeights(
            digest,
            deltas,
            embeddings={own(module): record for module, record in self._embeddings()},
            experts={own(parameter): record for parameter, record in self._experts()},
            replaced={own(module): parameters for module, parameters in self._replaced()},
            head=head,
            task=config.task,
            labels=head_labels(head, labels, config.task, plan.base),
            invocation=config.invocation if isinstance(config, LoraConfig) else (),
        )

    def _deltas(self) -> Iterator[tuple[str, ModuleDelta]]:
        """Each linear map's record, one at a time, with its own bias where one was trained."""
        plan = self._plan
        if isinstance(plan.config, LoraConfig):
            records: Iterator[tuple[str, ModuleDelta]] = self._lora(plan.config)
        else:
            records = iter(self._of_tuner())
        biased = {module for module in plan.names.biases if module in plan.base.linears}
        for module, delta in records:
            yield module, self._with_bias(module, delta) if module in biased else delta
            biased.discard(module)
        for module in sorted(biased):
            a, b = no_factors(plan.base.linears[module])
            yield module, self._with_bias(module, self._cast(module, ModuleDelta(a, b, 1.0)))

    def _lora(self, config: LoraConfig) -> Iterator[tuple[str, ModuleDelta]]:
        is_plain = not (config.init or config.kasa or config.blocks or config.peft_type == "ADALORA")
        for module, parts in self._plan.linears.items():
            if is_plain and len(parts) == 2:
                a, b = self._take(parts["A"]), self._take(parts["B"])
                yield module, ModuleDelta(a, b, config.scale_for(module))
            elif config.rank_for(module):
                yield module, self._cast(module, self._variant(module, parts, config))
        for module, ids in self._plan.tokens.items():
            if module not in self._plan.base.embeddings:
                yield module, self._cast(module, self._rows_of_head(module, ids))

    def _variant(self, module: str, parts: Parts, config: LoraConfig) -> ModuleDelta:
        """The record of a module whose variant is more than A and B, in float32."""
        linear, rank, scale = (
            self._plan.base.linears[module],
            config.rank_for(module),
            config.scale_for(module),
        )
        a, b = self._take_float(parts["A"]), self._take_float(parts["B"])
        if config.blocks:
            a = from_blocks(a, (rank, linear.in_features), config.blocks, parts["A"])
            b = from_blocks(b, (linear.out_features, rank), config.blocks, parts["B"])
        for gate in ("E", "diag"):
            if gate in parts:
                a = a * self._take_float(parts[gate]).view(-1, 1)
        delta = ModuleDelta(a, b, scale)
        if config.init or config.kasa:
            taken = self._taken_from_base(module, config)
            delta = without(delta, *taken, scale=1.0 if config.kasa else scale)
        if "magnitude_vector" in parts:
            stored, whole = self._take_float(parts["magnitude_vector"]), delta
            factor = self._derived.get(
                f"{module}.magnitude", lambda: magnitude(whole, stored, self._weight(f"{module}.weight"))
            )
            delta = magnified(delta, factor, self._bias(module))
        if "bias" in parts:
            delta = replace(delta, shift=scale * self._take_float(parts["bias"]))
        return delta

    def _taken_from_base(self, module: str, config: LoraConfig) -> tuple[Tensor, Tensor]:
        """The factors that PEFT took out of the module's weight when training began."""
        rank, scale = config.rank_for(module), config.scale_for(module)
        made: list[tuple[Tensor, Tensor]] = []

        def make() -> tuple[Tensor, Tensor]:
            if not made:
                weight = self._weight(f"{module}.weight")
                made.append(
                    dropped_factors(weight, rank)
                    if config.kasa
                    else initial_factors(config.init or "", weight, rank, scale)
                )
            return made[0]

        return (
            self._derived.get(f"{module}.taken_a", lambda: make()[0]),
            self._derived.get(f"{module}.taken_b", lambda: make()[1]),
        )

    def _of_tuner(self) -> list[tuple[str, ModuleDelta]]:
        plan = self._plan
        tensors = {name: self._take_stored(key) for name, key in plan.names.tuner.items()}
        reader = tuner(plan.config.peft_type)
        records = reader.records(plan.config.raw, tensors, plan.base, self._weight)
        return [(module, self._cast(module, records[module])) for module in sorted(records)]

    def _rows_of_head(self, module: str, ids: tuple[int, ...]) -> ModuleDelta:
        """Trained rows of the output head: `W[ids] = rows` is `W + B (rows - W[ids])`, with ones in B."""
        rows = self._take_float(self._plan.names.tokens[module])
        difference = self._derived.get(
            f"{module}.rows", lambda: rows - self._weight(f"{module}.weight")[list(ids)]
        )
        b = torch.zeros(self._plan.base.linears[module].out_features, len(ids))
        b[list(ids), torch.arange(len(ids))] = 1.0
        return ModuleDelta(difference, b, 1.0)

    def _with_bias(self, module: str, delta: ModuleDelta) -> ModuleDelta:
        """`delta` with the adapter's own bias for the base's, which the record's base term has."""
        own, base = self._take_float(self._plan.names.biases[module]), self._bias(module)
        shift = own if base is None else own - base
        return replace(delta, shift=shift if delta.shift is None else delta.shift + shift)

    def _embeddings(self) -> Iterator[tuple[str, EmbeddingDelta]]:
        plan = self._plan
        tables = plan.base.embeddings
        for module in sorted({*plan.embeddings, *(m for m in plan.tokens if m in tables)}):
            record = EmbeddingDelta()
            if parts := plan.embeddings.get(module):
                assert isinstance(plan.config, LoraConfig)
                a, b = self._take(parts["embedding_A"]), self._take(parts["embedding_B"])
                record = EmbeddingDelta(a, b, plan.config.scale_for(module))
            if module in plan.tokens:
                ids = torch.tensor(plan.tokens[module], dtype=torch.int64)
                record = replace(record, ids=ids, rows=self._take(plan.names.tokens[module]))
            yield module, record

    def _experts(self) -> Iterator[tuple[str, ExpertsDelta]]:
        plan = self._plan
        for parameter, parts in sorted(plan.experts.items()):
            assert isinstance(plan.config, LoraConfig)
            experts = plan.base.experts[parameter].experts
            a, b = self._take(parts["A"]), self._take(parts["B"])
            yield parameter, experts_delta(a, b, experts, plan.config.scale_for(parameter))
        for parameter, modules in sorted(plan.per_expert.items()):
            assert isinstance(plan.config, LoraConfig)
            keys = [plan.names.modules[module] for module in modules]
            all_a, all_b = ([self._take(key[part]) for key in keys] for part in "AB")
            scale = plan.config.scale_for(modules[0])
            yield parameter, joined_delta(plan.base.experts[parameter], all_a, all_b, scale)

    def _replaced(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        plan = self._plan
        for module, parts in plan.replaced.items():
            yield module, {parameter: self._take(key) for parameter, key in parts.items()}
        for module, key in plan.names.biases.items():
            if module not in plan.base.linears:
                weight = self._weight(f"{module}.weight")
                yield module, {"weight": weight.to(self._dtype or weight.dtype), "bias": self._take(key)}

    def _check_copies(self) -> None:
        """Copies of the base's own weights are left out once it is seen that they are such."""
        for parameter, key in self._plan.names.copies.items():
            if self._derived.has_weights:
                same = self._derived.get(f"{parameter}.same", partial(self._same, parameter, key))
                if not bool(same):
                    raise InvalidAdapter(
                        f"tensor {key!r} is not the base's own {parameter}: the adapter was made for another "
                        "base, or trained it without naming it in modules_to_save"
                    )

    def _same(self, parameter: str, key: str) -> Tensor:
        own, copy = self._weight(parameter), self._take_float(key)
        return (own - copy).abs().max() <= _ROUNDED * own.abs().max()

    def _weight(self, name: str) -> Tensor:
        return self._derived.weight(self._plan.view.own(name))

    def _bias(self, module: str) -> Tensor | None:
        name = f"{module}.bias"
        return self._weight(name) if name in self._plan.base.parameters else None

    def _take(self, key: str) -> Tensor:
        """A tensor of the file in the wanted type, all of it finite."""
        return _converted(key, tensor_at(self._data, self._header[key]), self._dtype, self._finite)

    def _take_stored(self, key: str) -> Tensor:
        return _converted(key, tensor_at(self._data, self._header[key]), None, self._finite)

    def _take_float(self, key: str) -> Tensor:
        return self._take_stored(key).float()

    def _cast(self, module: str, delta: ModuleDelta) -> ModuleDelta:
        """A record that was computed, in the wanted type; the terms for whole outputs stay float32."""
        made = replace(
            delta,
            a=delta.a.to(self._dtype or delta.a.dtype).contiguous(),
            b=delta.b.to(self._dtype or delta.b.dtype).contiguous(),
        )
        if not all(all_finite(tensor) for tensor in made.tensors()):
            if all(all_finite(tensor) for tensor in delta.tensors()):
                raise InvalidAdapter(f"{module} has values too large for {self._dtype}")
            raise InvalidAdapter(f"the update of {module} is NaN or infinity; the training diverged")
        return made


def _all_finite(data: Tensor, header: Mapping[str, TensorInfo]) -> bool:
    """Whether every value of the file is finite, in one pass; False also if that can't be told so.

    The tensors lie end to end, so that those of one type are one tensor.
    """
    infos = sorted(header.values(), key=lambda info: info.start)
    whole = TensorInfo(
        infos[0].dtype, (sum(math.prod(i.shape) for i in infos),), infos[0].start, infos[-1].end
    )
    if any(info.dtype != whole.dtype for info in infos):
        return False
    # It adds up in float32 anyway; asked for that as its result, it takes ten times as long for bfloat16.
    return math.isfinite(tensor_at(data, whole).sum().item())


def _converted(key: str, stored: Tensor, dtype: torch.dtype | None, finite: bool) -> Tensor:
    """`stored` in `dtype`, all of it finite; `finite`: it is known to be so as it is stored."""
    tensor = stored.to(dtype or stored.dtype)
    if (finite and tensor is stored) or all_finite(tensor):
        return tensor
    if dtype is not None and all_finite(stored):
        raise InvalidAdapter(f"tensor {key!r} has values too large for {dtype}")
    raise InvalidAdapter(f"tensor {key!r} holds NaN or infinity; the training diverged")
