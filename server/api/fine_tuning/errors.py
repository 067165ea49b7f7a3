"""Refusals of training files and jobs in OpenAI's shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from server.api.errors import APIError
from server.jobs.errors import Conflict, JobError, NotThere, OverQuota


def from_job_error(error: JobError) -> APIError:
    """One HTTP status for each class of `server.jobs.errors`."""
    for kind, status in ((NotThere, 404), (Conflict, 409), (OverQuota, 403)):
        if isinstance(error, kind):
            return APIError(status, str(error), param=error.param, code=error.code)
    return APIError(400, str(error), param=error.param, code=error.code)


def add_job_errors(app: FastAPI) -> None:
    """Have `app` answer with them."""

    @app.exception_handler(JobError)
    async def job_error(request: Request, error: JobError) -> Response:
        return from_job_error(error).response()
