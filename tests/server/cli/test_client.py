"""The client of the commands: how each kind of failure ends, what is tried again, how paths are made."""

from __future__ import annotations

import json
import socket

import pytest

from server.cli import client
from server.cli.client import Client, path_of
from server.cli.exits import Exit, Failed
from tests.server.cli.conftest import Run
from tests.server.cli.scripted import Answer, Scripted, refusal

STATUSES = [
    (400, Exit.FAILED),
    (401, Exit.NOT_ALLOWED),
    (403, Exit.NOT_ALLOWED),
    (404, Exit.NOT_FOUND),
    (409, Exit.CONFLICT),
    (413, Exit.FAILED),
    (429, Exit.TRY_LATER),
    (500, Exit.FAILED),
    (503, Exit.TRY_LATER),
]


@pytest.mark.parametrize(("status", "code"), STATUSES)
def test_a_refusal_is_one_line_and_the_code_of_its_kind(
    run: Run, server: Scripted, status: int, code: Exit
) -> None:
    server.answers = [refusal(status, "no,\nnot  so")]
    ended = run("promote", "legal@3")
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("multilora: no, not so")
    assert ended.err.count("\n") == 1
    assert len(server.asked) == 1  # what changes something is not sent twice


def test_a_401_without_a_key_says_where_one_goes(run: Run, server: Scripted) -> None:
    server.answers = [refusal(401, "No key.")]
    assert "MULTILORA_API_KEY" in run("ls").err
    assert "MULTILORA_API_KEY" not in run("ls", "--key", "ml-1").err


def test_the_key_and_the_server_come_from_flags_first(
    run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(body={"object": "list", "data": [], "has_more": False})]
    monkeypatch.setenv("MULTILORA_API_KEY", "ml-variable")
    assert run("ls").code == 0
    assert server.last.headers["authorization"] == "Bearer ml-variable"
    monkeypatch.setenv("MULTILORA_SERVER", "http://127.0.0.1:1")
    assert run("ls", "--key", "ml-flag", "--server", f"{server.url}/below/").code == 0
    assert server.last.headers["authorization"] == "Bearer ml-flag"
    assert server.last.path == "/below/v1/adapters"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:x", "http://a?b", "http://\x00"]
)
def test_what_is_no_url_is_a_wrong_command_line(run: Run, url: str) -> None:
    ended = run("ls", "--server", url)
    assert (ended.code, ended.err.count("\n")) == (Exit.USAGE, 1)
    assert ended.err.startswith("multilora: --server: ")


@pytest.mark.parametrize("key", ["ml-ü", "a b", "a\nb"])
def test_a_key_that_fits_no_header_is_not_sent_nor_shown(run: Run, server: Scripted, key: str) -> None:
    ended = run("ls", "--key", key)
    assert (ended.code, ended.err) == (Exit.USAGE, "multilora: --key: holds a character that no key has\n")
    assert server.asked == []


def test_nobody_listens(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        ended = run("ls", "--server", url)
    assert ended.code == Exit.UNREACHABLE
    assert ended.err.startswith(f"multilora: can't reach {url}: ")


def test_reading_is_tried_again_when_the_connection_breaks(run: Run, server: Scripted) -> None:
    page = Answer(body={"object": "list", "data": [], "has_more": False})
    server.answers = [Answer(drop=True), refusal(502, "nobody there"), page]
    assert run("ls").code == Exit.DONE
    assert len(server.asked) == 3


def test_reading_is_not_tried_for_ever(run: Run, server: Scripted) -> None:
    server.answers = [Answer(drop=True)]
    ended = run("ls")
    assert ended.code == Exit.UNREACHABLE
    assert "broke" in ended.err
    assert len(server.asked) == 1 + len(client.PAUSES)


def test_a_server_that_says_when_is_not_pressed(run: Run, server: Scripted) -> None:
    server.answers = [refusal(503, "stopping", retry_after="7")]
    ended = run("ls")
    assert (ended.code, ended.err) == (Exit.TRY_LATER, "multilora: stopping (try again in 7 s)\n")
    assert len(server.asked) == 1


def test_a_change_whose_answer_got_lost_is_not_repeated(run: Run, server: Scripted) -> None:
    server.answers = [Answer(drop=True)]
    ended = run("promote", "legal@3")
    assert ended.code == Exit.UNREACHABLE
    assert "whether it was done is not known" in ended.err
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b"\xff", b'{"data": []}'])
def test_another_server_is_told_from_ours(run: Run, server: Scripted, body: bytes) -> None:
    server.answers = [Answer(body=body)]
    ended = run("ls")
    assert ended.code == Exit.FAILED
    assert "is it Multilora?" in ended.err


def test_errors_of_others_are_told_by_their_status(run: Run, server: Scripted) -> None:
    bodies: list[object] = [b"<html>", {"error": "no"}, {"detail": "no"}, []]
    for body in bodies:
        server.answers = [Answer(418, body)]
        ended = run("ls")
        assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
        assert "with 418" in ended.err


def test_a_route_that_is_missing_is_not_an_adapter_that_is_missing(run: Run, server: Scripted) -> None:
    ended = run("show", "legal")
    assert ended.code == Exit.FAILED
    assert "has no GET /v1/adapters/legal" in ended.err


def test_lists_are_read_page_by_page(server: Scripted) -> None:
    first = {"object": "list", "data": [{"id": 1}], "has_more": True, "last_id": "a@1"}
    second = {"object": "list", "data": [{"id": 2}], "has_more": False, "last_id": "b@1"}
    server.answers = [Answer(body=first), Answer(body=second)]
    with Client(server.url, None) as asking:
        assert asking.pages("/v1/adapters", all=True) == [{"id": 1}, {"id": 2}]
    assert [asked.query.get("after") for asked in server.asked] == [None, "a@1"]
    assert {asked.query["all"] for asked in server.asked} == {"true"}


def test_paths_are_quoted() -> None:
    assert (
        path_of("adapters", "acme/legal@3", "files", "a?b#c d")
        == "/v1/adapters/acme/legal@3/files/a%3Fb%23c%20d"
    )


def test_a_download_that_breaks_begins_again(server: Scripted) -> None:
    server.answers = [Answer(body=b"half", length=8), Answer(body=b"complete")]
    with Client(server.url, None) as asking:
        seen: list[bytes] = []
        asking.download("/v1/x", lambda pieces, headers: seen.append(b"".join(pieces)))
    assert seen == [b"complete"]


def test_a_download_that_stays_broken_is_unreachable(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAUSES", ())
    server.answers = [Answer(body=b"half", length=8)]
    with Client(server.url, None) as asking, pytest.raises(Failed, match="broke") as caught:
        asking.download("/v1/x", lambda pieces, headers: b"".join(pieces))
    assert caught.value.code == Exit.UNREACHABLE


def test_json_of_an_answer_is_printed_as_it_is(run: Run, server: Scripted) -> None:
    alias = {
        "object": "adapter.alias",
        "id": "legal@default",
        "targets": [{"version": 3, "percent": 100}],
        "shadow": None,
        "revision": 2,
    }
    server.answers = [Answer(body=alias)]
    assert json.loads(run("promote", "legal@3", "--json").out) == alias
