"""Takes what a request needs out of its tenant's budget, or answers that there is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.access.budgets import Admission, OverBudget, OverQuota
from server.api.context import ServerContext
from server.api.errors import APIError, busy


def check_budget(context: ServerContext, tenant: str) -> None:
    """Refuse what would be refused in the end anyway, before a prompt is looked at."""
    with _refusals():
        context.budgets.check(tenant)


def admit(context: ServerContext, tenant: str, sequences: int, prompt_tokens: int) -> Admission:
    """Room for `sequences` at one time, and `prompt_tokens` paid; close it when the request is over."""
    with _refusals():
        return context.budgets.admit(tenant, sequences, prompt_tokens)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OverBudget as error:
        raise busy(str(error), error.code, error.seconds) from None
    except OverQuota as error:
        raise APIError(403, str(error), code="quota_exceeded") from None
