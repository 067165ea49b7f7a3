"""From settings to sizes and addresses; what needs a process is in tests/end_to_end/test_process.py."""

from __future__ import annotations

import pytest

from server.launch import local_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("shop.example", "http://shop.example:80"),
    ],
)
def test_the_url_can_be_opened(host: str, url: str) -> None:
    assert local_url(host, 80) == url
