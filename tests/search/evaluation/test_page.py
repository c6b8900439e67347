"""A page's figures, between its markers."""

from pathlib import Path

import pytest

from prm.errors import InvalidInput
from search.evaluation.figures import measure
from search.evaluation.page import BEGIN, END, check_page, write_figures
from tests.search.evaluation.test_figures import BEAM, arm_run, best


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    runs = [
        arm_run(best(4), 100, lambda n: n % 2 == 0),
        arm_run(best(16), 400, lambda n: n % 2 == 0),
        arm_run(BEAM, 200, lambda n: True),
    ]
    for _ in range(2):
        check_page(page)
        write_figures(page, measure(runs, has_prm=True), "rung eval search p.jsonl")
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n`rung eval search p.jsonl`: 400 problems.\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert (
        "| beam by weighted vote 8x4 | 100.0 | 100.0 to 100.0 | 100.0 | 50.0 | 200 | 400 | 1 |"
        in text
    )
    assert "| beam by weighted vote 8x4 | +50.0 [" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {9, 5}


@pytest.mark.parametrize("text", ["", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"])
def test_a_page_without_a_place_for_figures_is_told(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InvalidInput, match=r"--docs .*page\.md: has no line"):
        check_page(page)
