"""How late the event loop is: a timer beside the requests, by the loop's own clock.

All that runs in the loop delays what comes after it, and so does another thread that keeps Python's
interpreter lock. Timers are rounded up to whole milliseconds, so about 1 ms is an idle loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BEAT_SECONDS = 0.02


async def beat(observe: Callable[[float], None]) -> None:
    """Report after every beat how many seconds late it was; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        observe(max(0.0, loop.time() - due))
