"""The three tasks of running sums, against definitions that are written out and enumerated."""

import random
from itertools import product

import pytest

from training.tasks.long_chain import LongChain
from training.tasks.running_sum import RunningSum
from training.tasks.shared_prefix import SharedPrefix
from training.tasks.sums import right_share, write_sums
from training.types import Problem


def naive_first_error(digits: list[int], written: str) -> int | None:
    """By the words of the definition: each sum against the digit that was written before it."""
    before = 0
    for index, digit in enumerate(digits):
        if index == len(written):
            return max(0, index - 1) if written else 0
        if not written[index].isdigit() or int(written[index]) != (before + digit) % 10:
            return index
        before = int(written[index])
    return len(digits) - 1 if len(written) > len(digits) else None


def test_every_response_to_a_problem_gets_the_labels_of_the_definition() -> None:
    task, problem, digits = RunningSum(digits=(3, 3)), Problem(text="385=", answer="6"), [3, 8, 5]
    right = 0
    for length in range(5):
        for letters in product("0136=", repeat=length):
            response = "".join(letters)
            assert task.first_error(problem, response) == naive_first_error(digits, response)
            is_correct = len(response) == 3 and response[-1] == "6"
            assert task.is_correct(problem, response) == is_correct
            right += is_correct
    assert right == 25
    assert (task.first_error(problem, "316"), task.first_error(problem, "306")) == (None, 1)


def test_only_the_last_sum_decides_and_two_errors_may_cancel() -> None:
    task, problem = RunningSum(digits=(3, 3)), Problem(text="385=", answer="6")
    rollout = task.label(problem, "416")
    assert (rollout.is_correct, rollout.first_error) == (True, 0)


def test_a_slip_befalls_digits_from_5_on_and_is_carried() -> None:
    assert write_sums([4, 5, 9, 1], random.Random(0), 1.0) == [4, 0, 0, 1]
    assert write_sums([4, 5, 9, 1], random.Random(0), 0.0) == [4, 9, 8, 9]
    assert write_sums([0, 1, 2, 3, 4] * 4, random.Random(0), 1.0)[-1] == 0


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_chance_of_a_right_sum_is_that_of_every_way_to_slip(share: float) -> None:
    digits = [5, 1, 6, 7, 8, 9, 5, 6, 0, 7, 8, 9, 5]
    slippery = sum(digit >= 5 for digit in digits)
    enumerated = 0.0
    for slips in product((0, 1), repeat=slippery):
        if sum(slips) % 10 == 0:
            count = sum(slips)
            enumerated += share**count * (1 - share) ** (slippery - count)
    assert right_share(digits, share) == pytest.approx(enumerated, abs=1e-12)


def test_first_slip_is_first_error_and_the_accuracy_is_the_expected_one() -> None:
    task = RunningSum()
    rng, right, expected, count = random.Random(0), 0, 0.0, 4000
    for problem in task.problems(0, count, "train"):
        response = task.solution(problem, rng)
        right += task.is_correct(problem, response)
        expected += right_share([int(d) for d in problem.text[:-1]], task.slip_probability)
        clean = task.expert(problem, rng)
        # An earlier false sum makes every later one differ until ten of them cancel.
        first = next(
            (i for i, (a, b) in enumerate(zip(response, clean, strict=True)) if a != b), None
        )
        assert task.first_error(problem, response) == first
    assert right / count == pytest.approx(expected / count, abs=0.03)
    # The pilot's policy, which imitates these, had .18.
    assert 0.15 < expected / count < 0.3


def test_long_chains_are_seldom_right_and_as_often_as_promised() -> None:
    task = LongChain()
    problems = task.problems(0, 1500, "train")
    rng = random.Random(0)
    right = sum(task.is_correct(p, task.solution(p, rng)) for p in problems) / len(problems)
    expected = sum(map(task.expected_accuracy, problems)) / len(problems)
    assert right == pytest.approx(expected, abs=0.03)
    assert expected < 0.12


def test_style_says_nothing_of_the_sum_and_is_no_step_of_its_own() -> None:
    task = LongChain(decisions=(2, 2), style_tokens=2)
    problem = Problem(text="38=", answer="1")
    cases = {
        "ab3cd1": (True, None),
        "zz3zz1": (True, None),
        "ab4cd2": (False, 0),
        "ab3cd2": (False, 1),
        "ab4cd1": (True, 0),
        "a33cd1": (False, 0),
        "ab3": (False, 0),
        "ab3cd1ef1": (False, 1),
        "ab3cd": (False, 1),
        "": (False, 0),
    }
    for response, (is_correct, first_error) in cases.items():
        rollout = task.label(problem, response)
        assert (rollout.is_correct, rollout.first_error) == (is_correct, first_error), response
    assert task.steps_of("ab3cd") == ("ab3", "cd")


def test_every_short_response_to_a_shared_prefix_problem_has_its_reward() -> None:
    task, problem = SharedPrefix(digits=(3, 3)), Problem(text="385=", answer="6")
    rewards: dict[float, list[str]] = {1.0: [], 0.7: []}
    for length in range(6):
        for letters in product("tq136", repeat=length):
            response = "".join(letters)
            if reward := task.reward(problem, response):
                rewards[reward].append(response)
            assert task.is_correct(problem, response) == (reward == 1.0)
    assert rewards[0.7] == ["q1"]
    # Only the last sum is checked; a choice never is one.
    assert all(r[0] == "t" and r[-1] == "6" and len(r) == 4 for r in rewards[1.0])
    assert {"t316", "t136"} <= set(rewards[1.0])


def test_first_errors_behind_either_choice() -> None:
    task, problem = SharedPrefix(digits=(3, 3)), Problem(text="385=", answer="6")
    cases = {"t316": None, "t416": 1, "t326": 2, "t31": 2, "t3166": 3, "q1": None, "q2": 1,
             "q": 0, "q11": 1, "": 0, "316": 0}  # fmt: skip
    assert {r: task.first_error(problem, r) for r in cases} == cases


def test_the_good_branch_is_rare_and_lies_behind_the_worse_prefix() -> None:
    task = SharedPrefix()
    rng = random.Random(0)
    rewards: dict[str, list[float]] = {"t": [], "q": []}
    for problem in task.problems(0, 2000, "train"):
        response = task.solution(problem, rng)
        rewards[response[0]].append(task.reward(problem, response))
    assert len(rewards["t"]) / 2000 == pytest.approx(0.8, abs=0.03)
    assert set(rewards["q"]) == {0.7}
    assert max(rewards["t"]) == 1.0
    mean = sum(rewards["t"]) / len(rewards["t"])
    expected = [task.expected_rewards(p)[0] for p in task.problems(0, 2000, "train")]
    assert mean == pytest.approx(sum(expected) / 2000, abs=0.02)
    assert mean < 0.1


def test_groups_share_their_prefixes() -> None:
    task, rng = SharedPrefix(), random.Random(0)
    shared = 0
    for problem in task.problems(0, 50, "train"):
        group = [task.solution(problem, rng) for _ in range(8)]
        shared += len({response[:2] for response in group}) < len(group)
    assert shared == 50
