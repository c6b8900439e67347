"""Our grading against what other graders' own tests expect."""

import json
from pathlib import Path

import pytest

from training.grading.agreement import answer_of, judge, rules_of, table

FILE = Path(__file__).parents[4] / "shared/data/grading/answer_equivalence_shared.jsonl"


def row(**values: object) -> dict[str, object]:
    return {"source": "x/y:t", "tags": [], "context": "", "params": None, **values}


def test_a_row_is_judged_under_its_source_s_settings() -> None:
    assert rules_of(row(params={"precision": "2"})).float_rounding == 2
    assert rules_of(row(context="f(precision=5)")).float_rounding == 5
    assert not rules_of(row(params={"strict": "False"})).strict
    assert rules_of(row(source="hendrycks/math:t")).ordered
    assert answer_of("it must be B", row(context="['NativeLetters']")) == "B"


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason="needs ../shared/data/grading")
async def test_97_percent_of_the_rows_without_conflict_agree() -> None:
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    judgements = await judge(row for row in rows if not row["conflict"])
    assert len(judgements) == 673
    agree = sum(judgement.agrees for judgement in judgements)
    assert agree >= 0.97 * len(judgements), table(judgements)
