"""What can be wrong with a request about training files and jobs; the API and the log show `str(error)`."""

from __future__ import annotations


class JobError(Exception):
    """One clear line. `param`: the field of the request that is to blame; `code`: fit for programs."""

    code = "invalid_job"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class NotThere(JobError):
    """There is no such file, job or event, or it is another tenant's: a 404 over HTTP."""

    code = "not_found"


class Conflict(JobError):
    """It contradicts what is stored, such as to delete a file that a job needs: a 409 over HTTP."""

    code = "conflict"


class OverQuota(JobError):
    """The tenant, or the server, has as much as it may have: a 403 over HTTP."""

    code = "quota_exceeded"
