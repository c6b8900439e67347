"""Tests of programs, as public data sets hold them.

HumanEval         prompt, entry_point, test with check(candidate)
MBPP              test_list of asserts, test_setup_code
rLLM, LeetCode    tests.functional, Python that ends with a call of check
contests          tests.inputs and tests.outputs, or test_cases of input and output
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.datasets.leetcode import PREAMBLE, SETUP
from training.types import CodeTests


class BadTests(ValueError):
    """The tests of a row cannot be read; the message names the column and the remedy."""


def code_tests_of(values: Mapping[str, Any]) -> CodeTests | None:
    """The tests that a row holds; None for a row without any. Raises BadTests."""
    if "entry_point" in values and "test" in values:
        return _check_tests(values)
    if "test_list" in values:
        return CodeTests(
            asserts=_texts(values["test_list"], "test_list"),
            setup=_text(values.get("test_setup_code") or "", "test_setup_code"),
        )
    tests = values.get("tests", values.get("test_cases"))
    if tests is None:
        return None
    name = "tests" if "tests" in values else "test_cases"
    if isinstance(tests, Mapping):
        if "functional" in tests:
            functional = _text(tests["functional"], f"{name}.functional")
            return CodeTests(asserts=(functional,), preamble=PREAMBLE, setup=SETUP)
        return CodeTests(cases=_paired(tests, name))
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        return CodeTests(asserts=tuple(tests))
    if isinstance(tests, list) and all(isinstance(test, Mapping) for test in tests):
        given = [test.get("input") for test in tests]
        expected = [test.get("output") for test in tests]
        return CodeTests(cases=_paired({"inputs": given, "outputs": expected}, name))
    raise BadTests(
        f"{name}: neither a list of asserts, nor one of inputs and outputs; give "
        '["assert f(1) == 2"], or [{"input": "1\\n", "output": "2\\n"}]'
    )


def shown_tests(tests: CodeTests) -> str:
    """What a problem must show of its tests, or nobody could know the name of the function."""
    if tests.entry_point is not None or not tests.asserts or tests.preamble:
        return ""
    return "\n\nYour code should pass these tests:\n\n" + "\n".join(tests.asserts)


def _check_tests(values: Mapping[str, Any]) -> CodeTests:
    entry_point = _text(values["entry_point"], "entry_point")
    return CodeTests(
        asserts=(f"{_text(values['test'], 'test')}\ncheck({entry_point})",),
        preamble=_imports_of(_text(values.get("prompt") or "", "prompt")),
        prompt=_text(values.get("prompt") or "", "prompt"),
        entry_point=entry_point,
    )


def _imports_of(prompt: str) -> str:
    """A whole function may leave out what its prompt has imported already."""
    lines = (line for line in prompt.split("\n") if line.startswith(("import ", "from ")))
    return "\n".join(lines)


def _paired(tests: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    given = _texts(tests.get("inputs"), f"{name}.inputs")
    expected = _texts(tests.get("outputs"), f"{name}.outputs")
    if len(given) != len(expected):
        raise BadTests(
            f"{name}: {len(given)} inputs and {len(expected)} outputs; give an output for each"
        )
    return tuple(zip(given, expected, strict=True))


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadTests(f"{name}: a list of texts is wanted, with one at least")
    return tuple(_text(item, f"{name}[{index}]") for index, item in enumerate(value))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadTests(f"{name}: a text is wanted, and this is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
