"""Adapters on their way from the host to the device, beside the steps that run meanwhile."""

from __future__ import annotations

from typing import Protocol

import torch

from adapters.batch.placed import Placed


class Event(Protocol):
    """What is used of `torch.cuda.Event`."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Upload:
    """One adapter, whose memory on the device is to be read only when it is `done`."""

    def __init__(self, adapter: Placed, event: Event | None = None) -> None:
        """`event`: what ends the copy; without one it has been made."""
        self.adapter = adapter
        self._event = event

    def done(self) -> bool:
        """Whether all is there.

        Raises:
            RuntimeError: the device has failed.
        """
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Return when it is done. Not for the engine's thread."""
        if self._event is not None:
            self._event.synchronize()


class Uploader:
    """Copies at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, adapter: Placed) -> Upload:
        """Begin to copy `adapter`. Called by the thread that launches the model's kernels.

        Raises:
            RuntimeError: there is no memory for it.
        """
        return Upload(adapter.to(self._device))


class StreamUploader(Uploader):
    """Copies from pinned memory on a stream of its own, so that no kernel waits for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, adapter: Placed) -> Upload:
        user = torch.cuda.current_stream(self._device)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            there = adapter.to(self._device)
            event.record(self._stream)
        for tensor in there.tensors():
            # Once freed, its memory is not used again before the kernels launched by then have ended.
            tensor.record_stream(user)
        return Upload(there, event)


def choose_uploader(device: torch.device) -> Uploader:
    """A stream of its own on a GPU."""
    return StreamUploader(device) if device.type == "cuda" else Uploader(device)
