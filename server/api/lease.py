"""From the `model` field to an immutable version, held for the life of the request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapters.catalog import AdapterVersion
from adapters.errors import AdapterNotFound
from server.api.context import ServerContext
from server.api.errors import APIError, model_not_found


@dataclass
class Lease:
    """What answers a request: the base, or one adapter version that stays until `release`."""

    context: ServerContext
    version: AdapterVersion | None
    released: bool = field(default=False, init=False)

    @property
    def model(self) -> str:
        """The answer's `model` field: the version that answered, whatever name was asked for."""
        return self.context.base.name if self.version is None else self.version.ref

    @property
    def label(self) -> str:
        """The `adapter` label in the metrics. A ref has an `@`, so no adapter can be called `base`."""
        return "base" if self.version is None else self.version.ref

    @property
    def digest(self) -> str | None:
        return None if self.version is None else self.version.digest

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the head's outputs, maybe none."""
        return self.context.base.labels if self.version is None else self.version.labels

    @property
    def invocation(self) -> tuple[int, ...]:
        """See `GenerationRequest`."""
        return () if self.version is None else self.version.invocation

    @property
    def headers(self) -> dict[str, str]:
        """Which weights answered; answers of the bare base have no adapter headers."""
        headers = {"x-base-digest": self.context.base.serving_digest}
        if self.version is not None:
            headers |= {"x-adapter": self.version.ref, "x-adapter-digest": self.version.digest}
        return headers

    def release(self) -> None:
        """Give the version back; safe to call twice."""
        if self.version is not None and not self.released:
            self.context.registry.release(self.version.digest)
            self.context.metrics.release(self.version.digest, self.version.name)
        self.released = True


@contextmanager
def leased(context: ServerContext, model: str) -> Iterator[Lease]:
    """A lease for the block. It ends with the block only if that fails: otherwise the answer holds on to it
    until its last token, which for a stream comes after the handler has returned.
    """
    lease = acquire(context, model)
    try:
        yield lease
    except BaseException as error:
        if isinstance(error, APIError) and not lease.released:
            context.metrics.count(lease.label, "rejected")
        lease.release()
        raise


def acquire(context: ServerContext, model: str) -> Lease:
    """Resolve `model` and hold what it names; a 404 for a name that nothing live has."""
    if model == context.base.name:
        return Lease(context, None)
    try:
        version = context.registry.resolve(model)
        context.registry.hold(version.digest)
    except AdapterNotFound:
        context.metrics.unknown_model()
        raise model_not_found(model) from None
    context.metrics.hold(version.digest, version.name)
    return Lease(context, version)
