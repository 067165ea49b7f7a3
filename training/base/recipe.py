"""Trains the shipped base from random weights; the same seed and one thread give the same bytes.

python -m training.base.recipe --output DIR
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from training.base.card import measure_skills, write_card
from training.base.skills import draw_system, draw_turn
from training.base.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, VOCABULARY, build_tokenizer, encode
from training.data import IGNORE
from training.rates import rate


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base's weights."""

    steps: int = 4000
    rows: int = 8
    row_length: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 20261120


@dataclass(frozen=True, slots=True)
class BaseResult:
    """What a run of the recipe gave; `seconds` are of CPU time, which is the same on a busy machine."""

    model: LlamaForCausalLM
    losses: list[float]
    seconds: float


def base_config() -> LlamaConfig:
    """The base's shape: grouped-query attention and a tied head, as in larger Llamas."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def draw_row(rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """One row of whole chats: token ids, and labels that keep only answers and their end."""
    ids, labels = [BOS_ID], [IGNORE]
    if rng.random() < 0.2:
        system = encode(draw_system(rng, "train") + "\n")
        ids += system
        labels += [IGNORE] * len(system)
    while len(ids) < length:
        prompt, reply = draw_turn(rng, "train")
        asked, given = encode(prompt + "\n"), [*encode(reply), EOS_ID]
        ids += asked + given
        labels += [IGNORE] * len(asked) + given
    return ids[:length], labels[:length]


def _batch(rng: random.Random, recipe: Recipe) -> tuple[Tensor, Tensor]:
    rows = [draw_row(rng, recipe.row_length) for _ in range(recipe.rows)]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows])


def train_base(recipe: Recipe, progress: bool = True) -> BaseResult:
    """Train the base from random weights. Deterministic for one recipe on one thread."""
    rng = random.Random(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(base_config()).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate("cosine", recipe.steps, recipe.warmup))
    losses: list[float] = []
    started = time.process_time()
    with tqdm(range(recipe.steps), desc="base", unit="step", disable=not progress) as bar:
        for _ in bar:
            ids, labels = _batch(rng, recipe)
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return BaseResult(model.eval(), losses, time.process_time() - started)


def save_base(model: LlamaForCausalLM, output: Path) -> None:
    """Write model, generation defaults and tokenizer as transformers reads them."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    model.save_pretrained(output)
    build_tokenizer().save_pretrained(output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.base.recipe", description="Train the shipped base."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # gradients of bytes that never occur are that small, and slow
    recipe = Recipe(steps=args.steps)
    result = train_base(recipe)
    save_base(result.model, args.output)
    scores = measure_skills(result.model, build_tokenizer())
    write_card(
        args.output,
        scores,
        parameters=result.model.num_parameters(),
        steps=recipe.steps,
        seed=recipe.seed,
        seconds=result.seconds,
    )
    print("\n".join(f"{tag:8} {score:.3f}" for tag, score in scores.items()))


if __name__ == "__main__":
    main()
