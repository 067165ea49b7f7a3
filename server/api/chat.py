"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.answer import Answer, Choice, respond
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.chat_schema import ChatRequest
from server.api.context import OpenContext
from server.api.lease import Lease, leased
from server.api.logprobs import chat_logprobs
from server.api.prompts import Prompt, chat_prompt, fit
from server.api.streaming import Body
from server.api.tasks import CHAT, check_route
from server.engine.request import GenerationOutput, SamplingParams

router = APIRouter()


@router.post(CHAT)
async def chat_completions(request: Request, context: OpenContext, caller: CurrentCaller) -> Response:
    """Continue a conversation."""
    body = await read_json(request, ChatRequest)
    with leased(request, context, caller, body) as lease:
        check_route(lease, CHAT)
        body.check(context.settings, context.engine.vocab_size)
        prompt = await chat_prompt(context, body.messages)
        return await respond(request, ChatAnswer(lease, body, prompt))


class ChatAnswer(Answer):
    """An answer in the shapes `chat.completion` and `chat.completion.chunk`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, lease: Lease, body: ChatRequest, prompt: Prompt) -> None:
        super().__init__(lease, body, [prompt])
        self.chat = body
        self.max_tokens = fit(self.context, prompt, body.token_limit, "messages")

    def sampling(self, choice: Choice) -> SamplingParams:
        """See `Answer.sampling`."""
        vocab_size = self.context.engine.vocab_size
        count = self.chat.logprob_count
        return self.chat.sampling(self.max_tokens, vocab_size, choice=choice.index, logprobs=count)

    def whole(self, choice: Choice) -> Body:
        """See `Answer.whole`."""
        wanted = self.chat.logprob_count is not None
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(self.context.tokens, choice.logprobs) if wanted else None,
            "finish_reason": choice.finish_reason,
        }

    def pieces(self, choice: Choice, output: GenerationOutput) -> Iterator[Body]:
        """The role first, then text as it comes, then the reason for the end with nothing beside it."""

        def piece(delta: Body, logprobs: Body | None = None, reason: str | None = None) -> Body:
            return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

        if not choice.started:
            yield piece({"role": "assistant", "content": "", "refusal": None})
        if output.text or output.logprobs:
            logprobs = chat_logprobs(self.context.tokens, output.logprobs) if output.logprobs else None
            yield piece({"content": output.text}, logprobs)
        if output.finish_reason is not None:
            yield piece({}, reason=output.finish_reason)
