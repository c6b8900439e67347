"""What holds for every task of the table, whatever its settings."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prm.errors import InvalidInput
from training.tasks import TASKS, AnyTask, Task
from training.tasks.base import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
every_task = pytest.mark.parametrize("task", [task() for task in TASKS.values()], ids=list(TASKS))


@every_task
def test_the_same_seed_gives_the_same_problems_and_another_seed_others(task: Task) -> None:
    problems = task.problems(0, 20, "train")
    assert problems == task.problems(0, 20, "train")
    assert problems != task.problems(1, 20, "train")
    assert len({problem.text for problem in problems}) == 20


@every_task
def test_no_problem_is_in_two_splits(task: Task) -> None:
    texts = [
        {p.text for p in task.problems(seed, 40, split)} for split in SPLITS for seed in (0, 1)
    ]
    for left in range(0, 6, 2):
        for right in range(left + 2, 6):
            assert not (texts[left] | texts[left + 1]) & texts[right]


@every_task
def test_a_demonstration_is_right_in_every_step(task: Task) -> None:
    rng = random.Random(0)
    for problem in task.problems(2, 30, "validation"):
        response = task.expert(problem, rng)
        rollout = task.label(problem, response)
        assert (rollout.is_correct, rollout.first_error) == (True, None), response
        assert task.reward(problem, response) == 1.0
        assert task.answer_of(response) is not None


@every_task
def test_solutions_fit_their_bounds_and_their_steps_cover_them(task: Task) -> None:
    rng = random.Random(0)
    for problem in task.problems(3, 30, "train"):
        response = task.solution(problem, rng)
        assert len(response) < task.max_tokens
        spans = task.step_spans(response)
        assert "".join(response[start:end] for start, end in spans) == response
        assert len(task.steps_of(response)) == len(spans)
        if task.alphabet is not None:
            assert set(response + problem.text) <= set(task.alphabet)


@every_task
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_text_gets_labels(task: Task, data: st.DataObject) -> None:
    letters = st.sampled_from((task.alphabet or "") + "0123456789=; \n\u0663def")
    response = data.draw(st.text(letters, max_size=30) | st.text(max_size=30))
    problem = task.problems(4, 1, "train")[0]
    rollout = task.label(problem, response)
    assert rollout.first_error is None or 0 <= rollout.first_error < max(1, len(rollout.steps))
    assert 0.0 <= task.reward(problem, response) <= 1.0
    assert not rollout.is_correct or task.reward(problem, response) == 1.0


def test_a_task_is_named_with_its_settings() -> None:
    adapter: TypeAdapter[AnyTask] = TypeAdapter(AnyTask)
    for name, task in TASKS.items():
        assert adapter.validate_python({"type": name}) == task()
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"type": "chain_calc", "operation": [1, 4]})
    with pytest.raises(ValidationError, match=r"write \[1, 4\]"):
        adapter.validate_python({"type": "chain_calc", "operations": [4, 1]})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        adapter.validate_python({"type": "running_sum", "slip_probability": 1.5})


def test_more_problems_than_there_are_is_an_error_with_the_numbers() -> None:
    tiny = TASKS["running_sum"].model_validate({"digits": [1, 1]})
    with pytest.raises(InvalidInput, match=r"of 50 different test problems .* ask for fewer"):
        tiny.problems(0, 50, "test")


def test_the_table_loads_no_torch() -> None:
    code = "import sys, training.tasks; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
