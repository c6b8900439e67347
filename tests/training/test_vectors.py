"""All worked numbers are used."""

from pathlib import Path

from tests.training.vectors import blocks


def test_every_block_of_worked_numbers_is_a_test() -> None:
    sources = Path(__file__).parent.rglob("test_*.py")
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    assert [name for name in blocks() if f'block("{name}")' not in text] == []
