"""Rollouts from a server: whose weights wrote them, and what happens when it is away.

The same with the real vLLM: `tests/integration/vllm/test_rollouts.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from prm.engine.model import CausalLM
from prm.errors import InvalidInput, RungError, Unavailable
from tests.training.jobs import online, small_job
from tests.training.served_policy import ServedPolicy
from training.assembly import Run, assemble
from training.events import Events, read_events
from training.loop import OnlineTraining
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch, Written
from training.run import CHECKPOINTS, EVENTS, run_job
from training.spec import TrainingJob, read_job
from training.state import last_checkpoint
from training.types import Problem
from training.untied import untied_copy
from training.weighting import sampler_agreement
from training.writers import Writer


@pytest.fixture
def served(policy: Path) -> Iterator[ServedPolicy]:
    """A server that began with the weights that training begins with."""
    server = ServedPolicy(policy)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def job_of(policy: Path, served: ServedPolicy) -> Callable[..., TrainingJob]:
    """A job of three steps whose rollouts the server writes; what is given replaces its fields."""

    def job(*, server: dict[str, Any] | None = None, **changes: Any) -> TrainingJob:
        there = {"url": served.url, "patience_s": 1.0} | (server or {})
        fields: dict[str, Any] = {
            "rollouts": {"problems": 16, "per_problem": 4, "server": there},
            "optimizer": {"lr": 3e-3},
            "checkpoint_every": 1,
        }
        return small_job(policy, {"type": "grpo"}, **fields | changes)

    return job


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[[TrainingJob], Run]]:
    """Runs whose connections end with the test."""
    with ExitStack() as stack:
        yield lambda job: assemble(job, Events([]), tmp_path / "run", stack)


def gap_to_the_policy(training: OnlineTraining) -> float:
    """How far the log-probs of new rollouts are from the policy's own, at most."""
    problems, step = training.problems.draw(9, 0), training.policy.steps
    written = training.writer.write(problems, seed="x", policy_step=step, per_problem=3)
    batch = RolloutBatch.of(written)
    with torch.no_grad():
        own = training.policy.model.logprobs(batch.examples)
    return float((batch.sampler_logprobs - own).abs().max())


def test_a_server_writes_with_the_weights_of_every_step(
    job_of: Callable[..., TrainingJob], open_run: Callable[[TrainingJob], Run]
) -> None:
    training = online(open_run(job_of()))
    for number in (1, 2, 3):
        told = training.step(number)
        assert told["staleness"] == 0
        assert told["sampler_gap"] < 1e-5
        assert told["effective_share"] == pytest.approx(1.0, abs=1e-6)
        assert told["policy_importance"] == pytest.approx(1.0, abs=1e-5)
        assert gap_to_the_policy(training) < 2e-5
    # The weights of one step and those of the next can be told apart by this.
    with torch.no_grad():
        for weight in training.policy.model.parameters:
            weight.mul_(1.01)
    assert gap_to_the_policy(training) > 1e-3


def test_weights_are_sent_paused_once_a_step_and_leave_nothing_behind(
    job_of: Callable[..., TrainingJob], served: ServedPolicy, tmp_path: Path
) -> None:
    evaluation = {"every": 3, "problems": 4, "per_problem": 2}
    run_job(job_of(evaluation=evaluation), tmp_path / "run")
    events = read_events(tmp_path / "run" / EVENTS)
    assert [event["kind"] for event in events] == ["step"] * 3 + ["evaluation"]
    assert [event["weights_by_disk"] for event in events] == [1, 1, 1, 1]
    assert all(event["seconds_weights"] > 0 for event in events)
    names = [told.partition(" ")[2] for told in served.told if "step" in told]
    assert [name[-2:] for name in names] == ["00", "01", "02", "03"]
    sending = [told.partition(" ")[0] for told in served.told if told != "/v1/completions"]
    assert sending[: len(sending) // 4] == [
        "/pause",
        "/update_weight_version",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/resume",
    ]
    assert sending == sending[: len(sending) // 4] * 4
    assert not list((tmp_path / "run").glob("weights-*"))


@pytest.mark.parametrize(("most", "is_any_cut"), [(3, True), (20, False)])
def test_a_group_is_one_request_and_ends_and_cuts_are_told(
    most: int,
    is_any_cut: bool,
    job_of: Callable[..., TrainingJob],
    open_run: Callable[[TrainingJob], Run],
    served: ServedPolicy,
) -> None:
    server = {"url": served.url}
    sizes = {"problems": 5, "per_problem": 6, "max_tokens": most, "server": server}
    training = online(open_run(job_of(rollouts=sizes)))
    groups = training.writer.write(
        training.problems.draw(1, 0), seed="a", policy_step=0, per_problem=6
    )
    assert served.told.count("/v1/completions") == len(groups) == 5
    rollouts = [rollout for group in groups for rollout in group]
    assert len({rollout.example.ids for rollout in rollouts}) > len(groups)
    for rollout in rollouts:
        response = rollout.example.ids[rollout.example.first :]
        assert len(response) == len(rollout.logprobs)
        assert rollout.is_cut == (response[-1] not in training.policy.model.engine.eos_ids)
        assert len(response) == most or not rollout.is_cut
    assert any(rollout.is_cut for rollout in rollouts) == is_any_cut
    again = training.writer.write(
        training.problems.draw(1, 0), seed="a", policy_step=0, per_problem=6
    )
    assert [[r.example for r in group] for group in groups] == [
        [r.example for r in group] for group in again
    ]


def test_a_server_that_began_anew_is_given_the_weights_again(
    job_of: Callable[..., TrainingJob],
    open_run: Callable[[TrainingJob], Run],
    served: ServedPolicy,
) -> None:
    training = online(open_run(job_of(server={"patience_s": 20.0})))
    training.step(1)
    assert gap_to_the_policy(training) < 2e-5
    served.forget()
    assert gap_to_the_policy(training) < 2e-5
    asked = list[int]()

    def forget_once(server: ServedPolicy) -> None:
        asked.append(1)
        if len(asked) == 4:
            server.forget()

    # In the middle of a step's rollouts: none of those that it wrote with other weights is kept.
    served.before_writing = forget_once
    assert gap_to_the_policy(training) < 2e-5
    assert len(asked) == 2 * training.job.rollouts.problems


def test_a_server_that_is_away_for_a_moment_is_waited_for(
    job_of: Callable[..., TrainingJob], served: ServedPolicy, tmp_path: Path
) -> None:
    def stop_and_start(step: int, told: dict[str, float]) -> None:
        if step == 2:
            served.stop()
            served.start()

    run_job(job_of(server={"patience_s": 20.0}), tmp_path / "run", watch=stop_and_start)
    assert len(read_events(tmp_path / "run" / EVENTS)) == 3


def test_a_server_that_dies_ends_the_run_which_goes_on_when_it_is_back(
    job_of: Callable[..., TrainingJob], served: ServedPolicy, tmp_path: Path
) -> None:
    def die(step: int, told: dict[str, float]) -> None:
        if step == 2:
            served.stop()

    job = job_of()
    with pytest.raises(Unavailable, match=r"vLLM server at 127.* after 1 s .*patience_s.*--resume"):
        run_job(job, tmp_path / "run", watch=die)
    kept = last_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert kept is not None
    assert kept.name == "step-00000002"
    served.start()
    served.told.clear()
    run_job(job, tmp_path / "run", resume=True)
    assert served.told[0] == "/pause"
    assert served.told[4].endswith("-step-00000002")
    assert [event["step"] for event in read_events(tmp_path / "run" / EVENTS)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("server", "job", "problem"),
    [
        ({"takes_weights": False}, {}, "takes no new weights; start vLLM .*VLLM_SERVER_DEV_MODE=1"),
        ({"sees_weights": False}, {}, "could not load the weights in .*sees that folder"),
        ({"has_head": False}, {}, r"runs on a CPU.*python -m training\.untied POLICY FOLDER"),
        ({"owned_by": "sglang"}, {}, "is no vLLM"),
        ({"models": ("a", "b")}, {}, r"serves a, b; name one of them"),
        ({}, {"model": "b"}, r"serves policy; name one of them"),
        ({"key": "secret"}, {}, "wants another key than that of this environment variable"),
    ],
)
def test_a_server_that_will_not_do_is_refused_with_the_remedy(
    server: dict[str, Any],
    job: dict[str, Any],
    problem: str,
    policy: Path,
    job_of: Callable[..., TrainingJob],
    tmp_path: Path,
) -> None:
    other = ServedPolicy(policy, **server)
    other.start()
    try:
        with pytest.raises(InvalidInput, match=problem):
            run_job(job_of(server={"url": other.url} | job), tmp_path / "run")
    finally:
        other.stop()


def test_an_address_without_a_server_is_told_with_the_address(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    server = {"url": "http://127.0.0.1:9", "patience_s": 0.1}
    with pytest.raises(RungError, match=r"the vLLM server at 127\.0\.0\.1:9 does not answer"):
        run_job(job_of(server=server), tmp_path / "run")


class Misreporting:
    """A writer in this process that reports log-probs `by` too high, and weights one step older."""

    is_exact = False

    def __init__(self, writer: Writer, by: float) -> None:
        self._writer = writer
        self._by = by

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        written = self._writer.write(
            problems, seed=seed, policy_step=policy_step - 1, per_problem=per_problem
        )
        return [
            [replace(r, logprobs=tuple(value + self._by for value in r.logprobs)) for r in group]
            for group in written
        ]


@pytest.mark.parametrize(("by", "weight"), [(0.0, 1.0), (0.5, 0.60653), (-0.3, 1.34986), (-1, 2.0)])
def test_a_token_weighs_the_trainers_probability_over_the_samplers_up_to_the_cap(
    by: float,
    weight: float,
    job_of: Callable[..., TrainingJob],
    open_run: Callable[[TrainingJob], Run],
) -> None:
    job = job_of(rollouts={"problems": 16, "per_problem": 4})
    exact = online(open_run(job)).step(1)
    assert exact["staleness"] == 0
    assert "policy_importance" not in exact
    training = online(open_run(job))
    told = replace(training, writer=Misreporting(training.writer, by)).step(1)
    assert told["staleness"] == 1
    assert told["sampler_gap"] == pytest.approx(abs(by), abs=1e-5)
    assert told["effective_share"] == pytest.approx(1.0, abs=1e-5)
    assert told["policy_importance"] == pytest.approx(weight, rel=1e-4)
    assert told["grad_norm"] == pytest.approx(weight * exact["grad_norm"], rel=1e-3)


def test_the_effective_share_is_that_of_weights_that_differ() -> None:
    trainer = torch.log(torch.tensor([[0.5, 0.5, 0.9], [0.2, 0.0001, 0.9]]))
    sampler = torch.log(torch.tensor([[0.5, 0.25, 0.1], [0.1, 0.0002, 0.1]]))
    mask = torch.tensor([[True, True, False], [True, True, False]])
    told = sampler_agreement(trainer, sampler, mask, cap=1.5)
    # Weights 1, 1.5, 1.5 and 0.5: 4.5² / (4 · 5.75).
    assert told["effective_share"] == pytest.approx(20.25 / 23)
    assert told["sampler_gap"] == pytest.approx(3 * math.log(2) / 4)
    assert "effective_share" not in sampler_agreement(trainer, sampler, mask, cap=0.0)


def test_an_untied_copy_says_the_same_and_has_an_output_layer_of_its_own(
    policy: Path, tmp_path: Path
) -> None:
    untied_copy(policy, tmp_path / "copy")
    ids = [[1, 2, 3, 4]]
    own, copy = CausalLM.load(policy), CausalLM.load(tmp_path / "copy")
    assert torch.equal(own.logprobs(ids, [1])[0], copy.logprobs(ids, [1])[0])
    tensors = dict(TrainedLM.load(tmp_path / "copy").model.named_parameters())
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert tensors["lm_head.weight"] is not tensors["model.embed_tokens.weight"]
    assert (tmp_path / "copy" / "tokenizer.json").is_file()


def test_a_temperature_that_its_log_probs_do_not_have_is_refused(
    job_of: Callable[..., TrainingJob], served: ServedPolicy
) -> None:
    hot = {"temperature": 0.7, "server": {"url": served.url}}
    with pytest.raises(ValidationError, match=r"temperature 0\.7 with rollouts\.server"):
        job_of(rollouts=hot)
    job_of(rollouts=hot, algorithm={"type": "grpo", "importance_cap": 0})


def test_a_job_file_says_where_the_weights_are_left(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        f"""
        name = "job"
        policy = "{policy}"
        data = {{task = {{type = "running_sum"}}, type = "task"}}
        algorithm = {{type = "rloo"}}
        optimizer = {{lr = 1e-3}}
        steps = 1
        [rollouts.server]
        url = "http://127.0.0.1:8000/v1"
        weights_folder = "handover"
        """
    )
    server = read_job(tmp_path / "job.toml").rollouts.server
    assert server is not None
    assert server.weights_folder == tmp_path / "handover"
