"""The way of one completion: submit the sequences, then render them whole or as a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from server.api.generation import Event, Generation, unless_gone
from server.api.lease import Lease
from server.api.prompts import Prompt
from server.api.schemas import GenerationFields
from server.api.shadow import start_shadow
from server.api.streaming import Body, EventStream
from server.engine.request import (
    FinishReason,
    GenerationOutput,
    GenerationRequest,
    SamplingParams,
    TokenLogprob,
)


@dataclass(slots=True)
class Choice:
    """What one sequence has produced so far."""

    index: int
    prompt: Prompt
    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    started: bool = False
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def answer(self) -> tuple[int, ...] | None:
        """Its tokens, once it has come to its end."""
        return None if self.finish_reason is None else tuple(self.token_ids)

    def count(self, output: GenerationOutput) -> None:
        """What is needed of every output, also when its text is streamed away."""
        self.token_ids += output.token_ids
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.finish_reason = output.finish_reason

    def add(self, output: GenerationOutput) -> None:
        """Collect `output` for an answer in one piece."""
        self.parts.append(output.text)
        self.logprobs.extend(output.logprobs or ())
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs


class Answer(ABC):
    """One request's answer. The two routes differ in the shapes of their choices and nowhere else."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, lease: Lease, body: GenerationFields, prompts: Sequence[Prompt]) -> None:
        self.lease, self.context, self.body = lease, lease.context, body
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.choices = [
            Choice(index, prompt)
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(body.choices))
        ]

    @abstractmethod
    def sampling(self, choice: Choice) -> SamplingParams:
        """The engine's parameters for one choice; raises `APIError` if its prompt doesn't fit."""

    @abstractmethod
    def whole(self, choice: Choice) -> Body:
        """A finished choice in an answer in one piece."""

    @abstractmethod
    def pieces(self, choice: Choice, output: GenerationOutput) -> Iterable[Body]:
        """What `output` adds to the stream, as chunk choices."""

    def requests(self) -> list[GenerationRequest]:
        """One engine request for each choice."""
        return [
            GenerationRequest(
                request_id=f"{self.id}-{choice.index}",
                prompt=choice.prompt.token_ids,
                sampling=self.sampling(choice),
                adapter=self.lease.digest,
                invocation=self.lease.invocation,
                scope=self.lease.scope,
                tenant=self.lease.tenant,
            )
            for choice in self.choices
        ]

    @property
    def headers(self) -> dict[str, str]:
        return {**self.lease.headers, "x-request-id": self.id}

    def envelope(self, kind: str, choices: list[Body]) -> dict[str, object]:
        """The fields around the choices, the same in every chunk of one answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.lease.model,
            "system_fingerprint": f"fp_{self.context.base.serving_digest[:12]}",
            "choices": choices,
        }

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(choice.prompt.token_ids) for choice in self.choices[:: self.body.choices])

    def usage(self) -> dict[str, object]:
        """Token counts; a prompt counts once, however many answers it has."""
        prompt, firsts = self.prompt_tokens, self.choices[:: self.body.choices]
        completion = sum(len(choice.token_ids) for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in firsts)},
        }

    async def collect(self, generation: Generation) -> Body:
        """The answer in one piece."""
        async for index, output in generation:
            self.choices[index].count(output)
            self.choices[index].add(output)
        envelope = self.envelope(self.whole_object, [self.whole(choice) for choice in self.choices])
        return {**envelope, "usage": self.usage()}

    async def stream(self, first: Event, generation: Generation) -> AsyncIterator[Iterable[Body]]:
        """The answer as groups of chunks, one group for each output of the engine."""
        # OpenAI sends a null `usage` in every chunk, but only to those who asked for the last one.
        usage: dict[str, object] = {"usage": None} if self.body.include_usage else {}

        def render(index: int, output: GenerationOutput) -> list[Body]:
            choice = self.choices[index]
            pieces = self.pieces(choice, output)
            chunks: list[Body] = [{**self.envelope(self.chunk_object, [piece]), **usage} for piece in pieces]
            choice.count(output)
            choice.started = True
            return chunks

        yield render(*first)
        async for index, output in generation:
            yield render(index, output)
        if self.body.include_usage:
            yield [{**self.envelope(self.chunk_object, []), "usage": self.usage()}]


async def respond(request: Request, answer: Answer) -> Response:
    """Run `answer` and send it whole or as a stream.

    A stream starts with the first token, so that whatever goes wrong before it still has a status of its own.
    """
    requests = answer.requests()
    generation = Generation(answer.lease, requests, answer.prompt_tokens)
    shadow = start_shadow(answer.lease, requests[0])

    async def close() -> None:
        if shadow is not None:
            shadow.answered(answer.choices[0].answer)
        await generation.close()

    try:
        if not answer.body.stream:
            whole = await unless_gone(request, answer.collect(generation))
            await close()
            return Response(to_json(whole), headers=answer.headers, media_type="application/json")
        first = await unless_gone(request, anext(generation))
        return EventStream(answer.stream(first, generation), close, answer.headers)
    except BaseException:
        await close()
        raise
