"""What goes into the engine and what comes out of it. No HTTP here, and no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Ranges are checked by the API schema; the engine trusts them.

    Attributes:
        max_tokens: most tokens to generate, at least 1 (0 only with `prompt_logprobs`: score the prompt).
        min_tokens: stop tokens and stop strings do not count before this many generated tokens.
        temperature: 0 is greedy.
        top_k: 0 is off. `top_p`: 1 is off. `min_p`: 0 is off.
        frequency_penalty, presence_penalty: OpenAI's formula, over generated tokens.
        repetition_penalty: over prompt and generated tokens (arXiv 1909.05858); 1 is off.
        logit_bias: token id -> value added to its logit.
        seed: the same seed and parameters give the same answer whatever runs beside it.
        stop: strings that end the text; they are not part of it unless `include_stop`.
        stop_token_ids: ids that end the text, besides the model's own end tokens.
        ignore_eos: the model's own end tokens do not end the text.
        logprobs: None is off; otherwise how many alternatives beside the chosen token (0 is allowed).
        prompt_logprobs: the same for the prompt's tokens (for `echo`).
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability under the unmodified distribution.

    `top` holds the most likely alternatives, best first, as `(token_id, logprob)`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate.

    Attributes:
        request_id: unique among live requests.
        prompt: token ids, at least one.
        adapter: digest of the adapter version, or None for the base.
        scope: whose KV may be shared; requests of different scopes never share.
        invocation: the adapter's own `AdapterWeights.invocation`: it acts from the last time that these
            tokens occur in the prompt, and not at all if they do not; empty: from the first token on.
        tenant: whose share of the batch it takes.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None
    scope: str = ""
    invocation: tuple[int, ...] = ()
    tenant: str = ""


PoolingTask = Literal["embed", "classify", "token_classify"]
Pooling = Literal["last", "mean", "cls"]


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """One sequence to embed or to classify: nothing is generated.

    Attributes:
        request_id, prompt, adapter, scope, invocation, tenant: as in `GenerationRequest`.
        task: `embed` gives the pooled hidden state; the others put it through the adapter's head.
        pooling: of which tokens' last hidden states; `token_classify` uses each by itself.
    """

    request_id: str
    prompt: tuple[int, ...]
    task: PoolingTask
    pooling: Pooling = "last"
    adapter: str | None = None
    scope: str = ""
    invocation: tuple[int, ...] = ()
    tenant: str = ""


Request = GenerationRequest | PoolingRequest


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """The answer. `vectors`: one, or for `token_classify` one for each prompt token; embeddings or logits."""

    request_id: str
    vectors: tuple[tuple[float, ...], ...]
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """What one engine step added to one sequence.

    Attributes:
        text: new text, may be empty while a multi-byte character or a possible stop string is pending.
        token_ids: new tokens (including an end token that produced no text).
        logprobs: one for each new token, when asked for.
        finish_reason: set on the last output of a sequence. `stop_reason`: the stop string or token id.
        prompt_logprobs: on the first output only, when asked for; the first prompt token has None.
        cached_tokens: prompt tokens whose KV was reused; on the first output.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cached_tokens: int = 0


class EngineError(Exception):
    """The engine failed or was stopped while a request ran: a 500 or 503 over HTTP."""


class QueueFull(EngineError):
    """More sequences wait than `max_waiting` allows: a 429 over HTTP."""
