"""An adapter on its way is there when its event says so; without streams, at once."""

from __future__ import annotations

import pytest
import torch

from adapters.batch.cuda.upload import StreamUploader, Upload, Uploader, choose_uploader
from adapters.batch.placed import PlacedAdapter, place
from adapters.delta import AdapterWeights, ModuleDelta
from tests.gpu import INTERPRETED

CPU = torch.device("cpu")


def _placed(*, pin: bool = False) -> PlacedAdapter:
    delta = ModuleDelta(torch.ones(2, 4), torch.full((3, 2), 2.0), 0.5)
    return place(AdapterWeights("d", {"m": delta}), [("m",)], torch.float32, pin=pin)


class FakeEvent:
    def __init__(self) -> None:
        self.reached = False
        self.waits = 0

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self.waits += 1


def test_done_is_what_the_event_says() -> None:
    event = FakeEvent()
    upload = Upload(_placed(), event)
    assert not upload.done()
    upload.wait()
    assert event.waits == 1
    event.reached = True
    assert upload.done()


def test_without_streams_it_is_there_at_once() -> None:
    uploader = choose_uploader(torch.device("meta"))
    assert type(uploader) is Uploader
    upload = uploader.start(_placed())
    assert upload.done()
    upload.wait()
    assert {tensor.device.type for tensor in upload.adapter.tensors()} == {"meta"}
    assert type(choose_uploader(CPU)) is Uploader


@pytest.mark.skipif(INTERPRETED, reason="streams need a GPU")
def test_a_copy_on_its_own_stream_arrives_whole(gpu: torch.device) -> None:
    upload = StreamUploader(gpu).start(_placed(pin=True))
    upload.wait()
    assert upload.done()
    for there, here in zip(upload.adapter.tensors(), _placed().tensors(), strict=True):
        assert there.device.type == "cuda"
        assert torch.equal(there.cpu(), here)
