"""PRIME's cross-entropy on outcomes out of files: what feedback trains a PRM with."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.errors import InvalidInput
from prm.evaluation.labelled import read_labelled
from prm.manifest import PrmManifest
from prm.registry import load_version
from tests.imports import quiet
from tests.training.jobs import kill_run
from training.data import encode_example
from training.events import read_events
from training.publishing import PublishRequest, publish_run
from training.run import EVENTS, run_job
from training.served import GOLDEN_PRM, HELD_OUT
from training.spec import TrainingJob
from training.tasks.running_sum import RunningSum
from training.types import Problem

LINES: list[dict[str, Any]] = [
    {"problem": "1234=", "response": "1360", "correct": True, "first_error": None},
    {"problem": "1234=", "steps": ["1", "3", "7", "1"], "correct": False, "first_error": 2},
    {"problem": "5111=", "response": "5678", "correct": True},
    {"problem": "5111=", "response": "5679", "correct": 0.25, "weight": 3},
    {"problem": "7070=", "response": "7744", "correct": 1},
    {"problem": "7070=", "response": "8855", "correct": 0.0, "weight": 0},
]
CE = {"type": "implicit_prm", "beta": 0.5}
Job = Callable[..., TrainingJob]


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def before(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM to begin with that is not its reference."""
    folder = tmp_path_factory.mktemp("outcomes")
    job = outcome_job(policy, write(folder / "first.jsonl", LINES), None, steps=6)
    return run_job(job, folder / "run").models["prm"]


def outcome_job(policy: Path, file: Path, prm: Path | None, /, **changes: Any) -> TrainingJob:
    fields: dict[str, Any] = {
        "name": "feedback",
        "seed": 3,
        "policy": policy,
        "prm": prm,
        "data": {"type": "labelled", "files": [file], "separator": ""},
        "algorithm": CE,
        "rollouts": {"problems": len(LINES)},
        "optimizer": {"lr": 0.01},
        "steps": 1,
        "evaluation": False,
    }
    return TrainingJob.model_validate(fields | changes)


def log_ratio(prm: Path, policy: Path, line: dict[str, Any]) -> float:
    """Σ log π_φ − log π_ref of a response and the token that ends it, by the engine."""
    text = line.get("response") or "".join(line["steps"])
    example = encode_example(ChatTokenizer(policy), Problem(text=line["problem"]), text)
    sums = []
    for folder in (prm, policy):
        model = CausalLM.load(folder, device="cpu", dtype=torch.float32)
        sums.append(float(model.logprobs([example.ids], [example.first])[0].sum()))
    return sums[0] - sums[1]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run / EVENTS) if event["kind"] == "step"]


def test_the_loss_is_the_weighted_cross_entropy_of_beta_times_the_log_ratio(
    policy: Path, before: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "labels.jsonl", LINES)
    run_job(outcome_job(policy, file, before), tmp_path / "run")
    # By hand: −w·[y·log σ(βs) + (1−y)·log(1−σ(βs))], over Σ w = 1+1+1+3+1+0.
    losses = []
    for line in LINES:
        chance = 1 / (1 + math.exp(-0.5 * log_ratio(before, policy, line)))
        y, w = float(line["correct"]), line.get("weight", 1)
        losses.append(-w * (y * math.log(chance) + (1 - y) * math.log(1 - chance)))
    assert len({round(loss, 3) for loss in losses}) == 6
    (step,) = steps_of(tmp_path / "run")
    assert step["prm_loss"] == pytest.approx(sum(losses) / 7, abs=1e-5)
    assert step["tokens"] == 6 * 5


def test_a_response_of_no_weight_is_one_that_is_not_there(policy: Path, tmp_path: Path) -> None:
    plain = [line | {"weight": 1} for line in LINES[:5]]
    ignored = LINES[5] | {"weight": 0}
    found = []
    for name, lines in (("without", plain), ("with", [*plain, ignored])):
        file = write(tmp_path / f"{name}.jsonl", lines)
        rollouts = {"problems": len(lines)}
        done = run_job(outcome_job(policy, file, None, rollouts=rollouts), tmp_path / name)
        # Begun as its reference, a PRM finds every response as likely right as wrong.
        assert steps_of(tmp_path / name)[0]["prm_loss"] == pytest.approx(math.log(2), abs=1e-6)
        found.append(load_file(done.models["prm"] / "model.safetensors"))
    without, with_ = found
    # A step of AdamW is 0.01 long, and rounding turns small ones round.
    for name, weights in without.items():
        torch.testing.assert_close(weights, with_[name], atol=1e-3, rtol=0)


def test_a_prm_learns_outcomes_and_says_how_well(policy: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "labels.jsonl", LINES)
    data = {"type": "labelled", "files": [file], "held_out": [file], "separator": ""}
    job = outcome_job(policy, file, None, data=data, steps=40, evaluation={"every": 40})
    done = run_job(job, tmp_path / "run")
    assert set(done.models) == {"prm"}
    figures = done.evaluation
    names = {"cross_entropy", "accuracy", "auroc", "pair_accuracy", "first_error_f1"}
    assert set(figures) == names
    assert figures["auroc"] == figures["pair_accuracy"] == figures["accuracy"] == 1
    # Not 0: one label is a share, and no log-ratio is more than −log π_ref.
    assert figures["cross_entropy"] < 0.75 * math.log(2)
    assert not (tmp_path / "run" / HELD_OUT).exists(), "the job has its own"


@pytest.mark.parametrize("loss", ["ce", "dpo", "kto"])
def test_a_resumed_run_is_an_uninterrupted_one_to_the_last_bit(
    loss: str, policy: Path, before: Path, tmp_path: Path
) -> None:
    lines = [{k: v for k, v in line.items() if k != "weight"} for line in LINES]
    file = write(tmp_path / "labels.jsonl", lines if loss == "dpo" else LINES)
    job = outcome_job(
        policy, file, before, algorithm=CE | {"loss": loss}, steps=5, checkpoint_every=2,
        rollouts={"problems": 2 if loss == "dpo" else 4},
    )  # fmt: skip
    whole = run_job(job, tmp_path / "whole")
    kill_run(job, tmp_path / "cut", after_step=3)
    resumed = run_job(job, tmp_path / "cut", resume=True)
    one, other = (load_file(done.models["prm"] / "model.safetensors") for done in (whole, resumed))
    began = load_file(before / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], began[name]) for name in one)


def test_responses_read_together_teach_what_they_teach_one_by_one(
    policy: Path, before: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "labels.jsonl", LINES)
    found = []
    for micro in (100_000, 1):
        job = outcome_job(policy, file, before, optimizer={"lr": 0.01, "micro_tokens": micro})
        done = run_job(job, tmp_path / str(micro))
        found.append((steps_of(tmp_path / str(micro))[0], done.models["prm"]))
    (together, first), (single, second) = found
    for name in ("prm_loss", "prm_grad_norm", "prm_pair_accuracy"):
        assert together[name] == pytest.approx(single[name], abs=1e-5)
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("lines", "changes", "problem"),
    [
        ([*LINES, {"problem": "1=", "response": "1"}], {}, "line 7: does not say whether"),
        ([LINES[0] | {"correct": 1.5}], {}, r"line 1: correct: .*1\.5 is no outcome"),
        ([LINES[0] | {"correct": "yes"}], {}, "line 1: correct: .*'yes' is no outcome"),
        ([LINES[0] | {"weight": -1}], {}, "line 1: weight: .*greater than or equal to 0"),
        ([LINES[0], LINES[2]], {}, r"all 2 responses are labelled alike \(correct 1\)"),
        ([line | {"weight": 0} for line in LINES], {}, "every weight is 0"),
        ([LINES[0], {"problem": "1x=", "response": "1", "correct": True}], {}, "line 2: "),
        ([LINES[1], LINES[0] | {"response": "1" * 40}], {}, r"line 2: .*\d\d tokens"),
        ([LINES[0], LINES[3] | {"weight": 1}], {"loss": "dpo"}, "none of 2 problems has both"),
        (LINES, {"loss": "nca"}, 'line 4: weight 3: .*loss "nca" takes no weights'),
    ],
)
def test_what_cannot_be_learnt_from_is_named_by_its_line(
    lines: list[dict[str, Any]],
    changes: dict[str, Any],
    problem: str,
    policy: Path,
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "labels.jsonl", lines)
    job = outcome_job(policy, file, None, algorithm=CE | changes)
    with pytest.raises(InvalidInput, match=rf"labels\.jsonl.*{problem}"):
        run_job(job, tmp_path / "run")


def test_a_prm_of_another_vocabulary_is_refused(policy: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "labels.jsonl", LINES)
    other = Path("models/rung-arith-prm/1")
    with pytest.raises(InvalidInput, match=r"prm: it has \d+ tokens and the policy 13"):
        run_job(outcome_job(policy, file, other), tmp_path / "run")


@pytest.mark.slow
def test_what_feedback_has_trained_is_published_with_the_read_out_that_it_had(
    policy: Path, before: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "labels.jsonl", LINES)
    algorithm = CE | {"step_value": "accumulative", "end_token": False}
    run_job(outcome_job(policy, file, before, algorithm=algorithm), tmp_path / "run")
    root = tmp_path / "models"
    done = publish_run(PublishRequest(run=tmp_path / "run", root=root), quiet)
    assert [one.role for one in done] == ["reference", "prm"]
    manifest = load_version(root / "feedback-prm" / "1").manifest
    assert isinstance(manifest, PrmManifest)
    assert manifest.recipe["beta"] == 0.5
    assert manifest.recipe["step_value"] == "accumulative"
    golden = [json.loads(line) for line in (tmp_path / "run" / GOLDEN_PRM).read_text().splitlines()]
    assert [list(score.steps) for score in manifest.golden] == [item["steps"] for item in golden]


def test_a_run_with_rollouts_leaves_what_the_gate_judges_its_prm_on(
    job_of: Job, tmp_path: Path
) -> None:
    task = RunningSum(digits=(4, 4))
    job = job_of(
        {"type": "prime", "filter": {"low": 0, "high": 1}}, steps=2, checkpoint_every=2,
        evaluation={"every": 2, "problems": 12, "per_problem": 3},
    )  # fmt: skip
    run_job(job, tmp_path / "run")
    path = tmp_path / "run" / HELD_OUT
    responses = read_labelled(path)
    problems = {problem.text: problem for problem in task.problems(job.seed, 12, "validation")}
    outcomes = set()
    for labelled in responses:
        item = labelled.item()
        problem, text = problems[item["problem"]], "".join(item["steps"])
        error = task.first_error(problem, text)
        known = labelled.labels(len(item["steps"]))
        assert known[: len(text) if error is None else error + 1].count(False) == (
            error is not None
        )
        assert labelled.response.correct == task.is_correct(problem, text) or len(text) > 4
        outcomes.add(labelled.response.correct)
    assert outcomes == {True, False}
    assert 30 <= len(responses) <= 36
    # One that was killed behind its last step writes the same.
    first = path.read_text()
    path.unlink()
    shutil.rmtree(tmp_path / "run" / "prm")
    run_job(job, tmp_path / "run", resume=True)
    assert path.read_text() == first
