"""A contestant's process: `python -m benchmarks.scoring.child '{"kind": "rung", …}'`."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contestant import serve_turns


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a contestant loads. `folder` is of one model, or for HTTP of a registry."""

    kind: str
    folder: str
    dtype: str
    threads: int
    is_eager: bool = False

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Task:
    """One turn: a workload, the round that seeds it, and whether it is only a small one."""

    workload: str
    round: int
    is_quick: bool


TakeTurn = Callable[[Task], Mapping[str, Any]]


def load(spec: Spec) -> TakeTurn:
    """Load a contestant; imports here, because each environment has only its own libraries."""
    if spec.kind in ("rung", "matmul"):
        from benchmarks.scoring import ours

        return ours.load(spec)
    if spec.kind.startswith("transformers") or spec.kind == "vllm":
        from benchmarks.scoring import peers

        return peers.load(spec)
    from benchmarks.scoring import over_http

    return over_http.load(spec)


def main() -> None:
    """Load what the argument says, then take turns."""
    take_turn = load(Spec(**json.loads(sys.argv[1])))
    serve_turns(lambda task: take_turn(Task(**task)))


if __name__ == "__main__":
    main()
