"""Problems out of files: found columns, exact answers, and errors that name the line."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prm.errors import InvalidInput
from training.datasets import Columns, DatasetSettings, load_problems
from training.types import Problem

DATA = Path(__file__).parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_one(path: Path, row: Mapping[str, Any], **settings: Any) -> Problem:
    file = write(path / "one.jsonl", [row])
    (problem,) = load_problems(DatasetSettings(path=file, **settings)).problems
    return problem


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"problem": "2+2?", "answer": "4"}, "2+2?", "4"),
        ({"Question": "2+2?", "Answer": 4.0}, "2+2?", "4"),
        ({"question": "q", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}, "q", "1,072"),
        ({"problem": "q", "solution": r"so $\boxed{\frac{1}{2}}$."}, "q", r"\frac{1}{2}"),
        ({"Body": "Two birds.", "Question": "How many?", "Answer": 2.5}, "Two birds. How many?",
         "2.5"),
        ({"question": "q", "options": ["A)1", "B)2"], "correct": "B"}, "q\nA)1\nB)2", "B"),
        ({"prompt": [{"role": "user", "content": "q"}],
          "reward_model": {"ground_truth": "7"}}, "q", "7"),
        ({"question": "q", "answer": "1/2 (hour)"}, "q", "1/2"),
        ({"question": "q", "answer": "f(x) (odd)"}, "q", "f(x) (odd)"),
        ({"answer": " 4 ", "solution": "x", "text": "q"}, "q", "4"),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_names(
    tmp_path: Path, row: dict[str, Any], text: str, answer: str
) -> None:
    assert load_one(tmp_path, row) == Problem(text=text, answer=answer)


def test_named_columns_win_and_a_dot_goes_inside(tmp_path: Path) -> None:
    row = {"problem": "no", "info": {"q": "yes", "a": 3}, "answer": "no", "tests": "no"}
    columns = {"problem": "info.q", "answer": "info.a"}
    assert load_one(tmp_path, row, columns=columns) == Problem(text="yes", answer="3")


def test_levels_and_pass_rates_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "a", "answer": "1", "level": "Level 3", "pass_rate": 0.5},
        {"problem": "b", "answer": "1", "level": 4},
        {"problem": "c", "answer": "1", "level": "Level ?"},
    ]
    loaded = load_problems(DatasetSettings(path=write(tmp_path / "x.jsonl", rows)))
    assert [problem.level for problem in loaded.problems] == [3.0, 4.0, None]
    assert loaded.pass_rates == (0.5, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x.jsonl: holds no problem; a row is an object such as"),
        (b'{"problem": "a", "answer": "1"}\n{"problem": \xff}\n', r"line 2: byte 13 is 0xff"),
        (b'{"problem": "a", "answer": "1"}\n{"problem"\n', r"line 2: not JSON"),
        (b'["a"]\n', r"line 1: a row is a JSON object .* a list"),
        (b'{"q": "a", "answer": "1"}\n', r"line 1: no column holds the problem.*columns.problem"),
        (b'{"problem": "a"}\n', r"line 1: no column holds the answer.*columns.answer"),
        (b'{"problem": " ", "answer": "1"}\n', r"line 1: problem is empty"),
        (b'{"problem": 3, "answer": "1"}\n', r"line 1: problem: a text is wanted.*a int"),
        (b'{"problem": "a", "answer": ["1"]}\n', r"line 1: answer: a text or a number.*a list"),
        (b'{"problem": "a", "answer": true}\n', r"line 1: answer: a text or a number.*a bool"),
        (b'{"problem": "a", "answer": "1", "pass_rate": 3}\n', r"line 1: pass_rate: a share"),
        (b'{"problem": "a", "answer": null}\n', r"1 rows have no answer: .*line 1.*missing ="),
        (b'{"problem": "a", "tests": 3}\n', r"line 1: tests: neither a list of asserts"),
        (b'{"problem": "a", "tests": {"inputs": ["1"], "outputs": []}}\n', r"outputs: a list of"),
        (b'{"problem": "a", "tests": {"inputs": ["1", "2"], "outputs": ["1"]}}\n',
         r"line 1: tests: 2 inputs and 1 outputs"),
        (b'{"problem": "a", "test_list": [3]}\n', r"test_list\[0\]: a text is wanted.*a int"),
        (b'{"text": "a", "entry_point": null, "test": "x"}\n', r"entry_point: .* this is null"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        load_problems(DatasetSettings(path=path))
    assert str(path) in str(caught.value)
    assert caught.value.param is not None


def test_missing_answers_and_duplicate_ids_are_named_or_dropped_and_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "problem": "a", "answer": "1"},
        {"id": 2, "problem": "b", "answer": ""},
        {"id": 1, "problem": "c", "answer": "1"},
        {"id": 3, "problem": "d", "answer": "no #### "},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(InvalidInput, match=r"2 rows have no answer: .*line 2; .*line 4\. fill"):
        load_problems(DatasetSettings(path=path))
    with pytest.raises(InvalidInput, match=r"line 3 \(id '1', first in .*line 1\)"):
        load_problems(DatasetSettings(path=path, missing="drop"))
    loaded = load_problems(DatasetSettings(path=path, missing="drop", duplicates="drop"))
    assert [problem.text for problem in loaded.problems] == ["a"]
    assert [len(places) for places in loaded.dropped.values()] == [2, 1]


def test_many_missing_answers_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"problem": str(n), "answer": None} for n in range(25)])
    with pytest.raises(InvalidInput, match=r"25 rows .*line 10; and 15 more\."):
        load_problems(DatasetSettings(path=path))
    with pytest.raises(InvalidInput, match="holds no problem with an answer"):
        load_problems(DatasetSettings(path=path, missing="drop"))


def test_a_folder_is_read_as_the_hub_writes_it(tmp_path: Path) -> None:
    row = {"problem": "a", "answer": "1"}
    write(tmp_path / "data/train-00000-of-00002.jsonl", [row | {"problem": "first"}])
    write(tmp_path / "data/train-00001-of-00002.jsonl", [row | {"problem": "second"}])
    write(tmp_path / "data/test-00000-of-00001.jsonl", [row | {"problem": "held out"}])
    (tmp_path / "dataset_info.json").write_text("{}")
    loaded = load_problems(DatasetSettings(path=tmp_path))
    assert [problem.text for problem in loaded.problems] == ["first", "second"]
    loaded = load_problems(DatasetSettings(path=tmp_path, split="test"))
    assert [problem.text for problem in loaded.problems] == ["held out"]
    with pytest.raises(InvalidInput, match="no file is of the split 'dev' among data/test-0"):
        load_problems(DatasetSettings(path=tmp_path, split="dev"))


def test_other_files_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"problem": "a", "answer": "1"}, {"problem": "é", "answer": "2"}]
    expected = load_problems(DatasetSettings(path=write(tmp_path / "x.jsonl", rows))).problems
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write((tmp_path / "x.jsonl").read_bytes())
    for name in ("x.json", "x.jsonl.gz"):
        assert load_problems(DatasetSettings(path=tmp_path / name)).problems == expected
    (tmp_path / "y.json").write_text('{"problem": "a"}')
    with pytest.raises(InvalidInput, match=r"a .json file holds a list of rows.*a dict"):
        load_problems(DatasetSettings(path=tmp_path / "y.json"))
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "x.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(InvalidInput, match=r"cut\.jsonl\.gz: cannot be read"):
        load_problems(DatasetSettings(path=tmp_path / "cut.jsonl.gz"))
    with pytest.raises(InvalidInput, match="there is no such file or folder"):
        load_problems(DatasetSettings(path=tmp_path / "none.jsonl"))


def test_parquet_and_arrow_hold_the_same_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra [train]")
    import pyarrow.parquet

    rows = [{"problem": str(n), "answer": str(n), "level": n} for n in range(5)]
    table = pa.Table.from_pylist(rows)
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data/train-00000-of-00001.parquet")
    # What `datasets.save_to_disk` writes.
    saved = tmp_path / "saved/train"
    saved.mkdir(parents=True)
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text("{}")
    for path in (tmp_path / "data", tmp_path / "saved"):
        loaded = load_problems(DatasetSettings(path=path))
        assert [p.text for p in loaded.problems] == [row["problem"] for row in rows]
        assert loaded.problems[4].level == 4.0
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InvalidInput, match=r"bad.parquet: cannot be read"):
        load_problems(DatasetSettings(path=tmp_path / "bad.parquet"))


@needs_data
@pytest.mark.parametrize(
    ("file", "count", "answer"),
    [
        ("gsm8k/train.jsonl", 7473, "72"),
        ("math/aime_1983_2023_rllm.jsonl", 970, "60"),
        ("math/aqua_test.jsonl", 254, "A"),
        ("math/asdiv_test.jsonl", 2215, "9"),
        ("math/college_math_test.jsonl", 2818, "$10-4 n$"),
        ("math/math500_rows_000_099.jsonl", 100, r"\left( 3, \frac{\pi}{2} \right)"),
        ("math/math_test_minus_math500.jsonl", 4497, "2"),
        ("math/sat_math_test.jsonl", 32, "A"),
        ("math/svamp_test.jsonl", 1000, "145"),
    ],
)
def test_mathematics_loads_as_it_is(file: str, count: int, answer: str) -> None:
    problems = load_problems(DatasetSettings(path=DATA / file)).problems
    assert (len(problems), problems[0].answer) == (count, answer)
    assert all(problem.text and problem.answer for problem in problems)
    assert not any("####" in problem.answer for problem in problems)


@needs_data
@pytest.mark.parametrize(
    ("file", "count", "lines"),
    [("math_train_rllm.jsonl", 7469, [887, 1010, 5328, 5330]),
     ("gaokao2023en_test.jsonl", 371, [168, 193])],
)  # fmt: skip
def test_rows_without_answers_in_public_data_are_named(
    file: str, count: int, lines: list[int]
) -> None:
    path = DATA / "math" / file
    with pytest.raises(InvalidInput, match="; ".join(rf".*line {line}" for line in lines)):
        load_problems(DatasetSettings(path=path))
    loaded = load_problems(DatasetSettings(path=path, missing="drop"))
    assert (len(loaded.problems), len(loaded.dropped["missing"])) == (count, len(lines))


@needs_data
@pytest.mark.parametrize(
    ("file", "count", "asserts", "cases"),
    [
        ("humaneval/HumanEval.jsonl", 164, 1, 0),
        ("mbpp/mbpp.jsonl", 974, 3, 0),
        ("mbpp/mbpp_sanitized_codet.jsonl", 427, 1, 0),
        ("rllm/code_contests_test.jsonl", 165, 0, 1),
        ("rllm/leetcode_train.jsonl.gz", 1839, 1, 0),
    ],
)
def test_code_loads_as_it_is(file: str, count: int, asserts: int, cases: int) -> None:
    problems = load_problems(DatasetSettings(path=DATA / "code" / file)).problems
    assert len(problems) == count
    tests = [problem.tests for problem in problems]
    assert all(test is not None and bool(test.asserts) != bool(test.cases) for test in tests)
    assert tests[0] is not None
    assert (len(tests[0].asserts), len(tests[0].cases)) == (asserts, cases)


@needs_data
def test_a_problem_shows_the_tests_that_alone_name_its_function() -> None:
    mbpp = load_problems(DatasetSettings(path=DATA / "code/mbpp/mbpp.jsonl")).problems
    assert "assert min_cost(" in mbpp[0].text
    humaneval = load_problems(DatasetSettings(path=DATA / "code/humaneval/HumanEval.jsonl"))
    assert "check(" not in humaneval.problems[0].text


@needs_data
def test_samples_of_one_problem_are_no_data_set_of_problems() -> None:
    path = DATA / "code/nemo_skills/code_execution_test.jsonl"
    with pytest.raises(InvalidInput, match="3 rows have an id that stood before"):
        load_problems(DatasetSettings(path=path))
    (problem,) = load_problems(DatasetSettings(path=path, duplicates="drop")).problems
    assert problem.tests is not None
    assert len(problem.tests.cases) == 3
    named = Columns(problem="description", id="is_correct")
    assert named.name_of("id", {"id": 1}) == "is_correct"
