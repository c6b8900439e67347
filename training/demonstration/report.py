"""The figures as text: written by the run itself, so that no number is copied by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVALUATION, README = "evaluation.json", "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_ABOUT = """\
# The demonstration models

`rung-arith-policy` writes solutions to integer expressions, one operation per step, with the
systematic slips of a pupil: about half of the additions with a carry lose it, half of the
subtractions with a borrow take the smaller digit from the larger, half of the products of 7 are one
row too high in the table. `rung-arith-prm` is an implicit process reward model of it, trained on
nothing but whether the final answers were right. Both are Qwen2 models over bytes with 0.82 million
parameters, trained from scratch by one command on a CPU. They show that the machinery works, and
are of no other use. How they were made, and what the figures do and do not say, is in
[docs/demonstration-models.md](../docs/demonstration-models.md).

Weights and data are made by the program in this repository and carry its licence (Apache-2.0).

"""


def write_report(out: Path, evaluation: Mapping[str, Any]) -> None:
    """Write `evaluation.json` and `README.md` beside the models."""
    text = json.dumps(evaluation, indent=2) + "\n"
    (out / EVALUATION).write_text(text, encoding="utf-8")
    (out / README).write_text(_ABOUT + figures(evaluation) + "\n", encoding="utf-8")


def insert_figures(page: str, evaluation: Mapping[str, Any]) -> str:
    """The page with what stands between its two markers replaced by the figures."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{figures(evaluation)}\n{END}{after}"


def figures(evaluation: Mapping[str, Any]) -> str:
    """The run and its two tables, in Markdown."""
    settings, rollouts = evaluation["settings"], evaluation["rollouts"]
    chosen = evaluation["chosen_on_validation"]
    return "\n".join(
        [
            f"`{evaluation['command']}`: seed {settings['seed']}, {settings['threads']} CPU "
            f"threads, {evaluation['minutes']} minutes ({evaluation['cpu_minutes']} CPU minutes), "
            f"torch {evaluation['torch']}.",
            "",
            f"{rollouts['problems']} test problems, {rollouts['per_problem']} samples each at "
            "temperature 1; percentages with 95 % bootstrap intervals over problems.",
            "",
            "| answers | % right | 95 % interval |",
            "| --- | ---: | --- |",
            *(_row(name, row) for name, row in evaluation["answers"].items()),
            "",
            f"First wrong step, with the threshold {chosen['threshold']:.3f} on the "
            f"{_VALUES[chosen['step_value']]}, fitted on validation problems "
            f"(F1 {100 * chosen['f1']:.1f} there):",
            "",
            "| scorer | erroneous solutions | right ones | F1 | 95 % interval of F1 |",
            "| --- | ---: | ---: | ---: | --- |",
            *(_step_row(name, row) for name, row in evaluation["steps"].items()),
            "",
            f"{rollouts['wrong_answer']} of the {rollouts['problems'] * rollouts['per_problem']} "
            f"responses have a wrong answer; {rollouts['with_a_wrong_step']} have a wrong step, "
            f"{rollouts['right_answer_with_a_wrong_step']} of them with a right answer all the "
            "same.",
        ]
    )


_VALUES = {"single": "score of the single step", "accumulative": "score of the prefix so far"}


def _row(name: str, row: Mapping[str, float]) -> str:
    return f"| {name} | {_percent(row['mean'])} | {_interval(row)} |"


def _step_row(name: str, row: Mapping[str, Mapping[str, float]]) -> str:
    means = " | ".join(_percent(row[column]["mean"]) for column in ("erroneous", "correct", "f1"))
    return f"| {name} | {means} | {_interval(row['f1'])} |"


def _interval(row: Mapping[str, float]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
