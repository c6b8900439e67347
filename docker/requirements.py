"""Print what `pyproject.toml` depends on, with the extras that are named: one line each.

    python requirements.py pyproject.toml train lora > requirements.txt

An image installs these before it copies any source, so that a change of a source rebuilds nothing.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies and those of each extra. Raises KeyError for an extra that is not there."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return [line for group in groups for line in group]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
