"""The body of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

from pydantic import Discriminator, Field, Tag

from server.api.schemas import GenerationFields, Unsupported, check_logprobs, check_token, invalid
from server.settings import Settings

DEFAULT_MAX_TOKENS = 16


def _prompt_kind(value: object) -> str:
    if isinstance(value, str):
        return "<string>"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str):
        return "<strings>"
    return "<id lists>" if isinstance(first, list) else "<ids>"


TokenIds = Annotated[list[int], Field(min_length=1)]
PromptField = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[str], Tag("<strings>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Tag("<id lists>")],
    Discriminator(_prompt_kind),
]


def prompt_list(prompt: PromptField) -> list[str | list[int]]:
    """The prompts, one entry for each text."""
    if isinstance(prompt, str):
        return [prompt]
    if _prompt_kind(prompt) == "<ids>":
        return [cast(list[int], prompt)]
    return cast(list[str | list[int]], prompt)


def check_prompts(prompts: Sequence[str | list[int]], vocab_size: int, field: str) -> None:
    """Every token id is one of the vocabulary."""
    for index, prompt in enumerate(prompts):
        name = prompt_name(field, index, len(prompts))
        for token_id in () if isinstance(prompt, str) else prompt:
            check_token(token_id, vocab_size, name)


def prompt_name(field: str, index: int, count: int) -> str:
    """How an error names one prompt of `count`."""
    return field if count == 1 else f"{field}[{index}]"


class CompletionRequest(GenerationFields):
    """One or several texts to continue, each a string or token ids."""

    prompt: PromptField
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = None
    add_special_tokens: bool | None = None

    suffix: Unsupported = None
    response_format: Unsupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """See `prompt_list`."""
        return prompt_list(self.prompt)

    @property
    def token_limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def check(self, settings: Settings, vocab_size: int) -> None:
        """See `GenerationFields.check`."""
        super().check(settings, vocab_size)
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", "0 is only allowed with echo")
        if self.best_of not in (None, self.choices):
            raise invalid("best_of", "only allowed when equal to n")
        check_logprobs(self.logprobs or 0, settings, "logprobs")
        prompts = self.prompts
        if len(prompts) > settings.max_n:
            raise invalid("prompt", f"at most {settings.max_n} prompts in one request")
        check_prompts(prompts, vocab_size, "prompt")
