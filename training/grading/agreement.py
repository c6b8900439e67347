"""`python -m training.grading.agreement FILE`: does our grading agree with that of others?

FILE is JSONL of `{"gold", "pred", "expected", "source", "conflict", "tags", "params", "context"}`,
taken from other graders' own tests. A row is judged under the settings of its source, which the
last three name: precision, order, choices. Rows that contradict each other (`conflict`) are told
apart and not counted.
"""

import asyncio
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.answers import Extraction, MathAnswers, MathRules, Outcome, extract_answer
from search.answers.pool import WorkerPool

# A text that states an answer, and not an answer alone.
_IS_TEXT = re.compile(
    r"nswer|\$|\\\(|\\\[|boxed|(?:[^\W\d_]{2,}[ '’]){3}|[\u3040-\u9fff]{2}|.{41}", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One row: what was read out of both texts, and whether its source agrees."""

    row: dict[str, Any]
    gold: str
    answer: str
    outcome: Outcome

    @property
    def agrees(self) -> bool:
        """Undecided agrees with nobody who says that they are equal."""
        return (self.outcome == "equal") is bool(self.row["expected"])


async def judge(rows: Iterable[dict[str, Any]]) -> list[Judgement]:
    """Every row, one after another, in one pool of workers."""
    pool = WorkerPool()
    try:
        return [await _judge_one(row, pool) for row in rows]
    finally:
        await pool.aclose()


def rules_of(row: dict[str, Any]) -> MathRules:
    """The comparison that the row's source tests."""
    params = row.get("params") or {}
    precision = re.search(r"precision=(\d+)", row["context"])
    return MathRules(
        float_rounding=int(params.get("precision") or (precision[1] if precision else 6)),
        strict=params.get("strict") != "False",
        relations_as_sets=params.get("allow_set_relation_comp") == "True",
        # Its grader compares normalised strings, and its tests say that order matters.
        ordered=row["source"].startswith("hendrycks/math"),
    )


def answer_of(text: str, row: dict[str, Any]) -> str:
    """The text's answer, or the text itself where it is an answer already."""
    if "NativeLetters" in row["context"]:
        return extract_answer(text, Extraction(choices="ABCD")) or text
    if "latex-numeric" in row["tags"] or not _IS_TEXT.search(text):
        return text
    return extract_answer(text, Extraction(last_number=True)) or text


def table(judgements: Iterable[Judgement]) -> str:
    """Agreement by source, in Markdown."""
    rows: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        rows[judgement.row["source"].split(":")[0]].append(judgement)
        rows["all"].append(judgement)
    lines = ["| source | rows | agree | share | undecided |", "| --- | ---: | ---: | ---: | ---: |"]
    for source, members in sorted(rows.items(), key=lambda item: (item[0] == "all", item[0])):
        agree = sum(member.agrees for member in members)
        undecided = Counter(member.outcome for member in members)["undecided"]
        share = f"{100 * agree / len(members):.1f} %"
        lines.append(f"| {source} | {len(members)} | {agree} | {share} | {undecided} |")
    return "\n".join(lines)


def main(file: Path) -> None:
    """Print the table, and each row that is judged otherwise."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    judgements = asyncio.run(judge(row for row in rows if not row["conflict"]))
    print(table(judgements))
    for judgement in judgements:
        if not judgement.agrees:
            expected = "equal" if judgement.row["expected"] else "different"
            print(f"\n{judgement.row['test']}: {judgement.outcome}, expected {expected}")
            print(f"  {judgement.gold[:120]!r}\n  {judgement.answer[:120]!r}")


async def _judge_one(row: dict[str, Any], pool: WorkerPool) -> Judgement:
    answers = MathAnswers(rules_of(row), pool=pool)
    gold, answer = answer_of(row["gold"], row), answer_of(row["pred"], row)
    outcome = await answers.is_equal(gold, answer)
    return Judgement(row=row, gold=gold, answer=answer, outcome=outcome)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
