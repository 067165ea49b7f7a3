"""The fields that chat and text completions share, each with its bound.

A field is applied, or listed as harmless here, or refused by name: nothing that could change an answer is
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from server.api.errors import INVALID, APIError
from server.engine.request import SamplingParams
from server.settings import Settings

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_MIXED = 8
MAX_SCALE = 100
MAX_NAME = 256
MAX_KEY = 512
INT64 = 2**63


def _unsupported(value: object) -> object:
    # Empty values mean the same as leaving the field out; some clients always send them.
    if value is None or value is False or value == [] or value == {} or value == "":
        return None
    raise PydanticCustomError("unsupported", "this server does not support this parameter")


Unsupported = Annotated[
    Any, AfterValidator(_unsupported), WithJsonSchema({"enum": [None, False, "", [], {}]})
]
"""A field of OpenAI's API that is not built: refused by name unless it is null or empty."""

Ignored = Any
"""A field of OpenAI's API that can't change the answer: accepted and not used."""


RoutingKey = Annotated[str, Field(max_length=MAX_KEY)] | None
"""A field of OpenAI's API that tells clients apart: it says which version of a weighted alias answers."""


def _one_name(value: object) -> object:
    if isinstance(value, list):
        raise PydanticCustomError("list", "takes one adapter's name; send one request for each adapter")
    return value


AdapterName = Annotated[Annotated[str, Field(max_length=MAX_NAME)] | None, BeforeValidator(_one_name)]
"""An adapter as peers name it beside `model`; an empty one says nothing."""


def string_or_list(value: object) -> str:
    """Which branch of a union such as `stop` is meant; the tags never show in an error's field name."""
    return "<string>" if isinstance(value, str) else "<list>"


class Strict(BaseModel):
    """Base of all request models: unknown fields are errors, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class AdapterShare(Strict):
    """One of the adapters that answer together, and what its difference from the base is multiplied by."""

    name: str = Field(min_length=1, max_length=MAX_NAME)
    scale: float = Field(1.0, ge=-MAX_SCALE, le=MAX_SCALE)


class ModelFields(Strict):
    """What answers: a model by its name, or the base with several adapters at once.

    `lora_path` is SGLang's name for an adapter and `adapter_id` LoRAX's: `spellings.py` reads them. LoRAX's
    `adapter_source` and `api_token` would say where to fetch an adapter from, which no request can.
    """

    model: str = Field("", max_length=MAX_NAME)
    adapters: list[AdapterShare] | None = Field(None, min_length=1, max_length=MAX_MIXED)
    lora_path: AdapterName = None
    adapter_id: AdapterName = None
    user: RoutingKey = None

    adapter_source: Unsupported = None
    api_token: Unsupported = None

    @property
    def routing_key(self) -> str | None:
        """Who asks, for weighted aliases."""
        return self.user


class StreamOptions(Strict):
    """`include_usage`: a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: Unsupported = None


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, Tag("<string>")]
    | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(string_or_list),
]


class GenerationFields(ModelFields):
    """What both completion routes take. `None` is the same as leaving the field out."""

    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_LOGIT_BIAS
    )
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: Stop | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=MAX_STOP_TOKENS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None

    prompt_cache_key: RoutingKey = None
    safety_identifier: RoutingKey = None

    store: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    prompt_cache_retention: Ignored = None

    @property
    def routing_key(self) -> str | None:
        """See `ModelFields.routing_key`."""
        return self.prompt_cache_key or self.safety_identifier or self.user

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, settings: Settings, vocab_size: int) -> None:
        """The bounds that depend on the server's settings and on the model."""
        if self.choices > settings.max_n:
            raise invalid("n", f"at most {settings.max_n}")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only allowed when stream is true")
        for index, token_id in enumerate(self.stop_token_ids or ()):
            check_token(token_id, vocab_size, f"stop_token_ids[{index}]")

    def sampling(
        self,
        max_tokens: int,
        vocab_size: int,
        *,
        choice: int = 0,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """The engine's parameters for one sequence; each choice has a seed of its own."""
        if (self.min_tokens or 0) > max_tokens:
            raise invalid("min_tokens", f"must not be greater than max_tokens, which is {max_tokens}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=min(max(self.top_k or 0, 0), vocab_size),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=_logit_bias(self.logit_bias or {}, vocab_size),
            seed=None if self.seed is None else (self.seed + choice + INT64) % (2 * INT64) - INT64,
            stop=stop,
            include_stop=bool(self.include_stop_str_in_output),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class ResponseFormat(Strict):
    """Only plain text so far."""

    type: Literal["text"]


def invalid(param: str, message: str) -> APIError:
    """A 400 that begins with the field's name."""
    return APIError(400, f"{param}: {message}", param=param, kind=INVALID)


def check_token(token_id: int, vocab_size: int, param: str) -> None:
    """Ids outside the vocabulary would index beyond the model's tables."""
    if not 0 <= token_id < vocab_size:
        raise invalid(param, f"token id {token_id} is not in the vocabulary (0 to {vocab_size - 1})")


def check_logprobs(count: int, settings: Settings, param: str) -> None:
    """The number of alternatives for each token is bounded by the operator."""
    if count > settings.max_logprobs:
        raise invalid(param, f"at most {settings.max_logprobs}")


def _logit_bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    result = {}
    for key, value in bias.items():
        # Bounded before `int`: Python refuses very long digit strings with an error of its own.
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            raise invalid("logit_bias", f"keys are token ids, not {key[:20]!r}")
        check_token(int(key), vocab_size, "logit_bias")
        result[int(key)] = value
    return result


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
