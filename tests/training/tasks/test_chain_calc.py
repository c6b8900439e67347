"""ChainCalc-100: its counts of tokens, its labels, and why an error never heals."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tasks.chain_calc import ChainCalc, apply, chain_of, oracle
from training.types import Problem

VECTORS = Path(__file__).parents[4] / "shared/vectors/prl_repirl.json"
TASK = ChainCalc()
PROBLEM = Problem(text="47+12*03-45+07=", answer="39")


def test_prompt_and_response_have_the_tokens_of_the_description() -> None:
    assert len(ChainCalc.alphabet or "") == 15
    for k in (1, 2, 4, 6):
        task = ChainCalc(operations=(k, k))
        for problem in task.problems(0, 20, "train"):
            assert len(problem.text) == 2 + 3 * k + 1
            assert len(task.expert(problem, random.Random(0))) + 1 == 3 * k + 1 == task.max_tokens


def test_operands_are_those_that_an_error_cannot_heal_behind() -> None:
    signs = set()
    for problem in TASK.problems(0, 500, "train"):
        for sign, operand in chain_of(problem)[1]:
            signs.add(sign)
            assert operand in ((3, 7, 9) if sign == "*" else range(1, 100))
    assert signs == set("+-*")
    for sign, operand in [("+", 45), ("-", 99), ("*", 3), ("*", 7), ("*", 9)]:
        assert len({apply((sign, operand), number) for number in range(100)}) == 100


@pytest.mark.parametrize(
    ("response", "is_correct", "first_error"),
    [
        ("59;77;32;39;", True, None),
        ("59;77;32;38;", False, 3),
        ("58;74;29;36;", False, 0),
        ("58;77;32;39;", True, 0),
        ("59;7;32;39;", False, 1),
        ("59;077;32;39;", False, 1),
        ("59;77;32;39", False, 3),
        ("59;77;32;39;39;", False, 3),
        ("59;77;", False, 1),
        ("59;77;;32;39;", False, 3),
        ("", False, 0),
        ("59;७७;32;39;", False, 1),
        ("59;77;32;39;\n", False, 3),
    ],
)
def test_labels(response: str, is_correct: bool, first_error: int | None) -> None:
    rollout = TASK.label(PROBLEM, response)
    assert (rollout.is_correct, rollout.first_error) == (is_correct, first_error)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 99), min_size=4, max_size=4))
def test_a_step_is_judged_by_the_number_written_before_it(seed: int, numbers: list[int]) -> None:
    problem = TASK.problems(seed, 1, "train")[0]
    before, operations = chain_of(problem)
    is_true = []
    for (sign, operand), number in zip(operations, numbers, strict=True):
        is_true.append(number == eval(f"({before} {sign} {operand}) % 100"))
        before = number
    response = "".join(f"{number:02};" for number in numbers)
    expected = is_true.index(False) if False in is_true else None
    assert TASK.first_error(problem, response) == expected
    assert TASK.is_correct(problem, response) == (numbers[-1] == int(problem.answer))


def test_one_false_step_spoils_the_answer_and_is_the_first_error() -> None:
    rng = random.Random(0)
    for problem in TASK.problems(1, 100, "train"):
        start, operations = chain_of(problem)
        place = rng.randrange(4)
        numbers = oracle(start, operations[:place])
        false = (apply(operations[place], (numbers or [start])[-1]) + rng.randint(1, 99)) % 100
        numbers += [false, *oracle(false, operations[place + 1 :])]
        rollout = TASK.label(problem, "".join(f"{number:02};" for number in numbers))
        assert (rollout.is_correct, rollout.first_error) == (False, place)


def test_a_noisy_expert_errs_as_often_as_it_is_told_to() -> None:
    task = ChainCalc(expert_noise=0.1)
    rng, count = random.Random(0), 3000
    problems = task.problems(0, count, "train")
    rollouts = [task.label(problem, task.expert(problem, rng)) for problem in problems]
    unspoilt = sum(rollout.first_error is None for rollout in rollouts) / count
    assert unspoilt == pytest.approx(0.9**4, abs=0.03)
    firsts = [r.first_error for r in rollouts if r.first_error is not None]
    assert firsts.count(0) / count == pytest.approx(0.1, abs=0.02)
    assert all(not r.is_correct for r in rollouts if r.first_error == 3)
    # The solutions to imitate have a setting of their own.
    assert all(task.is_correct(p, task.solution(p, rng)) for p in problems[:200])


@pytest.mark.skipif(not VECTORS.exists(), reason="needs ../shared/vectors")
def test_labels_are_those_that_processbench_counts() -> None:
    block = json.loads(VECTORS.read_text())["processbench.first_error_f1"]
    labels = []
    for label, scores in zip(
        block["inputs"]["first_error_label"], block["inputs"]["step_scores"], strict=True
    ):
        task = ChainCalc(operations=(len(scores), len(scores)))
        problem = task.problems(0, 1, "train")[0]
        start, operations = chain_of(problem)
        numbers = oracle(start, operations)
        if label >= 0:
            false = (numbers[label] + 1) % 100
            numbers[label:] = [false, *oracle(false, operations[label + 1 :])]
        response = "".join(f"{number:02};" for number in numbers)
        found = task.first_error(problem, response)
        labels.append(-1 if found is None else found)
    assert labels == block["inputs"]["first_error_label"]
