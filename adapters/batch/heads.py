"""Whether the head that an adapter brings for its task is whole and fits the base."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.base import BaseSpec, HeadSpec
from adapters.errors import InvalidAdapter

Shape = tuple[int, ...]


def check_head(base: BaseSpec, task: str | None, head: Mapping[str, Shape]) -> None:
    """Check the shapes of an adapter's `head` for `task`, where the base tells what such a head is made of.

    What the adapter does not bring it was not trained to change: then the base's checkpoint has it.

    Raises:
        InvalidAdapter: something is unknown, lacks, or has a shape that does not fit the rest.
    """
    spec = base.heads.get(task or "")
    if spec is None:
        return
    unknown = sorted(head.keys() - spec.shapes.keys())
    if unknown:
        raise InvalidAdapter(
            f"tensor {unknown[0]!r}: a {task} head of {base.name} has only {', '.join(spec.shapes)}"
        )
    whole = {**spec.given, **head}
    lacking = [name for name in spec.shapes if name not in whole]
    if lacking:
        saved = ", ".join(f'"{module}"' for module in spec.modules)
        raise InvalidAdapter(
            f"the {task} head lacks {lacking[0]!r}, which the base's checkpoint does not have either; "
            f"train and save it with modules_to_save=[{saved}]"
        )
    _check_shapes(spec, whole)


def _check_shapes(spec: HeadSpec, whole: Mapping[str, Shape]) -> None:
    labels = whole[min(spec.by_label)][0]
    for name, shape in whole.items():
        wanted = (labels, *spec.shapes[name][1:]) if name in spec.by_label else spec.shapes[name]
        if shape != wanted:
            raise InvalidAdapter(
                f"tensor {name!r} has shape {shape}; in a head with {labels} labels it has {wanted}"
            )
