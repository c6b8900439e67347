"""Filters and mixtures: exact shares, one order, and positions that can be resumed."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.errors import InvalidInput
from training.datasets import MixPosition, Mixture, Source, by_level, by_pass_rate, pass_rates
from training.types import Problem
from training.verifiers import Outcome


def problems(name: str, count: int) -> list[Problem]:
    return [Problem(text=f"{name}{n}", answer=str(n), level=float(n)) for n in range(count)]


def mixture(seed: int = 0, weight: float = 3.0) -> Mixture:
    return Mixture(
        [
            Source(name="a", problems=problems("a", 5), weight=weight),
            Source(name="b", problems=problems("b", 3)),
        ],
        seed,
    )


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    count=st.integers(1, 300),
)
def test_each_source_has_its_share_and_goes_through_its_problems_in_passes(
    sizes: list[int], weights: list[float], seed: int, count: int
) -> None:
    sources = [
        Source(name=str(i), problems=problems(f"{i}:", size), weight=weights[i])
        for i, size in enumerate(sizes)
    ]
    taken = Mixture(sources, seed).take(0, count)
    for i, source in enumerate(sources):
        texts = [problem.text for problem in taken if problem.text.startswith(f"{i}:")]
        share = source.weight / sum(weights[: len(sizes)])
        assert abs(len(texts) - share * count) < len(sources)
        for start in range(0, len(texts), len(source.problems)):
            within = texts[start : start + len(source.problems)]
            assert len(set(within)) == len(within)


def test_the_order_is_the_seed_s_and_changes_between_passes() -> None:
    assert mixture(0).take(0, 60) == mixture(0).take(0, 60)
    assert mixture(0).take(0, 60) != mixture(1).take(0, 60)
    passes = [
        [p.text for p in mixture().take(0, 200) if p.text[0] == "a"][i : i + 5] for i in (0, 5)
    ]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


@given(cut=st.integers(0, 80), rest=st.integers(1, 40))
def test_resumed_is_uninterrupted(cut: int, rest: int) -> None:
    whole = mixture().take(0, cut + rest)
    saved = mixture().position(cut).model_dump_json()
    again = mixture()
    place = again.resume(MixPosition.model_validate_json(saved))
    assert again.take(place, rest) == whole[cut:]


def test_any_place_can_be_asked_for_in_any_order() -> None:
    one, other = mixture(), mixture()
    backwards = [other.at(place) for place in reversed(range(50))]
    assert backwards[::-1] == one.take(0, 50)


def test_a_position_of_other_data_is_refused() -> None:
    position = mixture().position(7)
    with pytest.raises(InvalidInput, match="of seed 0, and this mixture has 1"):
        mixture(1).resume(position)
    with pytest.raises(InvalidInput, match="a, b: other problems, or another weight"):
        mixture(weight=2.0).resume(position)
    changed = Mixture(
        [
            Source(name="a", problems=problems("a", 5), weight=3),
            Source(name="b", problems=problems("c", 3)),
        ],
        0,
    )
    with pytest.raises(InvalidInput, match=r"^b: other problems"):
        changed.resume(position)


def test_another_process_makes_the_same_order() -> None:
    code = (
        "from training.datasets import Mixture, Source\n"
        "from training.types import Problem\n"
        "ps = [Problem(text=str(n), answer='1') for n in range(9)]\n"
        "m = Mixture([Source(name='x', problems=ps)], 5)\n"
        "print(' '.join(p.text for p in m.take(0, 27)), m.position(3).fingerprints['x'])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "needs a source"),
        ([Source(name="a", problems=[])], "'a' holds no problem"),
        ([Source(name="a", problems=problems("a", 1), weight=0)], "has weight 0"),
        ([Source(name="a", problems=problems("a", 1), weight=float("nan"))], "has weight nan"),
        ([Source(name="a", problems=problems("a", 1))] * 2, "two sources have the name 'a'"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources: list[Source], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Mixture(sources, 0)


def test_pass_rates_are_means_of_what_was_graded() -> None:
    right, wrong, error = Outcome(reward=1.0), Outcome(reward=0.0), Outcome(error="x")
    assert pass_rates([[right, wrong, error], [error], [right] * 5 + [wrong] * 0, []]) == [
        0.5, None, 1.0, None,
    ]  # fmt: skip


def test_problems_that_teach_are_kept_and_the_others_counted() -> None:
    kept = by_pass_rate(
        problems("p", 7), [0.0, 0.2, 0.1 + 0.2 - 0.1, 0.8, 1.0, None, 0.5], (0.2, 0.8)
    )
    assert [problem.text for problem in kept.problems] == ["p1", "p2", "p3", "p6"]
    assert (kept.below, kept.above, kept.unknown) == (1, 1, 1)
    kept = by_level(problems("p", 6), (2, 3))
    assert ([p.text for p in kept.problems], kept.below, kept.above) == (["p2", "p3"], 2, 2)
    with pytest.raises(InvalidInput, match=r"none of 2 problems has a pass rate in .* widen"):
        by_pass_rate(problems("p", 2), [0.0, None], (0.2, 0.8))
    with pytest.raises(InvalidInput, match="the first is the least"):
        by_level(problems("p", 2), (3, 2))
