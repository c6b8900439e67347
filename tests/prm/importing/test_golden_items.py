"""A publisher's file of golden items is read, or its bad line is named."""

from pathlib import Path

import pytest

from prm.errors import InvalidInput
from prm.importing.golden_items import read_golden


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no item"),
        ("{", "line 1: not JSON"),
        ('\n{"problem": "1"}', "line 2: steps: Field required"),
        ('{"problem": "1", "steps": ["a"], "score": 1}', "line 1: score: Extra"),
        ('{"steps": ["a"]}', "line 1: item: .*either problem or messages"),
        ('{"problem": "1", "steps": ["a"], "scores": [NaN]}', r"line 1: scores\.0: .*finite"),
    ],
)
def test_a_bad_golden_file_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "golden.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read_golden(tmp_path / "golden.jsonl")
