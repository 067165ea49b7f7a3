"""Texts that follow each other as tokens: as the whole is written, but with no token across two of them."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from training.data import IGNORE, Tokens
from training.data.tokens import continued, cut, learn

SPACE = "\u2581"


def beginning_with_a_space() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: whatever text is tokenized gets a space before it."""
    symbols = ["<unk>", SPACE, "a", "b", "c", SPACE + "a", SPACE + "b", "bc"]
    core = Tokenizer(
        models.BPE(
            {symbol: index for index, symbol in enumerate(symbols)},
            [(SPACE, "a"), (SPACE, "b"), ("b", "c")],
            unk_token="<unk>",
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def pieces(*texts: str) -> list[list[str]]:
    tokenizer = beginning_with_a_space()
    return [tokenizer.convert_ids_to_tokens(ids) for ids in continued(tokenizer, texts)]


def test_a_later_text_is_written_as_in_the_whole() -> None:
    tokenizer = beginning_with_a_space()
    assert tokenizer.tokenize(" b") == [SPACE, SPACE + "b"]  # by itself it would begin with two spaces
    assert pieces("a", " b", " a") == [[SPACE + "a"], [SPACE + "b"], [SPACE + "a"]]


def test_a_token_across_two_texts_is_taken_apart() -> None:
    assert beginning_with_a_space().tokenize("abc") == [SPACE + "a", "bc"]
    assert pieces("ab", "c") == [[SPACE + "a", "b"], [SPACE, "c"]]
    assert pieces("a", "bc", " b") == [[SPACE + "a"], ["bc"], [SPACE + "b"]]


def test_only_what_is_learned_has_labels_and_never_the_first_token() -> None:
    assert learn([[5, 6], [7]], [True, False]) == Tokens([5, 6, 7], [IGNORE, 6, IGNORE])
    assert learn([[], [7, 8]], [False, True]) == Tokens([7, 8], [IGNORE, 8])
    assert learn([], []) == Tokens([], [])


def test_trained_tokens_are_counted_before_and_after_the_cut() -> None:
    row = learn([[1, 2], [3, 4, 5]], [False, True])
    assert (row.trained, cut(row, 4).trained, cut(row, 2).trained) == (3, 2, 0)
    assert cut(row, None) == row
