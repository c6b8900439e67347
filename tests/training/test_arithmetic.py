"""The task's labels are exact: for program-made solutions, corrupted ones, and any other text."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.answers import extract_answer
from training.tasks.arithmetic import (
    MAX_VALUE,
    answer_line,
    answer_of,
    expression_of,
    first_error,
    is_correct,
    problems,
    split_of,
)
from training.tasks.base import Split
from training.tasks.expressions import (
    MalformedExpression,
    Operation,
    Tree,
    apply,
    parse,
    render,
    value,
)
from training.tasks.rewriting import normal_form
from training.tasks.slips import (
    SLIPS,
    dropped_carry,
    seven_row_off,
    smaller_from_larger,
    write_solution,
)
from training.types import Problem

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

trees: st.SearchStrategy[Tree] = st.recursive(
    st.integers(0, 99),
    lambda inner: st.builds(Operation, st.sampled_from(["+", "-", "*"]), inner, inner),
    max_leaves=12,
)


def problem_of(expression: str) -> Problem:
    return Problem(text=f"Evaluate {expression}", answer=str(value(parse(expression))))


@given(trees)
def test_rendering_and_parsing_give_the_same_tree(tree: Tree) -> None:
    assert parse(render(tree)) == tree


@given(trees)
def test_values_are_pythons(tree: Tree) -> None:
    assert value(tree) == eval(render(tree))


@pytest.mark.parametrize(
    "text",
    ["", "3+", "+3", "3 4", "(3", "3)", "()", "3/4", "3**4", "--3", "x", "³", "٣", "1_0", "9" * 13,
     "(" * 41 + "1" + ")" * 41, "1+" * 300 + "1"],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(MalformedExpression):
        parse(text)


@given(trees)
def test_the_order_of_terms_and_factors_does_not_matter_to_the_normal_form(tree: Tree) -> None:
    assert normal_form(tree) == normal_form(_mirrored(tree))


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_problem_up_to_order(seed: int) -> None:
    forms = {
        split: {normal_form(expression_of(p)) for p in problems(seed, 300, split)}
        for split in SPLITS
    }
    assert not forms["train"] & forms["validation"]
    assert not forms["train"] & forms["test"]
    assert not forms["validation"] & forms["test"]


def test_the_split_is_a_property_of_the_problem() -> None:
    for split in SPLITS:
        for problem in problems(3, 50, split):
            tree = expression_of(problem)
            assert split_of(tree) == split_of(_mirrored(tree)) == split


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert problems(0, 20, "train") == problems(0, 20, "train")
    assert problems(0, 20, "train") != problems(1, 20, "train")


def test_too_many_problems_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="of 200 problems"):
        problems(0, 200, "test", operations=(0, 0))


@given(st.integers(0, 10_000), st.sampled_from(SPLITS))
@settings(max_examples=60, deadline=None)
def test_a_clean_solution_has_no_error_and_the_right_answer(seed: int, split: Split) -> None:
    (problem,) = problems(seed, 1, split)
    steps = write_solution(problem, random.Random(seed), slip_probability=0.0)
    assert first_error(problem, steps) is None
    assert is_correct(problem, steps)
    assert all(0 <= int(step.split("=")[1]) <= MAX_VALUE for step in steps[:-1])


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=100, deadline=None)
def test_a_single_corruption_is_located_exactly(seed: int, data: st.DataObject) -> None:
    (problem,) = problems(seed, 1, "train")
    steps = write_solution(problem, random.Random(seed), slip_probability=0.0)
    index = data.draw(st.integers(0, len(steps) - 1))
    head, mark, result = steps[index].rpartition("=" if "=" in steps[index] else " ")
    wrong = int(result) + data.draw(st.integers(-9, 9).filter(bool))
    steps[index] = f"{head}{mark}{wrong}"
    assert first_error(problem, steps) == index


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_the_first_slip_is_the_first_error(seed: int) -> None:
    (problem,) = problems(seed, 1, "train")
    steps = write_solution(problem, random.Random(seed), slip_probability=0.5)
    assert first_error(problem, steps) == next(
        (index for index, step in enumerate(steps[:-1]) if not _is_true(step)), None
    )


@given(trees, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_any_order_of_true_reductions_is_right(tree: Tree, rng: random.Random) -> None:
    problem = Problem(text=f"Evaluate {render(tree)}", answer=str(value(tree)))
    steps = []
    while isinstance(tree, Operation):
        tree, step = _reduce_anywhere(tree, rng)
        steps.append(step)
    assert first_error(problem, [*steps, f"Answer: {tree}"]) is None


@pytest.mark.parametrize(
    "steps",
    [
        ["3 + 4 = 7", " 7 × 2 = 14.", "14 − 5 = 9", "The answer is 9."],
        ["(3+4)*2-5=7*2-5", "7*2-5=14-5", "14-5=9", "Answer: 9"],
        ["(3+4)*2-5=7*2-5=14-5=9", "Answer: 9"],
        ["First, $3+4=7$.", r"Then \(7 \times 2 = 14\), so 14-5=9.", "**Answer: 9**"],
        ["4+3=7", "2*7=14", "-5+14=9", "ANSWER 9"],
        ["I shall start.", "3+4=7", "This was easy.", "7*2=14", "14-5=9"],
        ["(3+4)*2=14", "Answer: 9"],
        ["Answer: 9"],
        ["3=3", "3=1+2", "1+2+4=7"],
    ],
)
def test_right_steps_in_many_spellings(steps: list[str]) -> None:
    assert first_error(problem_of("(3+4)*2-5"), steps) is None


@pytest.mark.parametrize(
    ("expression", "steps", "wrong"),
    [
        ("(3+4)*2-5", ["3+4=8", "8*2=16", "16-5=11", "Answer: 11"], 0),
        ("(3+4)*2-5", ["3+4=7", "7*2=14", "14-5=9", "Answer: 8"], 3),
        ("(3+4)*2-5", ["4*2=8"], 0),  # true, but no part of the expression
        ("(3+4)*2-5", ["3+4=7", "3+4=7"], 1),  # the part is gone
        ("(3+4)*2-5", ["3+4=7=8"], 0),
        ("(3+4)*2-5", ["3+4=7", "7*2="], 1),
        ("(3+4)*2-5", ["3+4=7", "x=7*2"], 1),
        ("(3+4)*2-5", ["3+4==7"], 0),
        ("(3+4)*2-5", ["3+4=7 and then 7*2=15"], 0),
        ("10-3+2", ["3+2=5"], 0),
        ("10-(3+2)", ["10-3=7", "3+2=5"], 1),
        ("2*3*4", ["2*4=8", "8*3=25"], 1),
    ],
)
def test_wrong_steps_are_found(expression: str, steps: list[str], wrong: int) -> None:
    assert first_error(problem_of(expression), steps) == wrong


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("10-3-2", ["3+2=5", "10-5=5"]),
        ("2-7+10", ["2-7=-5", "-5+10=5"]),
        ("10-(3-8)*2", ["3-8=-5", "-5*2=-10", "10-(-10)=20"]),
        ("4-(5-5)", ["5-5=0", "4-0=4"]),
    ],
)
def test_a_right_step_need_only_keep_the_value(expression: str, steps: list[str]) -> None:
    if "(-10)" in steps[-1]:
        steps = [*steps[:-1], "10--10=20"]
    assert first_error(problem_of(expression), steps) is None


@given(st.lists(st.text(max_size=200), max_size=5))
def test_any_text_gets_labels(steps: list[str]) -> None:
    problem = problem_of("(3+4)*2-5")
    error = first_error(problem, steps)
    assert error is None or 0 <= error < len(steps)
    is_correct(problem, steps)


@given(st.lists(st.text(alphabet="0123456789+-*/=()×. \nAnswer:", max_size=80), max_size=6))
@settings(max_examples=200)
def test_text_that_looks_like_arithmetic_gets_labels(steps: list[str]) -> None:
    error = first_error(problem_of("(3+4)*2-5"), steps)
    assert error is None or 0 <= error < len(steps)


@pytest.mark.parametrize(
    "step",
    ["9" * 100_000 + "=1", "(" * 100_000 + "=1", "1=" * 50_000, "1+" * 50_000 + "=1", "=" * 100_000,
     "Answer: " + "9" * 100_000, "- " * 50_000 + "=", "answer " * 50_000],
)  # fmt: skip
def test_hostile_text_costs_no_time(step: str) -> None:
    started = time.perf_counter()
    first_error(problem_of("(3+4)*2-5"), [step, "3+4=7", step])
    assert time.perf_counter() - started < 1.0


def test_an_expression_cannot_be_blown_up_step_by_step() -> None:
    steps = ["3=3+0+0+0+0+0+0+0+0+0+0+0+0+0+0+0+0+0"] * 1000
    assert first_error(problem_of("(3+4)*2-5"), steps) is not None


@pytest.mark.parametrize(
    ("response", "answer"),
    [("Answer: 9", "9"), ("answer is -9.", "-9"), ("Answer: 1\nAnswer: 007", "7"), ("9", None)],
)
def test_the_last_answer_line_counts(response: str, answer: str | None) -> None:
    assert answer_of(response) == answer


@pytest.mark.parametrize("result", [0, 7, 42, -3])
def test_a_search_reads_the_same_answer(result: int) -> None:
    response = f"3+4=7\n{answer_line(result)}"
    assert extract_answer(response) == answer_of(response) == str(result)


def test_each_slip_by_hand() -> None:
    assert dropped_carry(27, 15) == 32
    assert dropped_carry(21, 15) == 36
    assert smaller_from_larger(52, 37) == 25
    assert smaller_from_larger(57, 32) == 25
    assert seven_row_off(7, 6) == seven_row_off(6, 7) == 36
    assert seven_row_off(8, 6) == 48


def test_slips_are_systematic_and_about_as_frequent_as_asked() -> None:
    rng, slipped, prone = random.Random(0), 0, 0
    for problem in problems(0, 400, "train"):
        for step in write_solution(problem, rng, slip_probability=0.5)[:-1]:
            tree = parse(step.split("=")[0])
            assert isinstance(tree, Operation)
            operands = value(tree.left), value(tree.right)
            truth, slip = apply(tree.operator, *operands), SLIPS[tree.operator](*operands)
            result = int(step.split("=")[1])
            assert result in (truth, slip)
            prone += truth != slip
            slipped += result != truth
    assert 0.42 < slipped / prone < 0.55


def _is_true(step: str) -> bool:
    left, right = step.split("=")
    return value(parse(left)) == int(right)


def _mirrored(tree: Tree) -> Tree:
    if isinstance(tree, int) or tree.operator == "-":
        return tree
    return Operation(tree.operator, _mirrored(tree.right), _mirrored(tree.left))


def _reduce_anywhere(tree: Operation, rng: random.Random) -> tuple[Tree, str]:
    """Reduce one random operation over two numbers; the new tree and the step that says so."""
    if isinstance(tree.left, int) and isinstance(tree.right, int):
        result = apply(tree.operator, tree.left, tree.right)
        return result, f"{render(tree)}={result}"
    sides = [s for s in ("left", "right") if isinstance(getattr(tree, s), Operation)]
    side = rng.choice(sides)
    reduced, step = _reduce_anywhere(getattr(tree, side), rng)
    if side == "left":
        return Operation(tree.operator, reduced, tree.right), step
    return Operation(tree.operator, tree.left, reduced), step
