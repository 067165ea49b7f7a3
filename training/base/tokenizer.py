"""A byte-level tokenizer: one token for each of the 256 bytes and three special ones, nothing learned.

Byte `b` has the id `b + 3`. A prompt is one line; the answer follows the newline and ends with `<|end|>`.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
SPECIALS = (PAD, BOS, EOS)
PAD_ID, BOS_ID, EOS_ID = range(3)
VOCABULARY = len(SPECIALS) + 256
MAX_LENGTH = 1024

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}"
    "{% else %}{% set text = message['content'] | map(attribute='text') | join('') %}{% endif %}"
    "{{ text + (eos_token if message['role'] == 'assistant' else '\n') }}"
    "{% endfor %}"
)
"""The user's line is the prompt itself, so chat and completions ask the base in the same form."""


def encode(text: str) -> list[int]:
    """The ids of a text, without specials: what the tokenizer gives, without its cost."""
    return [byte + len(SPECIALS) for byte in text.encode()]


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in a ByteLevel vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the shipped base."""
    symbols = [*SPECIALS, *byte_symbols()]
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, symbols.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
