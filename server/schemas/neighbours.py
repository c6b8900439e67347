"""Fields of neighbouring APIs that nothing here stands behind: refused by name, not ignored."""

from collections.abc import Mapping, Sequence
from typing import Any

from prm.errors import InvalidInput

# For each field, the values that ask for nothing: null always does.
Unsupported = Mapping[str, Sequence[object]]


def without_unsupported(given: Any, fields: Unsupported, *, where: str = "") -> Any:
    """The same object without those of `fields` that ask for nothing.

    Clients send defaults that nobody chose, so these pass. Raises InvalidInput, naming the field
    behind `where`, for one that asks for something.
    """
    if not isinstance(given, dict):
        return given
    for name, harmless in fields.items():
        if given.get(name) is not None and given[name] not in harmless:
            raise InvalidInput(
                f"{where}{name}: not supported here; leave it out", param=f"{where}{name}"
            )
    return {name: value for name, value in given.items() if name not in fields}
