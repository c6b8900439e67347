"""Files of labelled problems, good and bad."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prm.errors import InvalidInput
from search.evaluation.problems import read_problems
from training.tasks import arithmetic
from training.tasks.expressions import parse, value

GOOD = '{"problem": "2+2", "answer": "4", "source": "made up"}\n'


def test_a_problem_or_a_chat_with_its_answer_and_the_first_so_many(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    file = tmp_path / "problems.jsonl"
    file.write_text(GOOD + "\n" + json.dumps({"messages": chat, "answer": "2"}) + "\n" + GOOD)
    first, second = read_problems(file, limit=2)
    assert (first.question, first.answer) == ({"problem": "2+2"}, "4")
    assert list(second.question) == ["messages"]
    assert second.where == f"{file}, line 3"
    assert len(read_problems(file)) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"problem": "2+2"}', "answer: Field required"),
        ('{"problem": "2+2", "answer": 4}', "answer: Input should be a valid string"),
        ('{"answer": "4"}', "give either problem or messages"),
        ('{"problem": "", "answer": "4"}', "problem: String should have at least 1"),
        ("2+2 = 4", "Invalid JSON"),
        ("[1]", "Input should be an object"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(GOOD + line + "\n")
    with pytest.raises(InvalidInput) as caught:
        read_problems(file)
    assert f"{file}, line 2: " in str(caught.value)
    assert told in str(caught.value)


def test_an_empty_file_and_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_problems(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match="holds no problem"):
        read_problems(tmp_path / "empty.jsonl")


def test_the_demonstration_gives_problems_of_the_split_that_was_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.demonstration.problems", "--count", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    file = tmp_path / "problems.jsonl"
    file.write_text(done.stdout)
    found = read_problems(file)
    texts = [str(problem.question["problem"]) for problem in found]
    assert len(set(texts)) == 30
    for text, problem in zip(texts, found, strict=True):
        tree = parse(text.removeprefix("Evaluate "))
        assert arithmetic.split_of(tree) == "test"
        assert str(value(tree)) == problem.answer
    # What a demonstration's own evaluation looks at, with its seed.
    assert texts == [problem.text for problem in arithmetic.problems(1, 30, "test")]
