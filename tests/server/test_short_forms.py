"""Short forms follow from the table of strategies."""

from typing import get_args

import pytest

from prm.errors import InvalidInput
from search.strategies import Strategy
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from server.short_forms import WORDS, forms, strategy_of


def test_every_strategy_has_a_form() -> None:
    union, *_ = get_args(Strategy)
    types = {member.model_fields["type"].default for member in get_args(union)}
    assert {word.type for word in WORDS.values()} == types


@pytest.mark.parametrize(
    ("form", "strategy"),
    [
        ("best-of-16", BestOfN(n=16)),
        ("majority-7", BestOfN(n=7, selection="majority")),
        ("weighted-7", BestOfN(n=7, selection="weighted")),
        ("beam-16x4", Beam(n=16, width=4)),
        ("beam-8", Beam(n=8)),
        ("beam", Beam()),
    ],
)
def test_a_form_stands_for_a_strategy(form: str, strategy: Strategy) -> None:
    assert strategy_of(form, param="model") == strategy


@pytest.mark.parametrize(
    "text",
    ["", "best_of_n", "Beam-4", "beam-4x", "beam-4x2x1", "best-of-4x2", "-4", "beam--4", "beam-²",
     "magic-4", "beam-4 ", "beam_4", "9" * 50],
)  # fmt: skip
def test_what_is_no_form_stands_for_none(text: str) -> None:
    assert strategy_of(text, param="model") is None


@pytest.mark.parametrize("form", ["best-of-0", "beam-5x2", "beam-4x0"])
def test_numbers_that_do_not_fit_are_named(form: str) -> None:
    with pytest.raises(InvalidInput, match=f"model: '{form}'") as caught:
        strategy_of(form, param="model")
    assert caught.value.param == "model"


def test_errors_can_name_all_forms() -> None:
    assert {"best-of-N", "majority-N", "beam-NxWIDTH"} <= set(forms().split(", "))
