"""Both sides over flat rows against the stock model over one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from server.engine.seq2seq.memory import Memory, MemoryShape
from server.engine.seq2seq.stack import Stack
from tests.kit import prompts
from tests.server.engine.seq2seq.stand import FAMILIES, make_t5

SOURCES = prompts(5, 1, 23, 5)
TOKENS = torch.tensor([token for source in SOURCES for token in source])
SHAPE = MemoryShape(3, 4, 12, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sources_of_any_length_are_encoded_as_if_alone(family: str) -> None:
    model = make_t5(family)
    encoded = Stack(model.encoder, 4).encode(TOKENS, [len(source) for source in SOURCES])[0]
    alone = [model.encoder(torch.tensor([source])).last_hidden_state[0] for source in SOURCES]
    torch.testing.assert_close(encoded, torch.cat(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_source_longer_than_a_piece_of_queries() -> None:
    model, (source,) = make_t5("t5"), prompts(600)
    encoded = Stack(model.encoder, 4).encode(torch.tensor(source), [600])
    expected = model.encoder(torch.tensor([source])).last_hidden_state
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_targets_of_any_length_are_decoded_as_if_alone(family: str) -> None:
    model = make_t5(family)
    encoder, decoder = Stack(model.encoder, 4), Stack(model.decoder, 4)
    lengths = [len(source) for source in SOURCES]
    memories = [Memory(SHAPE, length, 12) for length in lengths]
    encoded = encoder.encode(TOKENS, lengths)
    decoder.remember(encoded, memories)
    targets = prompts(12, 12, 12, 12, seed=1)
    rows: list[list[torch.Tensor]] = [[] for _ in targets]
    for step in range(12):
        # The third sequence joins later, so that targets of different lengths stand side by side.
        active = [i for i in range(4) if i != 2 or step >= 4]
        tokens = torch.tensor([targets[i][memories[i].length] for i in active])
        hidden = decoder.decode(tokens, [memories[i] for i in active])[0]
        for i, row in zip(active, hidden, strict=True):
            rows[i].append(row)
    for i, part in enumerate(torch.split(encoded[0], lengths)):
        expected = model.decoder(
            input_ids=torch.tensor([targets[i]]),
            encoder_hidden_states=BaseModelOutput(part[None]).last_hidden_state,
        ).last_hidden_state[0]
        torch.testing.assert_close(torch.stack(rows[i]), expected[: len(rows[i])], rtol=1e-4, atol=1e-5)
