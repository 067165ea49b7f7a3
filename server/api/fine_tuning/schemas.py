"""What `POST /v1/fine_tuning/jobs` takes: OpenAI's fields, and `training`, `promote` and `gate` of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from adapters.registry.records import Promote
from server.api.schemas import MAX_NAME, Strict
from server.jobs.settle import AUTO
from training.spec import TrainSpec

MAX_EPOCHS = 100
MAX_BATCH = 4096
"""Rows of one optimizer step."""
MAX_STEPS = 1_000_000
MAX_MULTIPLIER = 10_000
MAX_BETA = 100
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
SEED = 2**31
PLAIN = r"^[^\x00]*$"
"""Text that a database takes."""


def _number_or_auto(value: object) -> str:
    return "<auto>" if isinstance(value, str) else "<number>"


Auto = Annotated[Literal["auto"], Tag("<auto>")]
_WHICH = Discriminator(_number_or_auto)
Epochs = Annotated[Auto | Annotated[int, Field(ge=1, le=MAX_EPOCHS), Tag("<number>")], _WHICH]
BatchSize = Annotated[Auto | Annotated[int, Field(ge=1, le=MAX_BATCH), Tag("<number>")], _WHICH]
Multiplier = Annotated[Auto | Annotated[float, Field(gt=0, le=MAX_MULTIPLIER), Tag("<number>")], _WHICH]
Beta = Annotated[Auto | Annotated[float, Field(gt=0, le=MAX_BETA), Tag("<number>")], _WHICH]


class Hyperparameters(Strict):
    """Each `auto` or a number; `learning_rate_multiplier` is of the rate that `training` has by default."""

    n_epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    learning_rate_multiplier: Multiplier | None = None

    def given(self) -> dict[str, Any]:
        """Those that were sent, and `auto` for the others."""
        return {name: AUTO if value is None else value for name, value in self.model_dump().items()}


class DpoHyperparameters(Hyperparameters):
    """`beta`: how much moving away from the base costs."""

    beta: Beta | None = None


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


def _trained_here(value: str) -> str:
    if value == "reinforcement":
        raise PydanticCustomError("unsupported", "this server trains with supervised and dpo only")
    return value


Kind = Annotated[Literal["supervised", "dpo", "reinforcement"], AfterValidator(_trained_here)]


class Method(Strict):
    """`type` says which of the others counts."""

    type: Annotated[Kind, WithJsonSchema({"enum": ["supervised", "dpo"]})]
    supervised: Supervised | None = None
    dpo: Dpo | None = None


class Gate(Strict):
    """`minimum`: the task's score that the result must reach besides being better than what there is."""

    on: bool = True
    minimum: float | None = Field(None, ge=0, le=1)


def _not_sent(value: object) -> None:
    if value is not None and value != []:
        raise PydanticCustomError(
            "unsupported", "this server sends nothing to other services: read events and result_files instead"
        )


def _short_keys(value: dict[str, str]) -> dict[str, str]:
    if not all(0 < len(key) <= MAX_KEY and "\0" not in key for key in value):
        raise PydanticCustomError(
            "key", "keys have 1 to {most} characters, none of them NUL", {"most": MAX_KEY}
        )
    return value


def spec_schema() -> dict[str, Any]:
    """The JSON schema of a `TrainSpec`, in one piece."""
    schema = TypeAdapter(TrainSpec).json_schema(ref_template="{model}")
    definitions = schema.pop("$defs")
    schema["properties"]["lora"] = definitions["LoraSpec"]
    return schema


Training = Annotated[dict[str, Any], WithJsonSchema(spec_schema())]
Value = Annotated[str, Field(max_length=MAX_VALUE, pattern=PLAIN)]
Metadata = Annotated[dict[str, Value], Field(max_length=MAX_PAIRS), AfterValidator(_short_keys)]
Id = Annotated[str, Field(max_length=100, pattern=PLAIN)]


class JobFields(Strict):
    """`model`: the base, or an adapter to go on from. `suffix`: the name of the adapter that it becomes.

    `training` has what OpenAI's hyperparameters have no word for, such as the method and the rank.
    """

    model: str = Field(min_length=1, max_length=MAX_NAME, pattern=PLAIN)
    training_file: Id
    validation_file: Id | None = None
    suffix: str | None = Field(None, max_length=64, pattern=PLAIN)
    seed: int | None = Field(None, ge=0, lt=SEED)
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: Annotated[Any, AfterValidator(_not_sent), WithJsonSchema({"enum": [None, []]})] = None
    training: Training | None = None
    promote: Promote = "auto"
    gate: Gate = Gate()
