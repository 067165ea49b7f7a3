"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.answer import Answer, Choice, respond
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.completion_schema import CompletionRequest
from server.api.context import OpenContext, ServerContext
from server.api.lease import Lease, leased
from server.api.logprobs import CompletionLogprobs, joined
from server.api.prompts import Prompt, fit, text_prompt, token_prompt
from server.api.schemas import invalid
from server.api.streaming import Body
from server.api.tasks import COMPLETIONS, check_route
from server.engine.request import GenerationOutput, SamplingParams

router = APIRouter()


@router.post(COMPLETIONS)
async def completions(request: Request, context: OpenContext, caller: CurrentCaller) -> Response:
    """Continue one or several texts."""
    body = await read_json(request, CompletionRequest)
    with leased(request, context, caller, body) as lease:
        check_route(lease, COMPLETIONS)
        body.check(context.settings, context.engine.vocab_size)
        if body.echo and context.base.kind == "encoder-decoder":
            raise invalid("echo", "this model reads the prompt and does not continue it")
        prompts = await read_prompts(context, body)
        return await respond(request, CompletionAnswer(lease, body, prompts))


async def read_prompts(context: ServerContext, body: CompletionRequest) -> list[Prompt]:
    """Every prompt as token ids, each within the context together with what it asks for."""
    prompts = []
    for index, given in enumerate(body.prompts):
        param = "prompt" if len(body.prompts) == 1 else f"prompt[{index}]"
        if isinstance(given, str):
            prompt = await text_prompt(context, given, body.add_special_tokens is not False, param)
        else:
            prompt = token_prompt(context, given, bool(body.echo))
        fit(context, prompt, body.token_limit, param)
        prompts.append(prompt)
    return prompts


class CompletionAnswer(Answer):
    """An answer in the shape `text_completion`, whole or in chunks."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, lease: Lease, body: CompletionRequest, prompts: list[Prompt]) -> None:
        super().__init__(lease, body, prompts)
        self.completion = body
        self.logprobs = [CompletionLogprobs(self.context.tokens) for _ in self.choices]

    def sampling(self, choice: Choice) -> SamplingParams:
        """See `Answer.sampling`."""
        body, max_tokens = self.completion, self.completion.token_limit
        prompt_logprobs = body.logprobs if body.echo else None
        if max_tokens == 0 and prompt_logprobs is None:
            # The engine runs a sequence that generates nothing only to score its prompt.
            prompt_logprobs = 0
        return body.sampling(
            max_tokens,
            self.context.engine.vocab_size,
            # The same prompt has the same answers alone and among others.
            choice=choice.index % body.choices,
            logprobs=body.logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def whole(self, choice: Choice) -> Body:
        """See `Answer.whole`."""
        output = GenerationOutput(
            request_id="",
            text=choice.text,
            logprobs=tuple(choice.logprobs),
            prompt_logprobs=None if choice.prompt_logprobs is None else tuple(choice.prompt_logprobs),
            finish_reason=choice.finish_reason,
        )
        return self._piece(choice, output, first=True)

    def pieces(self, choice: Choice, output: GenerationOutput) -> Iterator[Body]:
        """One chunk for each output that has something to say; the first one has the echoed prompt."""
        echo = self.completion.echo and not choice.started
        if output.text or output.logprobs or output.finish_reason or echo:
            yield self._piece(choice, output, first=not choice.started)

    def _piece(self, choice: Choice, output: GenerationOutput, first: bool) -> Body:
        echo = bool(self.completion.echo) and first
        return {
            "index": choice.index,
            "text": choice.prompt.text + output.text if echo else output.text,
            "logprobs": None if self.completion.logprobs is None else self._logprobs(choice, output, echo),
            "finish_reason": output.finish_reason,
        }

    def _logprobs(self, choice: Choice, output: GenerationOutput, echo: bool) -> Body:
        logprobs, prompt = self.logprobs[choice.index], choice.prompt
        if not echo:
            return logprobs.render(output.logprobs or ())
        before = logprobs.render_prompt(prompt.text, prompt.token_ids, output.prompt_logprobs or ())
        return joined(before, logprobs.render(output.logprobs or ()))
