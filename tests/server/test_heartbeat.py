"""The heartbeat sees a loop that is blocked, for as long as it is."""

from __future__ import annotations

import asyncio
import time

from server.heartbeat import BEAT_SECONDS, beat


def test_a_blocked_loop_is_late_by_as_much() -> None:
    late: list[float] = []

    async def run() -> None:
        task = asyncio.create_task(beat(late.append))
        await asyncio.sleep(3 * BEAT_SECONDS)
        before = len(late)
        time.sleep(0.3)
        await asyncio.sleep(2 * BEAT_SECONDS)
        task.cancel()
        assert max(late[before:]) > 0.3 - BEAT_SECONDS

    asyncio.run(run())
    assert min(late) >= 0
    assert sorted(late)[0] < 0.1
