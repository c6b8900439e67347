"""The implicit family's arithmetic against published numbers, and its token positions."""

import unicodedata
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import sigmoid
from prm.families.implicit import SPEC, ImplicitFamily, step_values, token_rewards
from prm.registry import load_version
from prm.steps import join_steps
from prm.types import Trajectory
from tests.factories import PRM, user

# arXiv 2412.01981 Eq. 3 on six tokens in three steps, β = 0.05, computed in float64.
LOGP = [-0.2231, -1.204, -0.3567, -2.3026, -0.6931, -0.1054]
LOGP_REF = [-0.5108, -1.0217, -0.4155, -1.6094, -1.273, -0.2877]
TOKEN_REWARDS = [0.014385, -0.009115, 0.00294, -0.03466, 0.028995, 0.009115]
STEP_REWARDS = [0.00527, -0.03172, 0.03811]
STEP_Q = [0.00527, -0.02645, 0.01166]


def test_token_step_and_prefix_values_match_the_worked_numbers() -> None:
    rewards = token_rewards(LOGP, LOGP_REF, beta=0.05)
    steps = step_values(rewards, [2, 4, 6])
    assert rewards == pytest.approx(TOKEN_REWARDS, abs=1e-9)
    assert steps == pytest.approx(STEP_REWARDS, abs=1e-9)
    assert list(accumulate(steps)) == pytest.approx(STEP_Q, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.data())
def test_step_values_add_up_to_the_tokens_before_the_last_end(
    rewards: list[float], data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, len(rewards)), min_size=1)))
    assert sum(step_values(rewards, ends)) == pytest.approx(sum(rewards[: ends[-1]]))


@pytest.mark.parametrize("value", [-800.0, -1.0, 0.0, 1.0, 800.0])
def test_sigmoid_has_no_overflow_and_is_symmetric(value: float) -> None:
    assert 0.0 <= sigmoid(value) <= 1.0
    assert sigmoid(value) + sigmoid(-value) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def family(tiny_models: Path) -> ImplicitFamily:
    version = load_version(tiny_models / PRM / "1")
    return ImplicitFamily(version, SPEC.recipe_of(version), ChatTokenizer(version.folder))


def trajectory(steps: list[str]) -> Trajectory:
    response, placed = join_steps(steps, "\n")
    return Trajectory(messages=user("1+1"), response=response, steps=placed)


@given(st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5))
def test_a_step_ends_at_its_last_token(family: ImplicitFamily, steps: list[str]) -> None:
    steps = [unicodedata.normalize("NFC", step) for step in steps]
    encoded = family.encode(trajectory(steps))
    # One token per byte of UTF-8, so the ends can be counted by hand.
    ends = [len("\n".join(steps[: k + 1]).encode()) for k in range(len(steps))]
    assert list(encoded.step_values) == ends
    assert len(encoded.char_offsets) == len(encoded.ids) - encoded.first


def test_a_control_token_in_a_step_stays_text(family: ImplicitFamily) -> None:
    encoded = family.encode(trajectory(["<|end|>"]))
    assert len(encoded.ids) - encoded.first == len("<|end|>")


def test_a_control_token_in_the_problem_is_refused(family: ImplicitFamily) -> None:
    with pytest.raises(InvalidInput, match=r"control token '<\|end\|>' at character 1"):
        family.encode(
            Trajectory(messages=user("a<|end|>"), response="b", steps=trajectory(["b"]).steps)
        )


def test_an_item_longer_than_the_context_names_both_lengths(family: ImplicitFamily) -> None:
    with pytest.raises(InvalidInput, match=r"306 tokens long, .* reads at most 256"):
        family.encode(trajectory(["x" * 300]))
