"""Stretches of a text that belong together: fenced code, displayed mathematics, diagrams.

A cut at a blank line, a line end or a number inside one of these is no cut between two steps.
Everything here is one pass of a regular expression that looks at each character a bounded number
of times: linear in the text, whatever it holds. Lines end with `\\n` or `\\r\\n`.
"""

import re
from bisect import bisect_right
from collections import defaultdict

from prm.steps import Span

# CommonMark 4.5, but indented as deep as one likes, in quotations, and after a list marker: models
# write fences inside list items.
_FENCE_LINE = re.compile(
    r"^[ \t>]*+(?P<marker>(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)",
    re.MULTILINE,
)
_LATEX_MARK = re.compile(
    r"""
    \\begin\{(?P<begin>[A-Za-z]{1,32}\*?)\} | \\end\{(?P<end>[A-Za-z]{1,32}\*?)\}
  | (?P<sign>\\[\[\]] | \$\$(?!\$\$) | \[/?asy\])
    # Stepped over: other escapes (\\[2pt], \$), $$$$, which shuts what it opens, and $…$ on one
    # line (Pandoc's rule), for two of these side by side hold a $$.
  | \\[^\n]
  | (?:\$\$\$\$)+
  | \$(?=[^\s$])(?:[^$\\\n]|\\[^\n])*+(?<!\s)\$(?![0-9])
    """,
    re.VERBOSE,
)
_CLOSES = {"\\]": "\\[", "[/asy]": "[asy]"}
# LaTeX environments that hold prose: a proof has many steps. Every other environment is one piece.
_PROSE = frozenset({
    "abstract", "center", "corollary", "definition", "description", "document", "enumerate",
    "example", "exercise", "flushleft", "flushright", "itemize", "lemma", "minipage", "problem",
    "proof", "proposition", "quotation", "quote", "remark", "solution", "theorem",
})  # fmt: skip


def fences(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """Fenced code blocks (``` or ~~~), whole lines, in order; an open one reaches the end."""
    end = len(text) if end is None else end
    found = []
    opened: tuple[int, str] | None = None
    for line in _FENCE_LINE.finditer(text, start, end):
        fence, info = line["fence"], line["info"]
        if opened is None:
            if fence[0] == "~" or "`" not in info:
                opened = (line.start(), fence)
        elif line["marker"] is None and fence.startswith(opened[1]) and not info.strip():
            found.append((opened[0], line.end()))
            opened = None
    if opened is not None:
        found.append((opened[0], end))
    return found


def blocks(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    r"""Fences, `\[…\]`, `$$…$$`, environments and `[asy]…[/asy]`: disjoint spans in order.

    What is opened and never closed is no block, fences excepted: a stray `\[` must not glue the
    rest of a text into one step.
    """
    end = len(text) if end is None else end
    fenced = fences(text, start, end)
    return _union(fenced + _latex(text, start, end, fenced))


def _latex(text: str, start: int, end: int, fenced: list[Span]) -> list[Span]:
    """Each kind is paired by itself, so that one stray mark cannot hide another kind's blocks."""
    found: list[Span] = []
    opened: defaultdict[str, list[int]] = defaultdict(list)
    fence_starts = [fence[0] for fence in fenced]
    for mark in _LATEX_MARK.finditer(text, start, end):
        if mark.lastgroup is None:
            continue
        name, at = mark[mark.lastgroup], mark.start()
        if fenced and (fence := bisect_right(fence_starts, at)) and at < fenced[fence - 1][1]:
            continue
        kind = _CLOSES.get(name, name)
        is_opening = mark.lastgroup == "begin" or (
            mark.lastgroup == "sign" and name not in _CLOSES and not (name == "$$" and opened[name])
        )
        if kind in _PROSE:
            continue
        if is_opening:
            if mark.lastgroup == "sign":
                # Only environments nest: a second \[ says that the first was never closed.
                opened[kind].clear()
            opened[kind].append(at)
        elif opened[kind]:
            found.append((opened[kind].pop(), mark.end()))
    return found


def _union(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
