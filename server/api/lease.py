"""From what a request asks for to immutable versions, held for the life of the request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from starlette.requests import HTTPConnection

from adapters.errors import AdapterError, AdapterNotFound, RegistryUnavailable
from adapters.mixture import Mixture
from adapters.registry.names import DEFAULT_TENANT
from adapters.registry.records import AdapterVersion, Caller, Route
from server.api.admission import check_budget
from server.api.context import ServerContext
from server.api.errors import APIError, from_adapter_error, model_not_found
from server.api.schemas import AdapterShare, ModelFields, invalid
from server.api.spellings import Asked, read_asked
from server.engine.request import EngineError

MIXTURE = "mixture"
"""The `adapter` label of all mixtures in the metrics: anyone can send any number of scales."""


@dataclass
class Lease:
    """What answers a request: the base, one adapter version or a mixture, which stays until `release`.

    Attributes:
        versions: of a mixture all of them, in the order in which they were named; none for the base.
        scales: of a mixture, one for each version; else empty.
        tenant: of the caller.
        alias: led to the one version; empty if none did.
        shadow: gets a copy of the request.
    """

    context: ServerContext
    versions: tuple[AdapterVersion, ...] = ()
    scales: tuple[float, ...] = ()
    tenant: str = DEFAULT_TENANT
    alias: str = ""
    shadow: AdapterVersion | None = None
    released: bool = field(default=False, init=False)

    @property
    def version(self) -> AdapterVersion | None:
        """The one version that answers as it is."""
        return self.versions[0] if self.versions and not self.scales else None

    @cached_property
    def mixture(self) -> Mixture | None:
        if not self.scales:
            return None
        digests = (version.digest for version in self.versions)
        return Mixture.of(list(zip(digests, self.scales, strict=True)))

    @property
    def model(self) -> str:
        """The answer's `model` field: the versions that answered, whatever names were asked for."""
        if not self.scales:
            return self.versions[0].ref_for(self.tenant) if self.versions else self.context.base.name
        refs = (version.ref_for(self.tenant) for version in self.versions)
        shares = zip(refs, self.scales, strict=True)
        return "+".join(f"{ref}*{repr(scale).removesuffix('.0')}" for ref, scale in shares)

    @property
    def label(self) -> str:
        """The `adapter` label in the metrics. A ref has an `@`, so no adapter can be called `base`."""
        return MIXTURE if self.scales else self.versions[0].ref if self.versions else "base"

    @cached_property
    def digest(self) -> str | None:
        if self.mixture is not None:
            return self.mixture.digest
        return self.versions[0].digest if self.versions else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the head's outputs, maybe none."""
        return self.context.base.labels if self.version is None else self.version.labels

    @property
    def invocation(self) -> tuple[int, ...]:
        """See `GenerationRequest`."""
        return () if self.version is None else self.version.invocation

    @property
    def scope(self) -> str:
        """See `GenerationRequest`: a tenant's cached KV is its own, unless the operator says otherwise."""
        return "" if self.context.settings.share_kv else self.tenant

    @property
    def headers(self) -> dict[str, str]:
        """Which weights answered, and the alias that chose them; the bare base has no adapter headers."""
        headers = {"x-base-digest": self.context.base.serving_digest}
        if self.digest is not None:
            headers |= {"x-adapter": self.model, "x-adapter-digest": self.digest}
        if self.alias:
            headers["x-adapter-alias"] = self.alias
        return headers

    def hold(self) -> None:
        """Keep what answers.

        Raises:
            AdapterNotFound: a version has just been deleted; nothing is held then.
        """
        registry = self.context.registry
        for index, version in enumerate(self.versions):
            try:
                registry.hold(version.digest)
            except AdapterNotFound:
                for held in self.versions[:index]:
                    registry.release(held.digest)
                raise
        if self.mixture is not None:
            self.context.mixtures.hold(self.mixture)
        for version in self.versions:
            self.context.metrics.hold(self.digest or "", version.full_name)

    def release(self) -> None:
        """Give everything back; safe to call twice."""
        if self.released:
            return
        self.released = True
        if self.mixture is not None:
            self.context.mixtures.release(self.mixture)
        for version in self.versions:
            self.context.registry.release(version.digest)
            self.context.metrics.release(self.digest or "", version.full_name)

    def failure(self, error: AdapterError) -> Exception:
        """What to answer when the engine can't load what this holds.

        A version was checked when it was published, so that is the server's fault and no 4xx; a mixture is
        made of what the request says. Its files may be out of reach for a while.
        """
        if self.scales or isinstance(error, RegistryUnavailable):
            return from_adapter_error(error, "adapters")
        return EngineError(str(error))


@contextmanager
def leased(
    request: HTTPConnection, context: ServerContext, caller: Caller, body: ModelFields
) -> Iterator[Lease]:
    """A lease for the block. It ends with the block only if that fails: otherwise the answer holds on to it
    until its last token, which for a stream comes after the handler has returned.
    """
    asked = read_asked(request.headers, body, context.base.name)
    lease = acquire(context, caller, asked, body.adapters)
    try:
        check_budget(context, lease.tenant)
        yield lease
    except BaseException as error:
        if isinstance(error, APIError) and not lease.released:
            context.metrics.count(lease.label, "rejected")
        lease.release()
        raise


def acquire(
    context: ServerContext, caller: Caller, asked: Asked, adapters: Sequence[AdapterShare] | None = None
) -> Lease:
    """Resolve what is asked for, or the base with `adapters`, and hold it.

    A name that nothing live has which `caller` may see is a 404.
    """
    lease = _mixed(context, caller, asked, adapters) if adapters else _single(context, caller, asked)
    try:
        lease.hold()
    except AdapterNotFound:
        context.metrics.unknown_model()
        raise model_not_found(lease.model if adapters else asked.model, asked.param) from None
    return lease


def _single(context: ServerContext, caller: Caller, asked: Asked) -> Lease:
    if asked.model == context.base.name:
        return Lease(context, tenant=caller.tenant)
    route = _route(context, caller, asked)
    return Lease(context, (route.version,), tenant=caller.tenant, alias=route.alias, shadow=route.shadow)


def _mixed(context: ServerContext, caller: Caller, asked: Asked, adapters: Sequence[AdapterShare]) -> Lease:
    if asked.model != context.base.name:
        raise invalid(asked.param, f"must be `{context.base.name}`, the base's name, when adapters is given")
    versions: list[AdapterVersion] = []
    for index, share in enumerate(adapters):
        param = f"adapters[{index}].name"
        version = _route(context, caller, Asked(share.name, param, asked.key)).version
        if version in versions:
            raise invalid(param, f"`{version.ref}` is named twice; name it once, with the sum of the scales")
        versions.append(version)
    scales = tuple(share.scale for share in adapters)
    if scales == (1.0,):
        return Lease(context, tuple(versions), tenant=caller.tenant)
    for index, version in enumerate(versions):
        if version.unmixable:
            why = f"`{version.ref}` can't be scaled or mixed: {version.unmixable}; name it alone, as `model`"
            raise invalid(f"adapters[{index}].name", why)
    rank, most = sum(version.rank for version in versions), context.settings.max_adapter_rank
    if rank > most:
        raise invalid("adapters", f"the ranks add up to {rank}, more than {most} (--max-adapter-rank)")
    return Lease(context, tuple(versions), scales, caller.tenant)


def _route(context: ServerContext, caller: Caller, asked: Asked) -> Route:
    try:
        return context.registry.route(asked.model, caller, asked.key)
    except AdapterNotFound:
        context.metrics.unknown_model()
        raise model_not_found(asked.model, asked.param) from None
