"""What a run has reached, on disk: to go on from after a kill, a crash or a pause.

A checkpoint is a folder, written beside its place and renamed into it, so that there is always a
whole one. Everything random in a run comes from the job's seed and the step's number; the weights
that train, their moments and the step are all there is to keep: in safetensors and JSON by one
process, and by several in DCP's files (torch.distributed.checkpoint), each rank its own part. Any
number of ranks goes on from either.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from prm.errors import InvalidInput
from prm.files import sync_folder
from training.learner import Learner
from training.ranks import ALONE, Ranks

STATE = "state.json"
# Of several ranks: everything but the step.
_SHARDS = "shards"

Learners = Mapping[str, Learner[Any]]


def save_checkpoint(
    folder: Path, step: int, learners: Learners, *, keep: int = 2, ranks: Ranks = ALONE
) -> Path:
    """`folder/step-00000012`, and older ones than the last `keep` removed.

    Raises InvalidInput where the disk is full; the checkpoint before stays whole.
    """
    target = folder / f"step-{step:08d}"
    holding = folder / f".{target.name}"
    try:
        if ranks.index == 0:
            shutil.rmtree(holding, ignore_errors=True)
            holding.mkdir(parents=True)
        ranks.wait()
        if ranks.count > 1:
            save(dict(_tensors(learners)), checkpoint_id=holding / _SHARDS)
        else:
            for name, tensors in _tensors(learners).items():
                kept = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
                save_file(kept, holding / f"{name}.safetensors")
        if ranks.index == 0:
            steps = {name: learner.steps for name, learner in learners.items()}
            text = json.dumps({"step": step, "optimizer_steps": steps})
            (holding / STATE).write_text(text)
            _sync(holding)
            shutil.rmtree(target, ignore_errors=True)
            holding.rename(target)
            sync_folder(folder)
            for old in sorted(folder.glob("step-*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, CheckpointException, SafetensorError) as error:
        shutil.rmtree(holding, ignore_errors=True)
        raise InvalidInput(
            f"the checkpoint of step {step} could not be written to {folder}: {_reason(error)}; "
            "make room there and resume, the one before is whole",
            param="out",
        ) from error
    ranks.wait()
    return target


def _sync(folder: Path) -> None:
    """What lies in it outlives a power cut."""
    for path in folder.rglob("*"):
        sync_folder(path)
    sync_folder(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is any."""
    found = [path for path in sorted(folder.glob("step-*")) if (path / STATE).is_file()]
    return found[-1] if found else None


@torch.no_grad()
def load_checkpoint(path: Path, learners: Learners, ranks: Ranks = ALONE) -> int:
    """Put the learners where they were, and return the step that was done last.

    Raises InvalidInput for a checkpoint of other weights.
    """
    kept = json.loads((path / STATE).read_text())
    tensors = _tensors(learners)
    if (path / _SHARDS).is_dir():
        _load_shards(path / _SHARDS, tensors, ranks)
    else:
        for name, own in tensors.items():
            stored = load_file(path / f"{name}.safetensors")
            _check_names(path, own, stored)
            for key, tensor in own.items():
                ranks.fill(tensor, stored[key])
    for name, learner in learners.items():
        learner.steps = kept["optimizer_steps"][name]
    return int(kept["step"])


def _tensors(learners: Learners) -> dict[str, Mapping[str, Tensor]]:
    """The tensors themselves: to be saved, and to be written into."""
    found: dict[str, Mapping[str, Tensor]] = {}
    for name, learner in learners.items():
        found[name] = learner.weights
        found[f"{name}-optimizer"] = learner.moments()
    return found


def _load_shards(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> None:
    stored = {".".join(key) for key in _shard_names(path)}
    for name, own in tensors.items():
        names = {key.removeprefix(f"{name}.") for key in stored if key.startswith(f"{name}.")}
        _check_names(path.parent, own, names)
    with warnings.catch_warnings():
        # That it loads in one process, where it is asked to.
        warnings.simplefilter("ignore")
        load(
            {name: {k: t.detach() for k, t in own.items()} for name, own in tensors.items()},
            checkpoint_id=path,
            no_dist=ranks.count == 1,
        )


def _shard_names(path: Path) -> list[tuple[str, ...]]:
    metadata = FileSystemReader(path).read_metadata()
    return [tuple(map(str, key)) for key in (metadata.planner_data or {}).values()]


def _check_names(path: Path, own: Mapping[str, Tensor], stored: Any) -> None:
    if unlike := sorted(own.keys() ^ set(stored)):
        raise InvalidInput(
            f"{path} is the state of other weights: {unlike[0]} is not in both; begin the run "
            "anew in another folder",
            param="out",
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
        return str(first.strerror if isinstance(first, OSError) else first)
    return str((error.strerror if isinstance(error, OSError) else None) or error)
