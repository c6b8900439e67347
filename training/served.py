"""How a job's PRM is read where it is served: its family, its recipe, and what parts its steps.

Nothing here imports torch: the command that publishes a run asks here, and so does the trainer, who
encodes and scores by the same family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.chat import ChatTokenizer
from prm.families import FAMILIES
from prm.families.base import Family
from prm.manifest import GoldenScore, ModelRef, ModelVersion, PrmManifest
from training.settings import ImplicitPrm, Prime, Repirl, StepBce
from training.settings.base import set_beside
from training.spec import TaskData, TrainingJob

PRM, REFERENCE = "prm", "reference"
# Of a run's folder: items to compute golden scores of, and the same with the trainer's numbers.
GOLDEN, GOLDEN_PRM = "golden.jsonl", "golden-prm.jsonl"
# Of a run's folder: labelled responses to problems that it did not train on.
HELD_OUT = "held_out.jsonl"
# What a manifest holds before there is anything to say.
_NO_GOLDEN = (GoldenScore(messages=(), steps=(), raw=()),)
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAs:
    """`settings` are the recipe's, but for its reference and what the checkpoint tells.

    `has_reference`: read as a log-ratio to the job's reference model.
    """

    family: str
    settings: Mapping[str, Any]
    step_separator: str
    has_reference: bool = False


def served_as(job: TrainingJob) -> ServedAs | None:
    """How the PRM of this job is read; None for a job that has none."""
    separator = separator_of(job)

    def implicit(beta: float, *, has_reference: bool = True, **settings: Any) -> ServedAs:
        return ServedAs(
            family="implicit",
            settings={"beta": beta, **settings},
            step_separator=separator,
            has_reference=has_reference,
        )

    match job.algorithm:
        case ImplicitPrm() as own:
            read_out = ("step_value", "step_prefix", "end_token")
            return implicit(
                own.beta, **{name: getattr(own, name) for name in set_beside(own, read_out)}
            )
        case Prime(beta=beta, reference=divisor):
            # A policy that trains is no reference: without one, as its evaluations read it.
            return implicit(beta, has_reference=divisor == "frozen")
        case Repirl(read_out="log_ratio"):
            return implicit(1.0)
        case Repirl():
            return ServedAs(family="repirl", settings={}, step_separator=separator)
        case StepBce(read_out="log_ratio", beta=beta):
            return implicit(beta, step_value="accumulative")
        case StepBce():
            settings = {"name": "trl", "separator": separator}
            return ServedAs(family="token_head", settings=settings, step_separator=separator)
        case _:
            return None


def separator_of(job: TrainingJob) -> str:
    """What parts the steps of the job's responses."""
    return job.data.task.separator if isinstance(job.data, TaskData) else job.data.separator


def family_of(served: ServedAs, folder: Path, outputs: int | None = None) -> Family:
    """The family before anything is published, over this folder's tokenizer and configuration.

    `outputs`: of a head over actions. Its reads name their models `prm@0` and `reference@0`.
    """
    recipe: dict[str, Any] = dict(served.settings)
    if served.family == "implicit":
        pinned = ModelRef(name=REFERENCE, version="0", weights_sha256=_NO_HASH)
        recipe["reference"] = pinned.model_dump() if served.has_reference else None
    if outputs is not None:
        recipe["outputs"] = outputs
    manifest = PrmManifest(
        name=PRM,
        version="0",
        created=0,
        files={},
        golden=_NO_GOLDEN,
        family=served.family,
        recipe=recipe,
        step_separator=served.step_separator,
        threshold=0.5,
    )
    return FAMILIES[served.family].load(ModelVersion(folder, manifest), ChatTokenizer(folder))
