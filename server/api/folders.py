"""Publishing a folder on the server and deleting a name, as the peers' routes for adapters do both.

Errors have vLLM's types.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from starlette.concurrency import run_in_threadpool

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.labels import LABELS_FILE
from adapters.errors import AdapterError, AdapterNotFound
from adapters.registry.lineage import LINEAGE_FILE
from adapters.registry.records import AdapterVersion, Caller, Desired
from server.api.context import ServerContext
from server.api.errors import APIError, from_adapter_error
from server.api.publishing import publish

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


async def publish_from(
    context: ServerContext,
    caller: Caller,
    name: str,
    path: str,
    *,
    field: str,
    in_use: str | None,
    desired: Desired = "",
) -> AdapterVersion:
    """Publish the adapter in a folder beneath `--adapter-dir`.

    Args:
        field: the request's name for `path`, for errors.
        in_use: what to do about a name in use, for the 400; None: it gets a new version.
        desired: what every server is to keep in memory of it; empty leaves that as it is.
    """
    folder = await run_in_threadpool(allowed_folder, context.settings.adapter_dir, path, field)
    if in_use is not None and _is_used(context, caller, name):
        raise user_error(f"The lora adapter '{name}' has already been loaded. {in_use}")
    try:
        version, _ = await publish(
            context, lambda: context.registry.publish_folder(name, folder, source=path, caller=caller)
        )
        if desired:
            ref = f"{version.tenant}/{version.name}@{version.version}"
            await run_in_threadpool(lambda: context.registry.want(ref, desired, caller=caller))
    except AdapterError as error:
        refused = from_adapter_error(error)
        raise user_error(str(error)) if refused.status == 400 else refused from None
    return version


async def delete_name(context: ServerContext, caller: Caller, name: str) -> None:
    """Delete every version of a name, aliases or not: that is what peers' clients mean by unloading.

    A reference to one version, or to what an alias means, is no name here.
    """
    if "@" in name:
        raise not_found(
            f"The lora adapter '{name}' cannot be found: give a name, which unloads all versions."
        )
    try:
        await run_in_threadpool(lambda: context.registry.delete(name, caller=caller, force=True))
    except AdapterNotFound:
        raise not_found(f"The lora adapter '{name}' cannot be found.") from None


def allowed_folder(adapter_dir: Path | None, path: str, field: str) -> Path:
    """The real folder behind `path`, if it and its files lie beneath `adapter_dir`.

    Links are followed before the comparison. What lies outside is refused before it is looked at, so the
    answer doesn't tell whether it exists.
    """
    if _URL.match(path):
        raise user_error(
            f"'{field}' is a URL, and no request makes this server fetch one: put the folder beneath "
            "--adapter-dir and send its path, or upload the files to POST /v1/adapters."
        )
    if adapter_dir is None:
        message = "Loading from a path is off: start with --adapter-dir, or upload to POST /v1/adapters."
        raise APIError(403, message, param=field, code="adapter_dir_not_set")
    outside = APIError(
        403,
        f"'{field}' lies outside the folder that the operator allows (--adapter-dir).",
        param=field,
        code="path_not_allowed",
    )
    try:
        root = adapter_dir.resolve()
        above = (root, adapter_dir.absolute())
        given = root / path
        if ".." in PurePath(path).parts or not any(given.is_relative_to(place) for place in above):
            raise outside
        folder = given.resolve()
        files = [folder / file for file in (CONFIG_FILE, WEIGHTS_FILE)]
        beside = [folder / file for file in (LABELS_FILE, LINEAGE_FILE)]
        if not all(place.resolve().is_relative_to(root) for place in (folder, *files, *beside)):
            raise outside
        if not all(file.is_file() for file in files):
            raise not_found(
                f"No adapter found for {path}: it takes a folder with {CONFIG_FILE} and {WEIGHTS_FILE}."
            )
    except (OSError, ValueError, RuntimeError):
        # Too long, with a zero byte, or a circle of links.
        raise user_error(f"'{field}' is not a usable path.") from None
    return folder


def user_error(message: str) -> APIError:
    """vLLM's 400."""
    return APIError(400, message, kind="InvalidUserInput", code=400)


def not_found(message: str) -> APIError:
    """vLLM's 404."""
    return APIError(404, message, kind="NotFoundError", code=404)


def _is_used(context: ServerContext, caller: Caller, name: str) -> bool:
    try:
        return bool(context.registry.versions(name, caller))
    except AdapterError:
        return False
