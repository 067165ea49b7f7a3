"""Takes what a request needs out of its tenant's budget, or answers that there is not enough."""

from __future__ import annotations

from server.access.budgets import Admission, OverBudget, OverQuota
from server.api.errors import APIError, busy
from server.api.lease import Lease


def admit(lease: Lease, sequences: int, prompt_tokens: int) -> Admission:
    """Room for `sequences` at one time, and `prompt_tokens` paid; close it when the request is over."""
    try:
        return lease.context.budgets.admit(lease.tenant, sequences, prompt_tokens)
    except OverBudget as error:
        raise busy(str(error), error.code, error.seconds) from None
    except OverQuota as error:
        raise APIError(403, str(error), code="quota_exceeded") from None
