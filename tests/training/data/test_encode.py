"""Encoding: the loss sees answers and nothing else, and rows that teach nothing are never trained."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.training.data.tokenizers import CHATML, chat, merged, of_bytes
from training.base.tokenizer import BOS_ID, EOS_ID, build_tokenizer
from training.base.tokenizer import encode as shipped
from training.data import (
    IGNORE,
    Example,
    LabelledText,
    LabelledTokens,
    PlainText,
    Preference,
    Problem,
    RowError,
    TextExample,
    Tokens,
    encode,
    label_names,
    tokenize,
)
from training.spec import TaskName

SPECIAL = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}


def of_words(*words: str) -> PreTrainedTokenizerFast:
    """As BERT has it: pieces of words between [CLS] and [SEP]."""
    vocabulary = {**SPECIAL, **{word: index + 3 for index, word in enumerate(words)}}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def test_only_the_completion_and_its_end_have_labels() -> None:
    row = tokenize(TextExample("do: cat\n", "tac"), build_tokenizer())
    asked, given = [BOS_ID, *shipped("do: cat\n")], [*shipped("tac"), EOS_ID]
    assert row.ids == asked + given
    assert row.labels == [IGNORE] * len(asked) + given


def test_a_chat_gives_the_same_tokens_as_the_prompt_form() -> None:
    tokenizer = build_tokenizer()
    as_chat = tokenize(chat(("user", "do: cat"), ("assistant", "tac")), tokenizer)
    assert as_chat == tokenize(TextExample("do: cat\n", "tac"), tokenizer)


def test_every_assistant_message_of_a_chat_is_learned() -> None:
    turns = chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row = tokenize(turns, build_tokenizer())
    learned = [label for label in row.labels if label != IGNORE]
    assert learned == [*shipped("b"), EOS_ID, *shipped("d"), EOS_ID]


def test_one_row_can_not_be_made_where_each_answer_is_one() -> None:
    template = "{% for m in messages %}{{ m.content if loop.last else '-' }}{% endfor %}"
    turns = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        tokenize(turns, of_bytes(template))


def test_a_plain_text_is_learned_but_for_its_first_token() -> None:
    row = encode([PlainText("ab")], build_tokenizer(), "CAUSAL_LM", 10).rows[0]
    assert row == Tokens([BOS_ID, *shipped("ab"), EOS_ID], [IGNORE, *shipped("ab"), EOS_ID])


def test_no_token_goes_from_the_prompt_into_the_completion() -> None:
    tokenizer = merged(CHATML, "is it: yes is it: yes is it: yes")
    ids = [tokenizer(text)["input_ids"] for text in ("is it: ", "yes")]
    assert tokenizer("is it: yes")["input_ids"] != ids[0] + ids[1]
    assert tokenize(TextExample("is it: ", "yes"), tokenizer).ids == [
        *ids[0],
        *ids[1],
        tokenizer.eos_token_id,
    ]


def test_a_row_over_the_length_keeps_its_first_tokens() -> None:
    tokenizer = build_tokenizer()
    examples = [TextExample("ab", "cd"), TextExample("abc", "d"), TextExample("a", "b")]
    found = encode(examples, tokenizer, "CAUSAL_LM", 4)
    cut = Tokens([BOS_ID, *shipped("abc")], [IGNORE] * 3 + shipped("c"))
    assert found.rows == [cut, tokenize(examples[2], tokenizer)]
    assert (found.sources, found.truncated) == ([0, 2], 1)
    reason = "all 2 trained tokens of 6 are beyond max_length=4"
    assert found.skipped == (Problem(2, reason, "no_trainable_tokens"),)


def test_an_encoder_decoder_gets_source_and_target() -> None:
    tokenizer = of_words("a", "b", "c")
    tokenizer.eos_token = "[SEP]"
    found = encode([TextExample("a b", "c"), TextExample("a", "c b c")], tokenizer, "SEQ_2_SEQ_LM", 4)
    assert found.rows == [Tokens([1, 3, 4, 2], [1, 5, 2]), Tokens([1, 3, 2], [1, 5, 4, 5])]
    assert found.truncated == 1


def test_the_end_is_added_to_a_target_that_has_none() -> None:
    tokenizer = of_bytes(CHATML, eos="</s>")
    (row,) = encode([TextExample("a", "b")], tokenizer, "SEQ_2_SEQ_LM", 9).rows
    assert tokenizer.decode(row.labels) == "b</s>"


def test_a_text_has_the_number_of_its_class_and_keeps_its_special_tokens() -> None:
    examples = [LabelledText("a b c", "x"), LabelledText("a", "y")]
    found = encode(examples, of_words("a", "b", "c"), "SEQ_CLS", 4, ("y", "x"))
    assert found.rows == [Tokens([1, 3, 4, 2], [1]), Tokens([1, 3, 2], [0])]
    assert found.truncated == 1


def test_a_word_has_its_class_on_its_first_token() -> None:
    tokenizer = of_words("new", "##ly", "in", "ro", "##me", ".")
    example = LabelledTokens(("newly", "in", "rome."), ("O", "O", "B"))
    (row,) = encode([example], tokenizer, "TOKEN_CLS", 20, ("B", "O")).rows
    assert tokenizer.convert_ids_to_tokens(row.ids) == [
        "[CLS]", "new", "##ly", "in", "ro", "##me", ".", "[SEP]",
    ]  # fmt: skip
    assert row.labels == [IGNORE, 1, IGNORE, 1, 0, IGNORE, IGNORE, IGNORE]
    oracle = tokenizer(["newly", "in", "rome."], is_split_into_words=True)
    assert row.ids == oracle["input_ids"]
    words = oracle.word_ids()
    marked = [word is not None and word not in words[:place] for place, word in enumerate(words)]
    assert [label != IGNORE for label in row.labels] == marked


def test_words_stay_with_their_classes_where_one_became_no_token_or_was_cut() -> None:
    example = LabelledTokens(("a", "\u00ad", "b", "c"), ("A", "Z", "B", "C"))  # a soft hyphen is dropped
    tokenizer = of_words("a", "b", "c")
    names = ("A", "B", "C", "Z")
    found = encode([example], tokenizer, "TOKEN_CLS", 9, names)
    assert found.rows == [Tokens([1, 3, 4, 5, 2], [IGNORE, 0, 1, 2, IGNORE])]
    assert encode([example], tokenizer, "TOKEN_CLS", 4, names).rows == [
        Tokens([1, 3, 4, 2], [IGNORE, 0, 1, IGNORE])
    ]


@pytest.mark.parametrize(
    ("example", "task", "says"),
    [
        (
            LabelledText("a", "x"),
            "CAUSAL_LM",
            "CAUSAL_LM learns from TextExample or ChatExample or PlainText",
        ),
        (PlainText("a"), "SEQ_CLS", "SEQ_CLS learns from LabelledText rows, not from PlainText rows"),
        (chat(("user", "a"), ("assistant", "b")), "SEQ_2_SEQ_LM", "learns from TextExample rows"),
        (Preference("a", "b", "c"), "CAUSAL_LM", "they are for the objective dpo"),
    ],
)
def test_rows_of_another_task_are_refused(example: Example, task: TaskName, says: str) -> None:
    with pytest.raises(RowError, match=says) as caught:
        encode([example], build_tokenizer(), task, 10)
    assert caught.value.faults[0].kind == "wrong_task"


def test_what_can_not_be_encoded_is_skipped_with_its_reason() -> None:
    found = encode([LabelledText("a", "z"), LabelledText("a", "x")], of_words("a"), "SEQ_CLS", 9, ["x"])
    assert found.skipped == (Problem(1, "the label 'z' is none of x", "unknown_label"),)
    assert found.sources == [1]
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = None
    (problem,) = encode([chat(("user", "a"), ("assistant", "b"))], tokenizer, "CAUSAL_LM", 9).skipped
    assert (problem.line, problem.kind) == (1, "no_chat_template")


def test_labels_are_sorted_and_numbers_by_their_value() -> None:
    rows: list[Example] = [LabelledText("a", "10"), LabelledTokens(("a", "b"), ("9", "10")), PlainText("c")]
    assert label_names(rows) == ("9", "10")
    assert label_names([*rows, LabelledText("a", "x")]) == ("10", "9", "x")
