"""Thousands of damaged and hostile adapters, made from sound ones, the same ones each time.

A mutation takes a sound adapter's two files and a source of chance and returns the two files changed.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any


@dataclass(frozen=True)
class Files:
    """The two files of an adapter."""

    config: bytes
    weights: bytes

    @property
    def header(self) -> bytes:
        return self.weights[8 : 8 + int.from_bytes(self.weights[:8], "little")]

    @property
    def data(self) -> bytes:
        return self.weights[8 + len(self.header) :]

    def with_header(self, header: bytes, data: bytes | None = None) -> Files:
        """The same with another header, whose length is told truly."""
        data = self.data if data is None else data
        return Files(self.config, struct.pack("<Q", len(header)) + header + data)


@dataclass(frozen=True)
class Mutant:
    kind: str
    files: Files


Mutation = Callable[[Files, random.Random], Files]

NESTED = "[" * 3000 + "]" * 3000
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1.0, 1e308),
    *("", " ", "F32", "I64", "F8_E4M3", "BOOL", "none", "all", "../../etc/passwd", "a\nb", "\x00", "\ud800"),
    *([], {}, [0], [1, 2], [-1, 4], [4, 0], [0, 2**63], [2**40, 2**40], [0, 0], [0.0, 4.0], ["0", "4"]),
    *([1] * 9, [0] * 8, [[1]], [True, False], [None], {"a": 1}, {"0": [1]}, "x" * 3000, [1] * 3000),
    *(["q_proj"], ["q_proj", 1], ["*"], "all-linear", {"q_proj": 2}, {"q_proj": 0}, {"(": 1}, [2**31 - 1]),
]
"""Values for any place."""
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "1.0", "1e2", "1E400", "00", "+1", "0x10"]
NUMBERS += [
    "1_0",
    "9" * 400,
    "9" * 5000,
    "18446744073709551616",
    "-9223372036854775809",
    ".5",
    "1.",
    "true",
    '""',
]
PATTERNS = ["(.|.)*!", "(a+)+$", "(.*)*x", ".*" * 60 + "x", "(" * 40 + "q" + ")" * 40, "(?=.*){90}q_proj"]
PATTERNS += [
    "[",
    "(?P<a>.)(?P=a)",
    "(?i)Q_PROJ",
    "q_proj|",
    "\\",
    ".{1,99999999999}",
    "(?<=q)_proj",
    "[[a-z]]",
]
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E5M2", "F4", "I64", "I32", "U8", "BOOL", "C64", "f32", "float32")
NAMES = [
    "",
    "\x00",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a\nb",
    "\ud800",
    "\u202elora",
    "q\u200b_proj",
]
NAMES += [
    "ｑ＿ｐｒｏｊ",
    "Q_PROJ",
    "qⲣroj",
    "é",
    "e\u0301",
    "x" * 501,
    "\U0001f600",
    "__metadata__ ",
    "lora_A.weight",
]
BROKEN_TEXT = [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80",
    b"\x80",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\x1b",
]
"""Not UTF-8: lone bytes, overlong forms, surrogates; and what has no place between JSON's words."""


def some_tensor(header: dict[str, Any], chance: random.Random) -> str:
    return chance.choice([name for name in header if name != "__metadata__"])


def edit(change: Callable[[dict[str, Any], random.Random], None]) -> Mutation:
    """A mutation of the header as an object."""

    def mutation(files: Files, chance: random.Random) -> Files:
        header = json.loads(files.header)
        change(header, chance)
        return files.with_header(json.dumps(header).encode())

    return mutation


def in_text(text: bytes, chance: random.Random) -> bytes:
    """One change of bytes: bits flipped, or a run left out, doubled or overwritten."""
    start = chance.randrange(len(text))
    end = min(len(text), start + chance.randrange(1, 9))
    way = chance.randrange(5)
    if way == 0:
        return text[:start] + bytes([text[start] ^ 1 << chance.randrange(8)]) + text[start + 1 :]
    if way == 1:
        return text[:start] + text[end:]
    if way == 2:
        return text[:end] + text[start:]
    if way == 3:
        return text[:start] + chance.choice(BROKEN_TEXT) + text[start:]
    return text[:start] + chance.randbytes(end - start) + text[end:]


def other_number(text: bytes, chance: random.Random) -> bytes:
    """One number (or true, false, null) of a JSON text replaced by what may be no number."""
    found = chance.choice(list(re.finditer(rb"(?<=[\[, :])(\d[\d.]*|true|false|null)(?=[\],}\s])", text)))
    return text[: found.start()] + chance.choice(NUMBERS).encode() + text[found.end() :]


def doubled_key(text: bytes, chance: random.Random) -> bytes:
    """One key of the outermost object given twice, first or last."""
    key, value = chance.choice(list(json.loads(text).items()))
    pair = f"{json.dumps(key)}: {json.dumps(chance.choice([value, None]))}".encode()
    if chance.random() < 0.5:
        return b"{" + pair + b", " + text[text.index(b"{") + 1 :]
    end = text.rindex(b"}")
    return text[:end] + b", " + pair + text[end:]


def other_form(text: bytes, chance: random.Random) -> bytes:
    """The same text in another encoding or another frame."""
    plain = text.decode()
    forms = [
        *(plain.encode(name) for name in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig")),
        *(text + b" ", b" " + text, b"\n" + text + b"\n", text + b"\x00", text + b"{}", text + b","),
        *(b"[" + text + b"]", b"null", b"1", b'""', b"", b"{}", b"[]", b"{", b" " * 100, text * 2),
        *(
            plain.replace(":", ":" + NESTED + ",", 1).encode(),
            NESTED.encode(),
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
        ),
        *(b"/**/" + text, text.replace(b'"', b"'"), text.replace(b"}", b",}"), text.replace(b" ", b"\t")),
    ]
    return chance.choice(forms)


def length_lies(files: Files, chance: random.Random) -> Files:
    true, size = len(files.header), len(files.weights)
    near = [true + by for by in (-1000, -8, -1, 1, 8, 1000)] + [size - 8, size - 7, size, size + 1]
    far = [0, 1, 2, 2**24, 2**24 + 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
    length = chance.choice([*near, *far, chance.getrandbits(chance.randrange(1, 65))])
    return Files(files.config, struct.pack("<Q", max(length, 0)) + files.weights[8:])


def cut(files: Files, chance: random.Random) -> Files:
    """Ends at a tensor's edge or beside it, or anywhere."""
    start = 8 + len(files.header)
    edges = [start + info["data_offsets"][1] for name, info in tensors(files).items()]
    at = chance.choice(
        [chance.choice([0, 7, 8, start, *edges]) + chance.randrange(-1, 2), chance.randrange(start)]
    )
    return Files(files.config, files.weights[: max(at, 0)])


def tensors(files: Files) -> dict[str, Any]:
    return {name: info for name, info in json.loads(files.header).items() if name != "__metadata__"}


def tail(files: Files, chance: random.Random) -> Files:
    rest = [
        b"\0",
        bytes(8),
        bytes(4096),
        files.weights,
        b"PK\x03\x04",
        chance.randbytes(chance.randrange(1, 64)),
    ]
    return Files(files.config, files.weights + chance.choice(rest))


def flipped(files: Files, chance: random.Random) -> Files:
    """One to four bits of the header or the data."""
    weights = bytearray(files.weights)
    most = chance.choice([8, 8 + len(files.header), len(weights)])
    for _ in range(chance.randrange(1, 5)):
        weights[chance.randrange(most)] ^= 1 << chance.randrange(8)
    return Files(files.config, bytes(weights))


def poisoned(files: Files, chance: random.Random) -> Files:
    """One value of the data is NaN, infinite, huge, tiny or zero."""
    data = bytearray(files.data)
    value = struct.pack("<f", chance.choice([float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 0.0]))
    at = chance.randrange(len(data) // 4) * 4
    data[at : at + 4] = value
    return files.with_header(files.header, bytes(data))


def field(header: dict[str, Any], chance: random.Random) -> None:
    info = header[some_tensor(header, chance)]
    info[chance.choice([*info, "data_offsets", "more"])] = chance.choice(NASTY)


def entry(header: dict[str, Any], chance: random.Random) -> None:
    header[chance.choice([*header, "__metadata__", "more"])] = chance.choice(
        [*NASTY, {"format": 1}, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}]
    )


def offsets(header: dict[str, Any], chance: random.Random) -> None:
    """Two tensors swapped or laid on each other, or one moved, widened or out of range."""
    one, two = (header[some_tensor(header, chance)] for _ in range(2))
    begin, end = one["data_offsets"]
    by = chance.choice([-8, -1, 1, 4, 8, end, 2**32, 2**62, 2**63])
    way = chance.randrange(5)
    if way == 0:
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    elif way == 1:
        one["data_offsets"] = two["data_offsets"]
    else:
        one["data_offsets"] = [[begin + by, end + by], [begin, end + by], [begin + by, end]][way - 2]


def shape(header: dict[str, Any], chance: random.Random) -> None:
    """The same number of values in another shape, or huge sizes whose product is small or wraps round."""
    info = header[some_tensor(header, chance)]
    sizes = list(info["shape"])
    count = 1
    for size in sizes:
        count *= size
    info["shape"] = chance.choice(
        [
            *(
                sizes[::-1],
                [count],
                [1, *sizes],
                [*sizes, 1],
                [*sizes, 0],
                [],
                [0],
                sizes[:-1],
                [1] * 7 + [count],
            ),
            *(
                [2**32, 2**32],
                [2**62, 4],
                [2**40] * 8,
                [0, 2**63],
                [2**63, 0],
                [count, 2**64],
                [-count, -1],
                [count - 1],
            ),
        ]
    )


def dtype(header: dict[str, Any], chance: random.Random) -> None:
    """Another type, sometimes with a shape that fits it."""
    info = header[some_tensor(header, chance)]
    info["dtype"] = chance.choice(DTYPES)
    begin, end = info["data_offsets"]
    if chance.random() < 0.6 and info["shape"]:
        width = {"F64": 8, "F32": 4, "I32": 4, "I64": 8, "C64": 8, "U8": 1, "BOOL": 1}.get(info["dtype"], 2)
        others = 1
        for size in info["shape"][:-1]:
            others *= size
        info["shape"][-1] = (end - begin) // width // others


def name(header: dict[str, Any], chance: random.Random) -> None:
    old = some_tensor(header, chance)
    piece = chance.choice(NAMES)
    words = old.split(".")
    words[chance.randrange(len(words))] = piece
    header[chance.choice([piece, ".".join(words), old + piece, piece + old])] = header.pop(old)


def count(header: dict[str, Any], chance: random.Random) -> None:
    """Tensors taken away, or many added that hold nothing."""
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, len(header))):
            if len(header) > 1:
                del header[some_tensor(header, chance)]
        return
    end = max(info["data_offsets"][1] for key, info in header.items() if key != "__metadata__")
    for number in range(chance.choice([1, 5, 2000])):
        at = chance.choice([0, end])
        header[f"{some_tensor(header, chance)}.{number}"] = {
            "dtype": "F32",
            "shape": [0],
            "data_offsets": [at, at],
        }


def config_field(files: Files, chance: random.Random) -> Files:
    config = json.loads(files.config)
    for _ in range(chance.randrange(1, 3)):
        config[chance.choice([*config, "of_tomorrow", "peft_type", "r"])] = chance.choice([*NASTY, *PATTERNS])
    return Files(json.dumps(config).encode(), files.weights)


def config_pattern(files: Files, chance: random.Random) -> Files:
    config = json.loads(files.config)
    text, where = (
        chance.choice(PATTERNS),
        chance.choice(["target_modules", "exclude_modules", "rank", "alpha"]),
    )
    changed = {f"{where}_pattern": {text: 3}} if where in ("rank", "alpha") else {where: text}
    return Files(json.dumps(config | changed).encode(), files.weights)


def of_header(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    return lambda files, chance: files.with_header(change(files.header, chance))


def of_config(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    return lambda files, chance: Files(change(files.config, chance), files.weights)


def config_cut(text: bytes, chance: random.Random) -> bytes:
    return text[: chance.randrange(len(text))]


MUTATIONS: dict[str, Mutation] = {
    "length": length_lies,
    "cut": cut,
    "tail": tail,
    "flipped": flipped,
    "poisoned": poisoned,
    "header bytes": of_header(in_text),
    "header number": of_header(other_number),
    "header key twice": of_header(doubled_key),
    "header form": of_header(other_form),
    "field": edit(field),
    "entry": edit(entry),
    "offsets": edit(offsets),
    "shape": edit(shape),
    "dtype": edit(dtype),
    "name": edit(name),
    "count": edit(count),
    "config bytes": of_config(in_text),
    "config cut": of_config(config_cut),
    "config number": of_config(other_number),
    "config key twice": of_config(doubled_key),
    "config form": of_config(other_form),
    "config field": config_field,
    "config pattern": config_pattern,
}


def huge_headers(files: Files) -> Iterator[Mutant]:
    """Headers near the largest that is read, made of what takes most memory when it is parsed."""
    most = 16 * 1024**2
    for piece in (b"[],", b"{},", b"1.5,", b'"ab",', b'"abcdefgh",', b" "):
        inside = piece * ((most - 100) // len(piece))
        yield Mutant("huge header", files.with_header(b'{"x": [' + inside.rstrip(b",") + b"]}"))
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ",".join(entry % number for number in range(most // 64)).encode()
    yield Mutant("huge header", files.with_header(b"{" + text + b"}", b""))


def corpus(seeds: list[Files], number: int, seed: int = 5) -> Iterator[tuple[int, Mutant]]:
    """`number` mutants, each with the index of what it was made from: every cut of a whole header, the huge
    ones, and then all mutations in turn."""
    first = seeds[0]
    cuts = (
        Mutant("every cut", Files(first.config, first.weights[:at])) for at in range(8 + len(first.header))
    )
    special = ((0, mutant) for mutant in chain(huge_headers(first), cuts))
    return islice(chain(special, _in_turn(seeds, random.Random(seed))), number)


def _in_turn(seeds: list[Files], chance: random.Random) -> Iterator[tuple[int, Mutant]]:
    for kind in cycle(MUTATIONS):
        index = chance.randrange(len(seeds))
        yield index, Mutant(kind, MUTATIONS[kind](seeds[index], chance))
