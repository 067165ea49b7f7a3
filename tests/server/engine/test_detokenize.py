"""Streamed text is the text, whatever the token boundaries; a stop string is found wherever it falls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.detokenize import TextStream


class Bytes:
    """A byte-level decoder: token `i` stands for a piece of bytes; special tokens for nothing."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return b"".join(self.pieces[token] for token in token_ids).decode("utf-8", "replace")


class Words:
    """A decoder that drops the space before the first word, as SentencePiece ones do."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.words[token] for token in token_ids).removeprefix(" ")


def _cut(text: str, cuts: Sequence[int]) -> list[bytes]:
    data = text.encode()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(edges)]


def _stream(
    pieces: Sequence[bytes], stop: Sequence[str] = (), *, include_stop: bool = False, early: int = 0
) -> tuple[list[str], str | None]:
    """What each push gave, `finish` last, and the stop string."""
    stream = TextStream(Bytes(pieces), (), stop, include_stop)
    texts = []
    for token in range(len(pieces)):
        text, stopped = stream.push(token, stops=token >= early)
        texts.append(text)
        if stopped is not None:
            return texts, stopped
    text, stopped = stream.finish()
    return [*texts, text], stopped


TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("añ€😀�\U0001f469")), max_size=20
)
CUTS = st.lists(st.integers(0, 200), max_size=40)


@settings(max_examples=300, deadline=None)
@given(TEXT, CUTS)
def test_pieces_add_up_to_the_text(text: str, cuts: list[int]) -> None:
    texts, stopped = _stream(_cut(text, cuts))
    assert "".join(texts) == text
    assert stopped is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=25))
def test_invalid_bytes_add_up_to_what_one_decode_gives(pieces: list[bytes]) -> None:
    texts, _ = _stream(pieces)
    assert "".join(texts) == b"".join(pieces).decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(TEXT, CUTS, st.integers(0, 60))
def test_a_prompt_before_it_changes_nothing(text: str, cuts: list[int], split: int) -> None:
    """Text begins at a character's edge; the prompt's end is only context."""
    prompt = _cut("è un prompt", range(0, 12, 3))
    stream = TextStream(Bytes([*prompt, *_cut(text, cuts)]), range(len(prompt)))
    texts = [stream.push(len(prompt) + token)[0] for token in range(len(_cut(text, cuts)))]
    assert "".join([*texts, stream.finish()[0]]) == text


def test_no_half_character_is_ever_shown() -> None:
    texts, _ = _stream([bytes([byte]) for byte in "a€b😀".encode()])
    assert [text for text in texts if text] == ["a", "€", "b", "😀"]


def test_a_leading_space_survives_because_of_the_prompt() -> None:
    stream = TextStream(Words([" Hello", " big", " world"]), [0])
    assert [stream.push(1), stream.push(2)] == [(" big", None), (" world", None)]


def _reference(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """The stop that begins first; of those, the longest."""
    hits = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    if not hits:
        return text, None
    at, _, stop = min(hits)
    return text[: at + len(stop)] if include else text[:at], stop


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("cut", range(1, 15))
def test_a_stop_string_is_found_at_every_cut(cut: int, include: bool) -> None:
    data = "ab€END😀xyz".encode()
    pieces = [data[:cut], data[cut:]]
    texts, stopped = _stream(pieces, ["END"], include_stop=include)
    assert stopped == "END"
    assert "".join(texts) == ("ab€END" if include else "ab€")


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab€", max_size=30),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_stop_strings_end_a_stream_of_single_characters(text: str, stops: list[str], include: bool) -> None:
    """Character by character the first stop to be complete ends the text, at its earliest place."""
    pieces = [character.encode() for character in text]
    texts, stopped = _stream(pieces, stops, include_stop=include)
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    expected, expected_stop = _reference(text[: ends[0]] if ends else text, stops, include)
    assert ("".join(texts), stopped) == (expected, expected_stop)


@settings(max_examples=300, deadline=None)
@given(st.text("ab€", max_size=30), CUTS, st.text("ab€", min_size=1, max_size=4), st.booleans())
def test_one_stop_string_ends_a_stream_whatever_the_cuts(
    text: str, cuts: list[int], stop: str, include: bool
) -> None:
    texts, stopped = _stream(_cut(text, cuts), [stop], include_stop=include)
    assert ("".join(texts), stopped) == _reference(text, [stop], include)


def test_text_that_may_become_a_stop_is_held_and_then_given() -> None:
    texts, stopped = _stream([b"x<", b"/", b"y", b"<", b"/"], ["</s>"])
    assert texts == ["x", "", "</y", "", "", "</"]
    assert stopped is None


def test_nothing_is_held_longer_than_needed() -> None:
    texts, _ = _stream([b"abab", b"abc"], ["abc"])
    assert texts[0] == "ab"


def test_a_stop_does_not_count_while_it_is_early() -> None:
    texts, stopped = _stream([b"END", b"x", b"END", b"y"], ["END"], early=2)
    assert (texts, stopped) == (["END", "x", ""], "END")


def test_half_a_character_at_the_end_is_shown_as_what_it_is() -> None:
    texts, _ = _stream([b"a", "€".encode()[:2]])
    assert "".join(texts) == "a�"


def test_a_stop_that_completes_only_at_the_end_still_counts() -> None:
    """The replacement character is held until `finish`."""
    texts, stopped = _stream([b"a", b"\xff"], ["�"])
    assert ("".join(texts), stopped) == ("a", "�")
