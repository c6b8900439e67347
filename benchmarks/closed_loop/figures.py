"""What a version is worth on the test answers, beside another; and whether answers are its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.closed_loop.load import Load
from benchmarks.scoring.over_http import MODEL
from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.reader import read_now
from prm.evaluation.gate import GateReport, GateSettings, Judged, Metric, judge
from prm.evaluation.labelled import Scored
from prm.families import FAMILIES
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import read_version
from prm.steps import join_steps
from prm.types import Message, Trajectory
from training.labelled import Line

Scores = Sequence[Sequence[float]]
METRICS: Mapping[str, Metric] = {"first-error F1": "first_error_f1", "best of 16": "best_of_n"}
# Of the answers that the clients got, so many of each version are read again alone.
_CHECKED = 40


# A version, and its step scores of the test answers.
Side = tuple[str, Scores]


def compare(root: Path, lines: Sequence[Line], before: Side, after: Side) -> dict[str, GateReport]:
    """Each metric of two versions, by the gate's paired bootstrap."""
    live, new = (_judged(root, version, lines, scores) for version, scores in (before, after))
    return {name: judge(live, new, GateSettings(metric=metric)) for name, metric in METRICS.items()}


def greatest_gap(root: Path, load: Load) -> float:
    """By how much a score that was answered differs from that of the version that it names."""
    gap = 0.0
    for name in load.versions:
        answers = [each for each in load.answers if each[1]["model_version"] == name]
        version = read_version(root / MODEL / name)
        reads = _Reads(root, version)
        for place, answer in [*answers[: _CHECKED // 2], *answers[-_CHECKED // 2 :]]:
            for line, told in zip(load.requests[place], answer["data"], strict=True):
                ours = reads(line)
                gap = max(
                    gap, *(abs(o - t["score"]) for o, t in zip(ours, told["steps"], strict=True))
                )
    return gap


class _Reads:
    """A version read alone, by the engine's code and without a server."""

    def __init__(self, root: Path, version: ModelVersion) -> None:
        assert isinstance(version.manifest, PrmManifest)
        self._family = FAMILIES[version.manifest.family].load(
            version, ChatTokenizer(version.folder)
        )
        self._separator = version.manifest.step_separator
        reference = read_version(root / MODEL.replace("prm", "policy") / "1")
        self._models = {each.key: CausalLM.load(each.folder) for each in (version, reference)}

    def __call__(self, line: Line) -> list[float]:
        response, steps = join_steps(line["steps"], self._separator)
        asked = (Message(role="user", content=line["problem"]),)
        encoded = self._family.encode(Trajectory(messages=asked, response=response, steps=steps))
        outputs = read_now(self._models, encoded.reads)
        return [step.score for step in self._family.score(encoded, outputs).steps]


def _judged(root: Path, version: str, lines: Sequence[Line], scores: Scores) -> Judged:
    manifest = read_version(root / MODEL / version).manifest
    assert isinstance(manifest, PrmManifest)
    return Judged(
        responses=tuple(_scored(line, own) for line, own in zip(lines, scores, strict=True)),
        aggregation=manifest.aggregation,
        threshold=manifest.threshold,
    )


def _scored(line: Line, scores: Sequence[float]) -> Scored:
    error, count = line["first_error"], len(line["steps"])
    labels: tuple[bool | None, ...] = (True,) * count
    if error is not None:
        labels = (True,) * error + (False,) + (None,) * (count - error - 1)
    return Scored(
        problem=line["problem"], scores=tuple(scores), labels=labels, is_correct=line["correct"]
    )
