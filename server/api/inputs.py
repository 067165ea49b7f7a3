"""What embeddings and classification are asked with: one or several texts, each a string or token ids."""

from __future__ import annotations

from server.api.completion_schema import PromptField, check_prompts, prompt_list, prompt_name
from server.api.context import ServerContext
from server.api.prompts import Prompt, fit_whole, text_prompt, token_prompt
from server.api.schemas import ModelFields, invalid


class InputFields(ModelFields):
    """The fields of all routes that pool. `None` is the same as leaving the field out."""

    input: PromptField
    add_special_tokens: bool | None = None


async def read_inputs(context: ServerContext, body: InputFields, *, offsets: bool = False) -> list[Prompt]:
    """Every input as token ids, each within the context; `offsets`: see `Prompt`."""
    inputs = prompt_list(body.input)
    most = context.settings.max_inputs
    if len(inputs) > most:
        raise invalid("input", f"at most {most} inputs in one request")
    check_prompts(inputs, context.engine.vocab_size, "input")
    among = sum(len(given) for given in inputs if isinstance(given, str))
    prompts = []
    for index, given in enumerate(inputs):
        name = prompt_name("input", index, len(inputs))
        if isinstance(given, str):
            special = body.add_special_tokens is not False
            prompt = await text_prompt(context, given, special, name, offsets=offsets, among=among)
        else:
            prompt = token_prompt(context, given, echo=False)
        fit_whole(context, prompt, name)
        prompts.append(prompt)
    return prompts
