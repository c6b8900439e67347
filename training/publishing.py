"""What a run has trained as versions: `rung models publish`.

    policy/    → NAME-policy       where the policy was trained
               → NAME-reference    where the PRM is read as a log-ratio; a version that has these
                                   weights already is taken as it is
    prm/       → NAME-prm          read as the trainer read it: its raw scores have to come out

β, reference, read-out and separator are the job's (`training/served.py`). Each is an import
(`prm/importing`) with its own golden scores. Nothing here imports torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from prm.errors import InvalidInput, ModelFolderError
from prm.files import hash_file
from prm.importing import Asked, Imported, ImportRequest, Watch, import_checkpoint
from prm.importing.request import check_place
from prm.manifest import ModelVersion, PolicyManifest
from prm.registry import read_version
from prm.validation import first_problem
from prm.weights import INDEX, WHOLE, shard_names
from training.served import GOLDEN, GOLDEN_PRM, ServedAs, separator_of, served_as
from training.spec import TrainingJob

JOB = "job.json"
# A trainer's float32 against the engine's: other batches round otherwise in the sixth digit.
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """A run's folder, and where its models go. `name` None is the job's.

    `reference`: a version that is the PRM's reference, where the folder that the job names is gone.
    """

    run: Path
    root: Path
    name: str | None = None
    version: str = "1"
    reference: str | None = None
    live: bool = True
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Published:
    """One version. `imported` is None of a reference that was there before."""

    role: str
    key: str
    imported: Imported | None


def publish_run(request: PublishRequest, watch: Watch) -> list[Published]:
    """Publish what the run has trained, and the reference that its PRM is read with.

    Raises InvalidInput for a run that is not done, a name that is taken or a model that is not what
    was trained, ModelFolderError, Unavailable, OSError. What was published before an error stays.
    """
    job = read_run(request.run)
    served = served_as(job)
    folders = {role: request.run / role for role in ("policy", "prm")}
    folders = {role: folder for role, folder in folders.items() if folder.is_dir()}
    if not folders:
        raise InvalidInput(
            f"{request.run}: holds neither policy/ nor prm/: the run is not done; go on with it "
            "(rung train --resume)",
            param="run",
        )
    name = request.name or job.name
    found: list[Published] = []
    reference = None
    if "prm" in folders and served is not None and served.has_reference:
        reference = _reference(request, job)
        if isinstance(reference, Path):
            folders = {"reference": reference, **folders}
    plans = {role: _plan(request, job, name, role, folder) for role, folder in folders.items()}
    for plan in plans.values():
        check_place(plan)
    if isinstance(reference, ModelVersion):
        found.append(Published(role="reference", key=reference.key, imported=None))
    for role, plan in plans.items():
        if role == "prm":
            assert served is not None
            pinned = found[0].key if served.has_reference else None
            plan = _as_served(plan, served, pinned)
        imported = import_checkpoint(plan, watch)
        found.append(Published(role=role, key=imported.manifest.key, imported=imported))
    return found


def read_run(run: Path) -> TrainingJob:
    """The job of a run's folder. Raises InvalidInput for a folder that holds none."""
    path = run / JOB
    try:
        return TrainingJob.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror or error}; give the folder of a run (rung train --out)",
            param="run",
        ) from error
    except ValidationError as error:
        raise InvalidInput(f"{path}: {first_problem(error)}", param="run") from error


def _reference(request: PublishRequest, job: TrainingJob) -> Path | ModelVersion:
    """The reference's folder, or the version that has its weights already."""
    if request.reference is not None:
        name, _, version = request.reference.partition("@")
        if not name or not version:
            raise InvalidInput(
                f"--reference {request.reference!r} is not NAME@VERSION", param="reference"
            )
        return read_version(request.root / name / version)
    folder = job.reference or job.policy
    assert isinstance(folder, Path), "a PRM begins with a policy that is there"
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            f"{folder}, the reference of this run by its {JOB}, is not there any more; go to the "
            "folder where the run was started, or name its version with --reference NAME@VERSION",
            param="reference",
        )
    return next(_with_weights_of(folder, request.root), folder)


def _with_weights_of(folder: Path, root: Path) -> Iterator[ModelVersion]:
    """Published policies with the weights and the tokenizer of this folder."""
    ours = _hashes(folder)
    for stable in sorted(root.glob("*/*/STABLE")):
        try:
            version = read_version(stable.parent)
        except ModelFolderError:
            continue
        theirs = {name: record.sha256 for name, record in version.manifest.files.items()}
        if isinstance(version.manifest, PolicyManifest) and ours.items() <= theirs.items():
            yield version


def _hashes(folder: Path) -> dict[str, str]:
    shards = set(shard_names(folder / INDEX).values()) if (folder / INDEX).is_file() else {WHOLE}
    return {name: hash_file(folder / name) for name in (*sorted(shards), "tokenizer.json")}


def _plan(
    request: PublishRequest, job: TrainingJob, name: str, role: str, folder: Path
) -> ImportRequest:
    golden = request.run / (GOLDEN_PRM if role == "prm" else GOLDEN)
    if not golden.is_file() or not golden.read_bytes().strip():
        raise InvalidInput(
            f"{golden}: no response for golden scores: of what the policy wrote when the run was "
            f"done nothing has a step; import {folder} with items of your own (rung models import "
            "--golden)",
            param="run",
        )
    return ImportRequest(
        folder=folder,
        name=f"{name}-{role}",
        version=request.version,
        root=request.root,
        step_separator=separator_of(job),
        is_policy=role != "prm",
        training={"job": job.name, "algorithm": job.algorithm.model_dump(mode="json")},
        golden=golden,
        tolerance=TOLERANCE,
        live=request.live,
        device=request.device,
        threads=request.threads,
    )


def _as_served(plan: ImportRequest, served: ServedAs, reference: str | None) -> ImportRequest:
    settings = dict(served.settings)
    asked = Asked(family=served.family, recipe=settings.pop("name", None), settings=settings)
    if served.family == "implicit":
        return replace(plan, asked=asked, reference=reference or "none")
    return replace(plan, asked=asked)
