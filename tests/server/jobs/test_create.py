"""What is refused when a job is created: the field, the number and the remedy are named."""

from typing import Any

import httpx2
import openai
import pytest

from tests.factories import POLICY, PRM
from tests.server.conftest import rung_serve
from tests.server.jobs.conftest import OUTCOMES, PROBLEMS, STEPS, TASK, Upload, response

JOBS = "/v1/fine_tuning/jobs"


def of_task(kind: str, model: str = POLICY, **settings: Any) -> dict[str, Any]:
    return {"model": model, "method": {"type": kind, kind: {"task": TASK} | settings}}


# Of the request: what is said, and of which field.
REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "an unknown base": (of_task("grpo", "nope"), 404, "model", f"there is {POLICY}, {PRM}"),
    "an unknown version": (of_task("grpo", f"{POLICY}@9"), 404, "model", f"there is {POLICY}@1"),
    "a path as base": (of_task("grpo", "../../etc"), 404, "model", "no model named"),
    "a NUL in a name": (of_task("grpo", "a\0b"), 404, "model", "no model named"),
    "a PRM to write": (of_task("grpo", PRM), 400, "model", "is a PRM, and grpo trains a policy"),
    "a policy as PRM": (
        of_task("prime_feedback"), 400, "model", f"trains a PRM further; name one of {PRM}",
    ),
    "an unknown method": (of_task("primm"), 422, "method", "there is sft"),
    "OpenAI's own method": (of_task("supervised"), 422, "method", "there is sft"),
    "no method": ({"model": POLICY}, 422, "method", "required"),
    "an unknown key": (of_task("prl", etta=1), 422, "method.prl.etta", "eta"),
    "a key of another method": (of_task("grpo", beta=1), 422, "method.grpo.beta", "no such field"),
    "a path": (of_task("grpo", policy="/etc"), 422, "method.grpo.policy", "no such field"),
    "a path to a PRM": (of_task("prime", prm="/models/x"), 404, "method.prime.prm", "no model"),
    "an address": (
        of_task("grpo", rollouts={"server": "http://169.254.169.254"}), 400,
        "method.grpo.rollouts.server", "own policy server",
    ),
    "an address in a table": (
        of_task("grpo", rollouts={"server": {"url": "http://x"}}), 422,
        "method.grpo.rollouts.server", "string",
    ),
    "settings that clash": (
        of_task("prime", estimator="grpo", baseline="none"), 422, "method.prime",
        "leave-one-out form",
    ),
    "a group of one": (
        of_task("grpo", rollouts={"per_problem": 1}), 400,
        "method.grpo.rollouts.per_problem", "set it to 2 or more",
    ),
    "a PRM for GRPO": (of_task("grpo", prm=PRM), 400, "method.grpo.prm", "leave prm out"),
    "an optimizer too many": (
        of_task("rloo", prm_optimizer={}), 400, "method.rloo.prm_optimizer", "leave prm_optimizer",
    ),
    "a PRM that never was": (
        of_task("prime", update="never"), 400, "method.prime.update", "give prm",
    ),
    "demonstrations": (
        of_task("grpo", demonstrations=3), 400, "method.grpo.demonstrations", "no demonstrations",
    ),
    "an adapter of nothing": (
        of_task("grpo", adapter={"target_modules": []}), 422,
        "method.grpo.adapter", "target_modules is empty",
    ),
    "epochs of a task": (
        of_task("grpo", hyperparameters={"n_epochs": 3}), 400,
        "method.grpo.hyperparameters.n_epochs", "new problems in every step",
    ),
    "steps and epochs": (
        of_task("grpo", steps=1, hyperparameters={"n_epochs": 3}), 422, "method.grpo", "give one",
    ),
    "hyperparameters twice": (
        of_task("grpo", hyperparameters={"batch_size": 3}) | {"hyperparameters": {}}, 422, "",
        "stand in method.grpo and beside it",
    ),
    "a name of the other kind": (
        of_task("prime", prm_name=POLICY), 400, "method.prime.prm_name", "is a policy",
    ),
    "one name for both": (
        of_task("prime", prm_name="new", policy_name="new"), 400, "method.prime.prm_name",
        "give each its own",
    ),
    "a path as a result": (
        of_task("grpo", policy_name="../up"), 422, "method.grpo.policy_name", "pattern",
    ),
    "a gate without a PRM": (of_task("grpo", gate={}), 400, "method.grpo.gate", "makes none"),
    "a gate with nothing to see": (
        of_task("prime", gate={}, evaluation=False), 400, "method.prime.gate",
        "nothing to compare by",
    ),
    "an unknown margin": (of_task("prime", gate={"margin": 2}), 422, "method.prime.gate", "1"),
    "a long suffix": (of_task("grpo") | {"suffix": "x" * 65}, 422, "suffix", "64"),
    "a path as suffix": (of_task("grpo") | {"suffix": "../x"}, 422, "suffix", "pattern"),
    "many metadata": (
        of_task("grpo") | {"metadata": {str(n): "" for n in range(17)}}, 422, "metadata", "16",
    ),
    "a long value": (of_task("grpo") | {"metadata": {"a": "b" * 513}}, 422, "metadata.a", "512"),
    "a number as metadata": (of_task("grpo") | {"metadata": {"a": 1}}, 422, "metadata.a", "string"),
    "a negative seed": (of_task("grpo") | {"seed": -1}, 422, "seed", "greater"),
    "wandb": (
        of_task("grpo") | {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 422,
        "integrations[0]", "there is tensorboard, trackio",
    ),
    "a device that is none": (of_task("grpo", device="/dev/sda"), 422, "method.grpo.device", "p"),
    "no data at all": (
        {"model": POLICY, "method": {"type": "grpo"}}, 400, "training_file", "method.grpo.task",
    ),
    "a file that is not there": (
        {"model": POLICY, "method": {"type": "grpo"}, "training_file": "file-0"}, 404,
        "training_file", "upload it first",
    ),
    "a file that is a path": (
        {"model": POLICY, "method": {"type": "grpo"}, "training_file": "../../etc/passwd"}, 404,
        "training_file", "upload it first",
    ),
    "demonstrations from files": (
        {"model": POLICY, "method": {"type": "prime_feedback"}}, 400, "model", "is a policy",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused(name: str, plain: httpx2.Client) -> None:
    request, status, param, said = REFUSED[name]
    answer = plain.post(JOBS, json=request)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"] or "").startswith(param), error
    assert said in error["message"], error
    assert "/tmp" not in error["message"]  # no path of this machine


PROBLEM = PROBLEMS[0]
FILES: dict[str, tuple[str, str, list[Any], str]] = {
    "no answer": ("grpo", POLICY, [PROBLEM, {"problem": "1+1"}], "line 2: no column holds the ans"),
    "no problem": ("grpo", POLICY, [PROBLEM, {"answer": "1"}], "line 2: no column holds the prob"),
    "an empty answer": ("grpo", POLICY, [PROBLEM, {"problem": "1", "answer": ""}], ", line 2"),
    "answers and tests": (
        "grpo", POLICY, [PROBLEM, {"text": "f", "test_list": ["assert f(1) == 2"]}],
        "1 of 2 problems have tests",
    ),
    "a wrong type": ("grpo", POLICY, [{"problem": 3, "answer": "1"}], "line 1: problem: a text"),
    "an id twice": ("grpo", POLICY, [PROBLEM | {"id": 1}] * 2, "an id that stood before"),
    "solutions to imitate": ("sft", POLICY, [PROBLEM], "sft imitates demonstrations"),
    "a problem as a response": ("prime_feedback", PRM, [OUTCOMES[0], PROBLEM], "line 2: holds"),
    "no label": ("prime_feedback", PRM, [OUTCOMES[0], response(None)], "line 2: does"),
    "a label above 1": ("prime_feedback", PRM, [OUTCOMES[0], response(1.5)], "line 2: correct"),
    "a label below 0": ("prime_feedback", PRM, [OUTCOMES[0], response(-0.5)], "line 2: correct"),
    "a text as label": ("prime_feedback", PRM, [response("yes")], "line 1: correct"),
    "a negative weight": ("prime_feedback", PRM, [response(True, weight=-1)], "line 1: weight"),
    "labels that are alike": ("prime_feedback", PRM, [OUTCOMES[0]] * 3, "labelled alike"),
    "no step": ("prime_feedback", PRM, [response(True, steps=[])], "line 1"),
    "outcomes without": ("implicit_prm", POLICY, [response(None)], "line 1: does not say whether"),
    "steps without labels": ("step_bce", POLICY, [STEPS[0], response(True)], "line 2: no step has"),
    "too many labels": ("step_bce", POLICY, [response(True, labels=[True])], "1 labels"),
    "a share as step label": ("step_bce", POLICY, [response(True, labels=[0.5, 1])], "line 1"),
    "an error behind the end": ("step_bce", POLICY, [response(True, first_error=2)], "error 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_method_cannot_read_is_refused_with_its_line(
    name: str, plain: httpx2.Client, upload: Upload
) -> None:
    kind, model, rows, said = FILES[name]
    file = upload(rows)
    request = {"model": model, "training_file": file, "method": {"type": kind}}
    answer = plain.post(JOBS, json=request)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"], error
    assert "/" not in error["message"].replace("and/or", "").split(" line")[0]
    if "line" in said:
        assert file in error["message"]
        assert error["param"] == "training_file"


def test_every_method_has_defaults_that_make_a_job(plain: httpx2.Client, upload: Upload) -> None:
    problems, outcomes, steps = upload(PROBLEMS), upload(OUTCOMES), upload(STEPS)
    code = upload([{"text": "Write f.", "test_list": ["assert f(1) == 2"]}])
    least = [
        *((kind, POLICY, problems) for kind in ("rloo", "grpo", "lambda_grpo", "prl", "prime")),
        ("grpo", f"{POLICY}@1", code),
        ("implicit_prm", POLICY, problems),
        ("implicit_prm", POLICY, outcomes),
        ("implicit_prm", PRM, outcomes),
        ("implicit_prm", PRM, problems),
        ("step_bce", POLICY, steps),
        ("prime_feedback", PRM, outcomes),
    ]
    for kind, model, file in least:
        request = {"model": model, "training_file": file, "method": {"type": kind}}
        answer = plain.post(JOBS, json=request)
        assert answer.status_code == 200, (kind, model, answer.text)
    for kind in ("sft", "repirl", "prime", "step_bce", "implicit_prm"):
        answer = plain.post(JOBS, json=of_task(kind))
        assert answer.status_code == 200, (kind, answer.text)


def test_a_validation_file_decides_the_gate(plain: httpx2.Client, upload: Upload) -> None:
    file = upload(OUTCOMES)

    def job(held_out: list[Any], **settings: Any) -> httpx2.Response:
        method = {"type": "prime_feedback", "prime_feedback": settings}
        request = {"model": PRM, "training_file": file, "validation_file": upload(held_out)}
        return plain.post(JOBS, json=request | {"method": method})

    def gate(held_out: list[Any], **settings: Any) -> Any:
        return job(held_out, **settings).json()["method"]["prime_feedback"]["gate"]

    other = response(False) | {"problem": "2+2"}
    assert gate([response(True), other])["metric"] == "auroc"  # nothing to choose among
    judged = [response(True, first_error=None), response(False, first_error=0)]
    assert gate(judged)["metric"] == "first_error_f1"
    assert gate(judged, gate={"metric": "auroc", "margin": 0.2})["margin"] == 0.2
    assert gate(judged, gate=False) is False
    refused = job([response(True), other], gate={"metric": "first_error_f1"})
    assert refused.status_code == 400
    assert "they give auroc" in refused.json()["error"]["message"]
    same = {"model": PRM, "training_file": file, "validation_file": file}
    answer = plain.post(JOBS, json=same | {"method": {"type": "prime_feedback"}})
    assert answer.json()["error"]["param"] == "validation_file"


def test_what_a_prm_is_read_by_stays(plain: httpx2.Client, upload: Upload) -> None:
    request = {"model": PRM, "training_file": upload(OUTCOMES)}
    method = {"type": "implicit_prm", "implicit_prm": {"beta": 0.1}}
    answer = plain.post(JOBS, json=request | {"method": method})
    assert answer.json()["error"]["param"] == "method.implicit_prm.beta"
    assert "0.5, stays" in answer.json()["error"]["message"]
    # It is read step by step, and step_bce would train the sum up to each.
    steps = {"model": PRM, "training_file": upload(STEPS), "method": {"type": "step_bce"}}
    assert "take implicit_prm" in plain.post(JOBS, json=steps).json()["error"]["message"]


def test_a_job_and_a_waiting_one_cannot_make_two_kinds_of_one_name(plain: httpx2.Client) -> None:
    assert plain.post(JOBS, json=of_task("prime", prm_name="both")).status_code == 200
    answer = plain.post(JOBS, json=of_task("grpo", policy_name="both"))
    assert answer.status_code == 400
    assert "is a prm of ftjob-" in answer.json()["error"]["message"]


def test_a_server_has_room_for_so_many_jobs_and_asks_for_a_key(
    tiny_models: Any, tmp_path: Any
) -> None:
    with rung_serve(
        tiny_models,
        RUNG_RUNS=str(tmp_path / "runs"),
        RUNG_WORKER="false",
        RUNG_MAX_JOBS="2",
        RUNG_API_KEYS="all",
    ) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="all", max_retries=0)
        stranger = openai.OpenAI(base_url=f"{running.url}/v1", api_key="no", max_retries=0)
        first, _ = (
            client.fine_tuning.jobs.create(training_file=None, **of_task("rloo"))  # type: ignore[arg-type]
            for _ in range(2)
        )
        with pytest.raises(openai.RateLimitError, match="at most 2") as refused:
            client.fine_tuning.jobs.create(training_file=None, **of_task("rloo"))  # type: ignore[arg-type]
        assert refused.value.response.headers["Retry-After"] == "60"
        client.fine_tuning.jobs.cancel(first.id)
        client.fine_tuning.jobs.create(training_file=None, **of_task("rloo"))  # type: ignore[arg-type]
        for ask in (stranger.fine_tuning.jobs.list, stranger.files.list):
            with pytest.raises(openai.AuthenticationError):
                ask()
        client.close()
        stranger.close()
