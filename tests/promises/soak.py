"""Clients that ask without a pause while an operator changes everything at random; what all of them saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from training.tasks import prompt_for

NAMES = ("bot", "aid")
CLIENTS = 16
TOKENS = 24
TIMEOUT = 60.0
_MOST = 6
"""Live versions of one name."""


@dataclass(frozen=True)
class Content:
    """One adapter, and its greedy answers by PEFT, by word."""

    config: bytes
    weights: bytes
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    """One answer that has come, whole or in part.

    Attributes:
        since: which meaning of `default` the name had last when it was asked; None: it was asked otherwise.
        until: the last one that it may have had when it was answered.
    """

    ref: str
    version: str
    digest: str
    word: str
    text: str
    whole: bool
    since: int | None
    until: int


@dataclass
class Soak:
    """Attributes:
    contents: what may be published.
    digests: of each version that was published, by its ref.
    live, doomed: numbers of versions, by name; those doomed are deleted, or may be by now.
    meant: what `default` of each name has meant, in turn; None: it is being changed.
    asked: all answers.
    lost: what was wrong with requests and changes that should have been answered.
    told: answers of the operator's changes by kind and status; statuses of requests.
    """

    contents: list[Content]
    seconds: float
    chance: random.Random = field(default_factory=lambda: random.Random(5))
    digests: dict[str, str] = field(default_factory=dict)
    of_digest: dict[str, Content] = field(default_factory=dict)
    live: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in NAMES})
    doomed: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in NAMES})
    meant: dict[str, list[set[int] | None]] = field(default_factory=lambda: {name: [] for name in NAMES})
    asked: list[Asked] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    pinned: str = ""

    async def run(self, url: str) -> None:
        # The server closes what was idle for 5 seconds: the client must be quicker, or meets it in the act.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
            for name in NAMES:
                await self.change(client, name, self.publish(client, name))
            self.end = time.monotonic() + self.seconds
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.operate(client))
                for number in range(CLIENTS):
                    tasks.create_task(self.ask_on(client, random.Random(number)))

    # The operator

    async def operate(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.end:
            name = self.chance.choice(NAMES)
            await self.change(client, name, self.draw(client, name))
            await asyncio.sleep(self.chance.uniform(0, 0.05))

    def draw(self, client: httpx.AsyncClient, name: str) -> Coroutine[Any, Any, httpx.Response]:
        number = self.chance.choice(sorted(self.live[name]))
        path = f"/v1/adapters/{name}@{number}"
        percent = {"percent": self.chance.randrange(1, 100)}
        changes = {
            "publish": lambda: self.publish(client, name),
            "delete": lambda: self.delete(client, name, number),
            "promote": lambda: client.post(f"{path}/promote"),
            "canary": lambda: client.post(f"{path}/canary", json=percent),
            "rollback": lambda: client.post(f"/v1/adapters/{name}/rollback"),
            "pin": lambda: self.pin(client, f"{name}@{number}"),
            "preload": lambda: client.post(f"{path}/preload"),
            "deprecate": lambda: client.post(f"{path}/deprecate", json={"reason": "old"}),
        }
        kinds = list(changes)
        if len(self.live[name]) < 2:
            kinds = ["publish"]
        elif len(self.live[name]) >= _MOST:
            kinds = ["delete", "promote"]
        return changes[self.chance.choice(kinds)]()

    async def change(
        self, client: httpx.AsyncClient, name: str, change: Coroutine[Any, Any, httpx.Response]
    ) -> None:
        """Make one change, and note what `default` means now."""
        self.meant[name].append(None)
        answer = await change
        kind = f"{answer.request.method} {answer.request.url.path.rpartition('/')[2].partition('@')[0]}"
        self.told[f"{kind} {answer.status_code}"] += 1
        # A rollback may lead nowhere, a canary have nothing beside it, an alias mean what is to be deleted.
        refused = answer.status_code in (400, 409) and kind.split()[-1] in ("rollback", "canary", *NAMES)
        if not answer.is_success and not refused:
            self.lost.append(f"{kind}: {answer.status_code} {answer.text}")
        aliases = (await client.get(f"/v1/adapters/{name}/aliases")).json()["data"]
        (default,) = [alias for alias in aliases if alias["alias"] == "default"]
        self.meant[name][-1] = {target["version"] for target in default["targets"]}

    async def publish(self, client: httpx.AsyncClient, name: str) -> httpx.Response:
        content = self.chance.choice(self.contents)
        promote = self.chance.choice(("auto", "yes", "no"))
        data = {"name": name, "promote": promote}
        files = {"config": content.config, "weights": content.weights}
        answer = await client.post("/v1/adapters", data=data, files=files)
        if answer.is_success:
            told = answer.json()
            self.digests[told["id"]] = told["digest"]
            self.of_digest[told["digest"]] = content
            self.live[name].add(int(told["id"].partition("@")[2]))
        return answer

    async def delete(self, client: httpx.AsyncClient, name: str, number: int) -> httpx.Response:
        """Sometimes though an alias means it, and sometimes until its requests are over."""
        self.live[name].discard(number)
        self.doomed[name].add(number)
        params = {"force": self.chance.random() < 0.5, "drain_seconds": self.chance.choice((0, 5))}
        answer = await client.delete(f"/v1/adapters/{name}@{number}", params=params)
        if answer.status_code == 409:
            self.live[name].add(number)
            self.doomed[name].discard(number)
        return answer

    async def pin(self, client: httpx.AsyncClient, ref: str) -> httpx.Response:
        """One at a time: there is room for few."""
        if self.pinned:
            await client.post(f"/v1/adapters/{self.pinned}/unpin")
        self.pinned = ref
        return await client.post(f"/v1/adapters/{ref}/pin")

    # The clients

    async def ask_on(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        while time.monotonic() < self.end:
            began = time.monotonic()
            try:
                await self.ask(client, chance)
            except httpx.HTTPError as error:
                self.lost.append(repr(error))
            self.slowest = max(self.slowest, time.monotonic() - began)

    async def ask(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        name = chance.choice(NAMES)
        number = chance.choice(sorted(self.live[name])) if chance.random() < 0.3 else None
        ref = name if number is None else f"{name}@{number}"
        word = chance.choice(sorted(self.contents[0].answers))
        meant = self.meant[name]
        since = len(meant) - 1 - (meant[-1] is None)
        stream = chance.random() < 0.6
        leaves = chance.randrange(1, 8) if stream and chance.random() < 0.3 else 0
        path, body = spoken(chance.random() < 0.5, ref, word, stream)
        async with client.stream("POST", path, json=body) as answer:
            until = len(meant) - 1
            self.told[f"{'left' if leaves else 'asked'} {answer.status_code}"] += 1
            if answer.status_code != 200:
                await answer.aread()
                if number is None or number not in self.doomed[name] or answer.status_code != 404:
                    self.lost.append(f"{ref}: {answer.status_code} {answer.text}")
                return
            text, whole = await read(answer, stream, leaves)
        if not whole and not leaves:
            self.lost.append(f"{ref}: the answer had no end after {text!r}")
        headers = answer.headers
        version, digest = headers["x-adapter"], headers["x-adapter-digest"]
        since_or_not = since if number is None else None
        self.asked.append(Asked(ref, version, digest, word, text, whole, since_or_not, until))

    # What it came to

    def wrong(self) -> list[str]:
        """Answers that are not those of the version that they name, or that was asked for."""
        return [f"{asked}: {why}" for asked in self.asked if (why := self.fault(asked))]

    def fault(self, asked: Asked) -> str:
        if self.digests.get(asked.version) != asked.digest:
            return f"{asked.version} was published as {self.digests.get(asked.version)}"
        expected = self.of_digest[asked.digest].answers[asked.word]
        if asked.text != (expected if asked.whole else expected[: len(asked.text)]):
            return f"PEFT says {expected!r}"
        name, _, number = asked.version.partition("@")
        if asked.since is None:
            return "" if asked.version == asked.ref else "another version was asked for"
        meanings = [meaning or set() for meaning in self.meant[name][asked.since : asked.until + 1]]
        meant = set[int]().union(*meanings)
        return "" if name == asked.ref and int(number) in meant else f"it meant {sorted(meant)}"


def spoken(chat: bool, ref: str, word: str, stream: bool) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for one word."""
    body = {"model": ref, "temperature": 0, "max_tokens": TOKENS, "stream": stream}
    prompt = prompt_for(word)
    if chat:
        said = [{"role": "user", "content": prompt.removesuffix("\n")}]
        return "/v1/chat/completions", {**body, "messages": said}
    return "/v1/completions", {**body, "prompt": prompt}


async def read(answer: httpx.Response, stream: bool, leaves: int) -> tuple[str, bool]:
    """The text, and whether it came to its end; `leaves`: after so many events, 0: never."""
    if not stream:
        choice = json.loads(await answer.aread())["choices"][0]
        return said(choice, "message"), choice["finish_reason"] is not None
    text, whole, events = "", False, 0
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            text += said(choice, "delta")
            events += 1
            if events == leaves:
                break
        whole = whole or line == "data: [DONE]"
    return text, whole


def said(choice: dict[str, Any], part: str) -> str:
    text: str = choice["text"] if "text" in choice else choice[part].get("content") or ""
    return text
