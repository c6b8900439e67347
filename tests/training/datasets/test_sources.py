"""Data sets as a job names them: loaded, filtered and mixed, with every row accounted for."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from prm.errors import InvalidInput
from training.datasets import SourceSettings, load_mixture

GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k/train.jsonl"
MATH = Path(__file__).parents[4] / "shared/data/math/math_test_minus_math500.jsonl"


def file(path: Path, name: str, count: int) -> Path:
    rows = [
        {"problem": f"{name}{n}", "answer": "1" if n else None, "level": n, "pass_rate": n / 10}
        for n in range(count)
    ]
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / name


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    settings = SourceSettings(
        path=file(tmp_path, "a.jsonl", 10), missing="drop", levels=(2, 8), pass_rates=(0.3, 0.6)
    )
    loaded = load_mixture([settings], seed=0)
    counts = loaded.counts["a.jsonl"]
    assert counts == {
        "missing": 1, "duplicates": 0, "kept": 4,
        "level_below": 1, "level_above": 1, "level_unknown": 0,
        "pass_rate_below": 1, "pass_rate_above": 2, "pass_rate_unknown": 0,
    }  # fmt: skip
    texts = {problem.text for problem in loaded.mixture.take(0, 4)}
    assert texts == {f"a.jsonl{n}" for n in (3, 4, 5, 6)}


def test_a_filter_that_keeps_nothing_names_its_source(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", 4)
    settings = SourceSettings(path=path, name="easy", missing="drop", levels=(7, 9))
    with pytest.raises(InvalidInput, match=r"source 'easy': none of 3 problems has a level"):
        load_mixture([settings], seed=0)
    with pytest.raises(ValidationError, match=r"write \[2, 5\]"):
        SourceSettings(path=path, levels=(5, 2))
    with pytest.raises(ValidationError, match="greater than 0"):
        SourceSettings(path=path, weight=0)


@pytest.mark.skipif(not (GSM8K.exists() and MATH.exists()), reason="needs ../shared/data")
def test_public_data_are_mixed_by_weight() -> None:
    loaded = load_mixture(
        [
            SourceSettings(path=GSM8K, name="gsm8k", weight=3),
            SourceSettings(path=MATH, name="math", levels=(1, 3)),
        ],
        seed=1,
    )
    taken = Counter(problem.level is None for problem in loaded.mixture.take(0, 400))
    assert taken == {True: 300, False: 100}
    assert all(1 <= (problem.level or 1) <= 3 for problem in loaded.mixture.take(0, 400))
