"""What each tenant has in flight, and its tokens a minute; counted by each server process for itself.

The tokens are a bucket that holds one minute's worth and fills all the time. A request is admitted while
there is anything in it, and pays for its prompt at once and for each token as it is generated; nobody knows
before how many these will be. So the bucket may go into debt, and nothing more is admitted until that is
paid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from adapters.registry.records import Quota

_MINUTE = 60.0


class OverBudget(Exception):
    """A request that is not admitted now. `seconds`: after which it will be, if nothing else is asked."""

    def __init__(self, code: Literal["tenant_busy", "tokens_per_minute"], message: str, seconds: int) -> None:
        super().__init__(message)
        self.code, self.seconds = code, seconds


class OverQuota(Exception):
    """A request that is never admitted: alone it is more than its tenant may have in flight."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """State of a bucket. `remaining` is 0 in debt; `reset` is the time until it is full, in seconds."""

    limit: int
    remaining: int
    reset: float


@dataclass(slots=True)
class _Account:
    """`limit`: tokens a minute for which `balance` was right at the time `counted`."""

    in_flight: int = 0
    limit: int | None = None
    balance: float = 0.0
    counted: float = 0.0

    def refill(self, limit: int, now: float) -> None:
        """Bring `balance` to `now`; a tenant that had no limit before begins with a full bucket."""
        full = self.limit is None
        earned = (now - self.counted) * limit / _MINUTE
        self.balance = float(limit) if full else min(float(limit), self.balance + earned)
        self.limit, self.counted = limit, now


class Budgets:
    """The accounts of all tenants. Not safe across threads: it belongs to the event loop.

    Args:
        quota: of a tenant, as it is now.
        clock: seconds, monotonic.
    """

    def __init__(self, quota: Callable[[str], Quota], clock: Callable[[], float] = time.monotonic) -> None:
        self._quota, self._clock = quota, clock
        self._accounts: dict[str, _Account] = {}

    def places(self, tenant: str, wanted: int) -> int:
        """`wanted` sequences at one time, or as many as `tenant` may ever have in flight."""
        most = self._quota(tenant).max_in_flight
        return wanted if most is None else min(wanted, most)

    def check(self, tenant: str, sequences: int = 1) -> None:
        """Whether `admit` would admit as many.

        Raises:
            OverBudget: not now.
            OverQuota: never.
        """
        quota, account = self._quota(tenant), self._account(tenant)
        self._check_places(quota.max_in_flight, account.in_flight, sequences)
        if quota.tokens_per_minute is not None:
            account.refill(quota.tokens_per_minute, self._clock())
            if account.balance <= 0:
                raise _in_debt(account.balance, quota.tokens_per_minute)

    def admit(self, tenant: str, sequences: int, tokens: int) -> Admission:
        """Take places for `sequences` and pay for `tokens` of prompts; close what this returns.

        Raises:
            OverBudget, OverQuota: as `check`.
        """
        self.check(tenant, sequences)
        self._account(tenant).in_flight += sequences
        admission = Admission(self, tenant, sequences)
        admission.charge(tokens)
        return admission

    @staticmethod
    def _check_places(most: int | None, taken: int, wanted: int) -> None:
        if most is None or taken + wanted <= most:
            return
        if wanted > most:
            raise OverQuota(
                f"The request asks for {wanted} answers at once; its tenant may have {most} in flight "
                "(quota max_in_flight)."
            )
        message = f"{taken} of at most {most} answers of this tenant are in flight; try again in a moment."
        raise OverBudget("tenant_busy", message, 1)

    def tokens(self, tenant: str) -> Tokens | None:
        """The state of the tenant's bucket; None: its tokens are not limited."""
        limit = self._quota(tenant).tokens_per_minute
        if limit is None:
            return None
        account = self._account(tenant)
        account.refill(limit, self._clock())
        missing = limit - account.balance
        return Tokens(limit, max(0, int(account.balance)), missing * _MINUTE / limit)

    def _account(self, tenant: str) -> _Account:
        return self._accounts.setdefault(tenant, _Account())

    def in_flight(self, tenant: str) -> int:
        """Sequences that are admitted and not over."""
        account = self._accounts.get(tenant)
        return 0 if account is None else account.in_flight

    def charge(self, tenant: str, tokens: int) -> None:
        """Take `tokens` out of the bucket, whether they are in it or not."""
        limit = self._quota(tenant).tokens_per_minute
        account = self._account(tenant)
        if limit is None:
            account.limit = None
        else:
            account.refill(limit, self._clock())
            account.balance -= tokens

    def leave(self, tenant: str, sequences: int) -> None:
        """Give back places; of a tenant without anything left to know nothing is kept."""
        account = self._accounts[tenant]
        account.in_flight -= sequences
        if not account.in_flight and account.limit is None:
            del self._accounts[tenant]


class Admission:
    """One admitted request's places in flight; `close` gives them back."""

    def __init__(self, budgets: Budgets, tenant: str, sequences: int) -> None:
        self._budgets, self._tenant, self._sequences = budgets, tenant, sequences
        self._closed = False

    def charge(self, tokens: int) -> None:
        """Pay for `tokens` that were generated."""
        self._budgets.charge(self._tenant, tokens)

    def close(self) -> None:
        """The request is over, in whatever way; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._budgets.leave(self._tenant, self._sequences)


def _in_debt(balance: float, limit: int) -> OverBudget:
    # One second more than whole ones: the balance has to be above zero then, and not at it.
    seconds = int(-balance * _MINUTE / limit) + 1
    message = f"This tenant has used its {limit} tokens a minute; try again in {seconds} s."
    return OverBudget("tokens_per_minute", message, seconds)
