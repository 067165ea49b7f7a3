"""Tokenizers for chats: bytes and a few special tokens, or pairs of bytes that were merged."""

from __future__ import annotations

import re
from pathlib import Path

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.base.tokenizer import byte_symbols
from training.data import ChatExample, Message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
"""TRL has the templates of many families, each also with marks for what is to be learned."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = re.compile(r"<\|[A-Za-z_]+\|>|<[a-z]+_of_[a-z]+>|<｜[^｜]*｜>")


def of_bytes(template: str, eos: str = "<|im_end|>", bos: str = "<s>") -> PreTrainedTokenizerFast:
    """One token for each byte, and for each special token that the template names."""
    specials = sorted({*_SPECIAL.findall(template), bos, eos})
    symbols = [*specials, *byte_symbols()]
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _finished(core, specials, template, bos, eos)


def merged(template: str, text: str, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """Tokens of several bytes, learned from a text: some of them go across any boundary in it."""
    specials = sorted({*_SPECIAL.findall(template), "<s>", eos})
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=byte_symbols(), show_progress=False
    )
    core.train_from_iterator([text], trainer)
    return _finished(core, specials, template, "<s>", eos)


def _finished(
    core: Tokenizer, specials: list[str], template: str, bos: str, eos: str
) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, chat_template=template
    )


def family(name: str) -> tuple[str, str, str]:
    """Of a family of TRL's: its template, the same with marks, and the token that ends a turn."""
    plain = (TEMPLATES / f"{name}.jinja").read_text()
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>")
    eos = next((end for end in ends if end in plain), "</s>")
    return plain, (TEMPLATES / f"{name}_training.jinja").read_text(), eos


def chat(*turns: tuple[str, str], weights: tuple[int, ...] = ()) -> ChatExample:
    """A chat; `weights`: of its assistant messages, in order."""
    left = list(weights)
    return ChatExample(
        tuple(
            Message(role, content, weight=left.pop(0) if role == "assistant" and left else 1)
            for role, content in turns
        )
    )


def spoken(tokenizer: PreTrainedTokenizerFast, ids: list[int], labels: list[int]) -> list[str]:
    """The texts that are learned, each run of labels by itself."""
    runs: list[list[int]] = []
    before = False
    for token, label in zip(ids, labels, strict=True):
        if label != -100:
            assert label == token
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = label != -100
    return [str(tokenizer.decode(run)) for run in runs]
