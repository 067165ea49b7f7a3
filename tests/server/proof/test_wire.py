"""Messages come out as they went in, and nothing else is taken for one."""

from __future__ import annotations

import io
import struct

import pytest
import torch

from server.proof.wire import MAX_HEADER_BYTES, Malformed, pack, unpack


def test_a_message_comes_out_as_it_went_in() -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5])}
    stream = io.BytesIO(pack({"text": "ä", "list": [1, 2]}, tensors) + pack({}))
    header, found = unpack(stream.read)
    assert header == {"text": "ä", "list": [1, 2]}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert unpack(stream.read) == ({}, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">I", MAX_HEADER_BYTES + 1), "a header of"),
        (struct.pack(">I", 2) + b"[]", "not a JSON object"),
        (struct.pack(">I", 2) + b"{}", "not a JSON object"),
        (struct.pack(">I", 3) + b"\xff\xff\xff", "not a JSON object"),
        (struct.pack(">I", 15) + b'{"tensors": -1}', "tensors of -1 bytes"),
        (struct.pack(">I", 15) + b'{"tensors": 10}' + 10 * b"x", "tensors that are none"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        unpack(io.BytesIO(data).read)
