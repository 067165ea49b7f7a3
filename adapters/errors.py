"""What can be wrong with an adapter, as exceptions that the CLI and the API turn into one clear line.

Every message names the offending tensor, field or adapter and says what to do about it.
"""

from __future__ import annotations


class AdapterError(Exception):
    """Base of all errors in this package. `str(error)` is one line, fit to be shown to a user."""


class InvalidAdapter(AdapterError):
    """The files are not an adapter that this base can serve: a 400 over HTTP, exit code 1 in the CLI."""


class InvalidAlias(AdapterError):
    """The alias can't mean this: percents that are not 100 together, and the like: a 400 over HTTP."""


class AdapterTooLarge(AdapterError):
    """The adapter is over a declared limit (file size, rank): a 413 over HTTP."""


class InvalidName(AdapterError):
    """The adapter name breaks the naming rules, or is taken by something else: a 400 over HTTP."""


class AdapterNotFound(AdapterError):
    """No live adapter (or no live version of it) has this name: a 404 over HTTP, never the base."""


class TenantNotFound(AdapterError):
    """There is no such tenant, or the caller may not know of it: a 404 over HTTP."""


class KeyNotFound(AdapterError):
    """There is no such API key, or it is another tenant's: a 404 over HTTP."""


class AdapterForbidden(AdapterError):
    """It can be seen, being shared, but only its owner may change it: a 403 over HTTP."""


class QuotaExceeded(AdapterError):
    """The tenant has as much as it may have; names the quota and the numbers: a 403 over HTTP."""


class ProofUnavailable(AdapterError):
    """Only proved adapters are taken, and the proof could not be made just now: a 503 over HTTP."""


class RegistryUnavailable(AdapterError):
    """The database, or the store of the files, does not answer: a 503 over HTTP. Try again later."""


class AdapterConflict(AdapterError):
    """The request contradicts what is stored, such as loading a name twice: a 409 over HTTP."""
