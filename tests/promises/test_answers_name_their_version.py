"""Law 2: an answer comes from exactly the digest it names; what is unknown is an error, never the base."""

from __future__ import annotations

import pytest

from adapters.errors import AdapterError, AdapterNotFound
from tests.kit import Families, ask, prompts, run_all
from tests.promises.world import world

PROMPT = prompts(10)[0]


def test_each_version_answers_as_itself(families: Families) -> None:
    with world(families("llama")) as w:
        contents = ["all", "attention", "mlp", "patterns"]
        for content in contents:
            w.publish("bot", content)
        refs = ["bot@1", "bot@2", "bot@3", "bot@4", "bot"]
        ids = [w.submit(ref, PROMPT, 9) for ref in refs]
        assert [w.contents[w.asked[request_id][0]] for request_id in ids] == [*contents, "patterns"]
        w.finish()
        assert w.wrong() == []


@pytest.mark.parametrize("ref", ["nobody", "bot@9", "bot@0", "bot@", "@1", "", "base", "bot@1@1", "../bot"])
def test_an_unknown_name_is_an_error(ref: str, families: Families) -> None:
    with world(families("llama")) as w:
        w.publish("bot", "all")
        with pytest.raises(AdapterNotFound):
            w.submit(ref, PROMPT, 4)
        assert not w.core.busy


def test_an_adapter_that_cannot_be_read_is_an_error_and_not_the_base(families: Families) -> None:
    """Deleted behind the registry's back, or damaged on disk."""
    with world(families("llama")) as w:
        digest = w.publish("bot", "all")
        answers = run_all(w.core, [ask("x", PROMPT, "0" * 64)])
        assert isinstance(answers["x"].error, AdapterNotFound)
        path = w.registry._blobs.folder(digest) / "adapter_model.safetensors"
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[-3] ^= 0x10
        path.write_bytes(data)
        answers = run_all(w.core, [ask("x", PROMPT, digest)])
        assert isinstance(answers["x"].error, AdapterError)
        assert answers["x"].tokens == []
