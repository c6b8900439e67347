"""A judge's figures, against three problems of which everything is known."""

import pytest

from training.data import Example
from training.experiments.ranking import auc_within, best_of_n, weighted_vote
from training.rollout_batch import Written
from training.tasks.chain_calc import ChainCalc
from training.types import Problem

TASK = ChainCalc(operations=(1, 1))
PROBLEM = Problem(text="10+05=", answer="15")


def written(text: str) -> Written:
    return Written(
        problem=PROBLEM,
        example=Example(ids=(0, 0), first=1),
        text=text,
        logprobs=(0.0,),
        policy_step=0,
        is_cut=False,
        reward=TASK.reward(PROBLEM, text),
    )


MIXED = [written(text) for text in ("16;", "15;", "16;", "15;15;")]
WRONG = [written(text) for text in ("16;", "17;")]


def test_the_best_is_taken_and_of_equals_the_first() -> None:
    assert best_of_n([MIXED], [[0.1, 0.9, 0.2, 0.3]]) == 1
    assert best_of_n([MIXED], [[0.9, 0.9, 0.2, 0.3]]) == 0
    assert best_of_n([MIXED, WRONG], [[0.0, 1.0, 0.0, 0.0], [1.0, 2.0]]) == 0.5


def test_a_vote_adds_up_what_gives_the_same_answer() -> None:
    # Twice e⁰ against e^.6 and e^.8.
    assert weighted_vote([MIXED[:3]], [[0.0, 0.6, 0.0]], TASK) == 0
    assert weighted_vote([MIXED[:3]], [[0.0, 0.8, 0.0]], TASK) == 1


def test_the_best_response_of_the_winning_answer_counts() -> None:
    # "15;15;" gives the right answer in a wrong format.
    assert weighted_vote([MIXED], [[0.0, 0.5, 0.0, 0.1]], TASK) == 1
    assert weighted_vote([MIXED], [[0.0, 0.1, 0.0, 0.5]], TASK) == 0


def test_a_response_without_an_answer_has_no_vote() -> None:
    silent = written("nothing")
    assert weighted_vote([[silent, silent, MIXED[1]]], [[9.0, 9.0, 1.0]], TASK) == 1
    assert weighted_vote([[silent]], [[9.0]], TASK) == 0


def test_pairs_are_of_one_problem_and_a_tie_is_half() -> None:
    # 15 (.5) against .1, .5 and .9: one win, one tie, one loss.
    assert auc_within([MIXED], [[0.1, 0.5, 0.5, 0.9]]) == pytest.approx(0.5)
    # Easy problems do not count for a judge that knows them to be easy.
    assert auc_within([[MIXED[1]] * 2, WRONG], [[0.9, 0.9], [0.1, 0.1]]) == 0.5
    assert auc_within([[MIXED[1], MIXED[0]], WRONG], [[0.9, 0.1], [0.1, 0.2]]) == 1
