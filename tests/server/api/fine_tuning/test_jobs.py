"""`/v1/fine_tuning/jobs`: what is refused, and with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.registry.records import Quota
from server.jobs.records import new_id
from tests.server.api.stand import Stand, error

PATH = "/v1/fine_tuning/jobs"


def file(stand: Stand) -> str:
    answer = stand.client.post(
        "/v1/files", files={"file": ("x.jsonl", b"{}\n")}, data={"purpose": "fine-tune"}
    )
    found: str = answer.json()["id"]
    return found


def create(stand: Stand, **fields: Any) -> Any:
    body = {"model": "tiny", "training_file": file(stand), **fields}
    return stand.client.post(PATH, json={name: value for name, value in body.items() if value is not ...})


def test_what_is_left_out(stand: Stand) -> None:
    job = create(stand).json()
    assert job["name"] == f"ft-{job['id'].removeprefix('ftjob-')[:12]}"
    assert job["hyperparameters"] == dict.fromkeys(
        ("n_epochs", "batch_size", "learning_rate_multiplier"), "auto"
    )
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": job["hyperparameters"]}}
    assert (job["promote"], job["gate"]) == ("auto", {"on": True, "minimum": None})
    assert (job["training"]["task"], job["training"]["max_length"]) == ("CAUSAL_LM", 100)
    assert (job["training"]["lora"]["rank"], job["training"]["lora"]["alpha"]) == (8, 32.0)
    assert job["seed"] == job["training"]["seed"]
    assert create(stand).json()["seed"] != job["seed"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n_epochs": 3}, "n_epochs", "unknown_field"),
        ({"model": ...}, "model", "missing_field"),
        ({"training_file": ...}, "training_file", "missing_field"),
        ({"suffix": "Shop"}, "suffix", "invalid_name"),
        ({"suffix": "my shop"}, "suffix", "invalid_name"),
        ({"suffix": "tiny"}, "suffix", "invalid_name"),
        ({"suffix": "latest"}, "suffix", "invalid_name"),
        ({"suffix": "acme/shop"}, "suffix", "invalid_name"),
        ({"suffix": "x" * 65}, "suffix", None),
        ({"suffix": "ftjob-" + "0" * 24}, "suffix", "invalid_name"),
        ({"seed": -1}, "seed", None),
        ({"seed": 2**31}, "seed", None),
        ({"seed": 1.5}, "seed", None),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", None),
        ({"metadata": {"k" * 65: ""}}, "metadata", None),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", None),
        ({"metadata": {"k": 1}}, "metadata.k", None),
        ({"metadata": {"k": "\0"}}, "metadata.k", None),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "integrations",
            "unsupported_parameter",
        ),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_parameter"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", None),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", None),
        ({"method": {"type": "supervised", "reinforcement": {}}}, "method.reinforcement", "unknown_field"),
        ({"training": {"learning_rate": 1e308}}, "training.learning_rate", None),
        ({"training": {"lora": {"layers": [10**4000]}}}, "training.lora.layers", None),
        ({"training": {"lora": {"target_modules": ["x" * 200] * 200}}}, "training.lora.target_modules", None),
        ({"training": {"beta": 101.0}}, "training.beta", None),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", None),
        ({"hyperparameters": {"n_epochs": 101}}, "hyperparameters.n_epochs", None),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", None),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", None),
        ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size", None),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            None,
        ),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "unknown_field"),
        (
            {"hyperparameters": {}, "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}},
            "hyperparameters",
            None,
        ),
        ({"promote": "maybe"}, "promote", None),
        ({"gate": {"minimum": 2}}, "gate.minimum", None),
        ({"gate": {"off": True}}, "gate.off", "unknown_field"),
        ({"training": {"lora": {"rank": 0}}}, "training", None),
        ({"training": {"lora": {"rang": 8}}}, "training", None),
        ({"training": {"lora": {"rank": "8"}}}, "training", None),
        ({"training": {"lora": {"rank": 257}}}, "training.lora.rank", None),
        ({"training": {"lora": {"rank_pattern": {"q_proj": 257}}}}, "training.lora.rank", None),
        ({"training": {"lora": {"rank_pattern": {"(a+)+$": 8}}}}, "training.lora.rank_pattern", None),
        ({"training": {"lora": {"target_modules": "(a+)+$"}}}, "training.lora.target_modules", None),
        ({"training": {"lora": {"target_modules": ["../x"]}}}, "training.lora.target_modules", None),
        ({"training": {"lora": {"layers": list(range(1001))}}}, "training.lora.layers", None),
        ({"training": {"max_length": 101}}, "training.max_length", None),
        ({"training": {"batch_size": 64, "accumulation": 65}}, "training.batch_size", None),
        ({"training": {"steps": 1_000_001}}, "training.steps", None),
        ({"training": {"task": "SEQ_2_SEQ_LM"}}, "training.task", None),
        ({"training": {"device": "cuda"}}, "training.device", None),
        ({"training": {"objective": "dpo"}}, "training.objective", None),
        ({"training": {"seed": 2**40}}, "training.seed", None),
        ({"training": {"seed": 1}, "seed": 1}, "training.seed", None),
        ({"training": {"epochs": 1}, "hyperparameters": {"n_epochs": 1}}, "training.epochs", None),
        ({"training": {"steps": 1}, "hyperparameters": {"n_epochs": 1}}, "training.steps", None),
    ],
)
def test_what_is_refused_names_the_field(
    refusing: Stand, fields: dict[str, Any], param: str, code: str | None
) -> None:
    answer = create(refusing, **fields)
    assert error(answer) == (400, code), answer.text
    said = answer.json()["error"]
    assert said["param"] == param
    assert param.rpartition(".")[2] in said["message"]
    assert refusing.training.jobs.list(refusing.caller) == ()


def test_files_that_are_not_there(stand: Stand) -> None:
    for name in ("training_file", "validation_file"):
        for missing in ("file-" + "0" * 24, "../x", "file-1"):
            answer = create(stand, **{name: missing})
            assert error(answer) == (404, "file_not_found")
            assert answer.json()["error"]["param"] == name


def test_a_job_goes_on_from_an_adapter_that_its_tenant_sees(stand: Stand) -> None:
    (version,) = stand.publish("shop", 1)
    job = create(stand, model="shop").json()
    assert job["model"] == "shop"
    request = stand.training.jobs.get(stand.caller, job["id"]).request
    assert (request.parent, request.parent_digest) == ("default/shop@1", version["digest"])
    with stand.tenant("acme"):
        for name in ("shop", "default/shop", "default/shop@1", "never"):
            assert error(create(stand, model=name)) == (404, "model_not_found")
    stand.put("shop/shares/acme")
    with stand.tenant("acme"):
        assert create(stand, model="default/shop").status_code == 200


def test_a_rank_that_could_not_be_published_is_refused_at_once(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.registry.tenants.put("acme", Quota(max_rank=4, max_jobs=1))
        answer = create(stand, training={"lora": {"rank": 8}})
        assert answer.status_code == 400
        assert "is 8; the most is 4" in answer.json()["error"]["message"]
        training = {"lora": {"rank": 4}}
        assert create(stand, training=training).status_code == 200
        assert error(create(stand, training=training)) == (403, "quota_exceeded")
        limits = stand.client.get("/v1/fine_tuning/model_limits").json()
        assert (limits["rank"], limits["jobs"]) == (4, 1)


@pytest.mark.parametrize(
    ("lora", "rank", "alpha", "most", "follows"),
    [
        (None, 8, 32.0, 256, True),
        ({}, 8, 32.0, 256, True),
        ({"alpha": 5.0}, 8, 5.0, 256, False),
        ({"method": "rslora"}, 8, 11.31, 256, True),
        ({"rank": 64}, 64, 32.0, None, False),
        ({"rank": 8, "method": "rslora"}, 8, 11.31, None, False),
    ],
)
def test_a_rank_that_is_not_asked_is_left_for_when_the_data_is_known(
    stand: Stand, lora: Any, rank: int, alpha: float, most: int | None, follows: bool
) -> None:
    job = create(stand, **({} if lora is None else {"training": {"lora": lora}})).json()
    assert (job["training"]["lora"]["rank"], job["training"]["lora"]["alpha"]) == (rank, alpha)
    request = stand.training.jobs.get(stand.caller, job["id"]).request
    assert (request.most_rank, request.alpha_follows) == (most, follows)


def test_a_rank_that_is_not_asked_is_within_the_quota(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.registry.tenants.put("acme", Quota(max_rank=4))
        job = create(stand).json()
        assert job["training"]["lora"]["rank"] == 4
        assert stand.training.jobs.get(stand.caller, job["id"]).request.most_rank == 4


def test_an_adapter_to_go_on_from_has_its_own_rank(stand: Stand) -> None:
    stand.publish("shop", 1)
    job = create(stand, model="shop").json()
    assert stand.training.jobs.get(stand.caller, job["id"]).request.most_rank is None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_base_qlora_is_meant_and_nothing_else_is_taken(stand: Stand, kind: str) -> None:
    stand.publish("shop", 1)
    stand.context.base = replace(stand.context.base, quantization=kind)
    for fields in ({}, {"training": {"lora": {"rank": 2}}}, {"model": "shop"}):
        assert create(stand, **fields).json()["training"]["lora"]["method"] == "qlora"
    assert create(stand, training={"lora": {"method": "qlora"}}).status_code == 200
    for method in ("lora", "dora"):
        answer = create(stand, training={"lora": {"method": method}})
        said = answer.json()["error"]
        assert (answer.status_code, said["param"]) == (400, "training.lora.method")
        assert f"this base is quantised ({kind}): take qlora instead of {method}" in said["message"]
    assert stand.client.get("/v1/fine_tuning/model_limits").json()["methods"] == ["qlora"]


def test_what_training_says_is_told_as_hyperparameters_too(stand: Stand) -> None:
    job = create(stand, training={"epochs": 5, "batch_size": 2, "learning_rate": 2 * 0.0078}).json()
    assert job["hyperparameters"] == {"n_epochs": 5, "batch_size": 2, "learning_rate_multiplier": 2.0}


@pytest.mark.parametrize("query", [{"metadata": "x"}, {"metadata[]": "x"}, {f"metadata[{'k' * 65}]": "x"}])
def test_filters_that_are_none(refusing: Stand, query: dict[str, str]) -> None:
    assert refusing.client.get(PATH, params=query).status_code == 400
    assert refusing.client.get(PATH, params={"metadata[k]": "\0"}).status_code == 400
    many = {f"metadata[{n}]": "x" for n in range(17)}
    assert refusing.client.get(PATH, params=many).status_code == 400


def test_another_tenants_answer_as_what_never_was(stand: Stand) -> None:
    job, missing = create(stand).json()["id"], new_id("ftjob")
    with stand.tenant("acme"):
        for method, rest in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/checkpoints"),
            ("POST", "/cancel"),
            ("POST", "/pause"),
            ("POST", "/resume"),
        ):
            said = [stand.client.request(method, f"{PATH}/{found}{rest}") for found in (job, missing)]
            assert [answer.status_code for answer in said] == [404, 404]
            assert said[0].text.replace(job, "ID") == said[1].text.replace(missing, "ID")
        assert stand.client.get(PATH).json()["data"] == []
        assert stand.client.get(PATH, params={"after": job}).status_code == 404


def test_while_the_server_drains_nothing_is_taken(stand: Stand) -> None:
    job = create(stand).json()["id"]
    stand.context.draining = True
    for rest in ("cancel", "pause", "resume"):
        assert error(stand.client.post(f"{PATH}/{job}/{rest}")) == (503, "draining")
    assert stand.client.get(f"{PATH}/{job}").status_code == 200


def test_a_server_that_does_not_train(stand: Stand) -> None:
    stand.context.training = None
    assert error(stand.client.get(PATH)) == (403, "training_off")
    assert error(stand.client.get("/v1/fine_tuning/model_limits")) == (403, "training_off")
