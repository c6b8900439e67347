"""How much of a search's answer is certain while it runs, told from its events alone."""

from collections.abc import Collection

from server.schemas.search import EventOut


class CertainText:
    r"""The text that all candidates share that can still win.

    A candidate can win until it is pruned; one that is continued lives on in its continuations, as
    soon as all of them are there. They are when anything else is told than that a text was written,
    because a round is written whole before it is scored.

    >>> certain = CertainText()
    >>> for number, text in enumerate(["a\nb\n", "a\nc\n"]):
    ...     _ = certain.take(EventOut(type="expanded", round=0, candidate=number, text=text))
    >>> certain.take(EventOut(type="scored", round=0, candidate=0, score=0.5))
    'a\n'
    >>> certain.take(EventOut(type="pruned", round=0, candidate=1))
    'b\n'
    """

    def __init__(self) -> None:
        self._alive: dict[int, str] = {}
        self._continued: set[int] = set()
        self._told = 0

    def take(self, event: EventOut) -> str:
        """The text that became certain with this event, behind what was certain before."""
        if event.type == "expanded":
            self._alive[event.candidate] = event.text or ""
            if event.parent is not None:
                self._continued.add(event.parent)
            return ""
        for parent in self._continued:
            self._alive.pop(parent, None)
        self._continued.clear()
        if event.type == "pruned":
            self._alive.pop(event.candidate, None)
        new = _shared(self._alive.values(), self._told)
        self._told += len(new)
        return new


def _shared(texts: Collection[str], start: int) -> str:
    """What all texts have in common from `start` on. They agree before it."""
    # What the first and the last in order share, all between them share.
    first, last = min(texts, default=""), max(texts, default="")
    end = start
    while end < len(first) and first[end] == last[end]:
        end += 1
    return first[start:end]
