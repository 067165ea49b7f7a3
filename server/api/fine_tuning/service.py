"""The files and jobs that a handler works with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from server.api.context import Context
from server.api.errors import APIError
from server.jobs.service import Service, why_not


def get_service(context: Context) -> Service:
    """A 403 where the operator has turned training off, or not installed what it needs."""
    if context.training is None:
        raise APIError(403, f"This server does not train: {why_not(context.settings)}.", code="training_off")
    return context.training


CurrentService = Annotated[Service, Depends(get_service)]
