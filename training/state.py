"""What a run has reached, on disk: to go on from after a kill, a crash or a pause.

A checkpoint is a folder of safetensors and JSON, written beside its place and renamed into it, so
that there is always a whole one. Everything random in a run comes from the job's seed and the
step's number; weights, moments and the step are all there is to keep.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prm.errors import InvalidInput
from training.learner import Learner

STATE = "state.json"


def save_checkpoint(
    folder: Path, step: int, learners: Mapping[str, Learner], *, keep: int = 2
) -> Path:
    """`folder/step-00000012`, and older ones than the last `keep` removed.

    Raises InvalidInput where the disk is full; the checkpoint before stays whole.
    """
    target = folder / f"step-{step:08d}"
    holding = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(holding, ignore_errors=True)
    try:
        holding.mkdir(parents=True)
        steps = {}
        for name, learner in learners.items():
            state = learner.state()
            steps[name] = state["steps"]
            save_file(_distinct(state["model"]), holding / f"{name}.safetensors")
            save_file(_moments(state["optimizer"]), holding / f"{name}-optimizer.safetensors")
        (holding / STATE).write_text(json.dumps({"step": step, "optimizer_steps": steps}))
        shutil.rmtree(target, ignore_errors=True)
        holding.rename(target)
    except OSError as error:
        shutil.rmtree(holding, ignore_errors=True)
        raise InvalidInput(
            f"the checkpoint of step {step} could not be written to {folder}: "
            f"{error.strerror or error}; make room there and resume, the one before is whole",
            param="out",
        ) from error
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is any."""
    found = [path for path in sorted(folder.glob("step-*")) if (path / STATE).is_file()]
    return found[-1] if found else None


def load_checkpoint(path: Path, learners: Mapping[str, Learner]) -> int:
    """Put the learners where they were, and return the step that was done last."""
    kept = json.loads((path / STATE).read_text())
    for name, learner in learners.items():
        weights = load_file(path / f"{name}.safetensors")
        current = learner.state()
        moments = load_file(path / f"{name}-optimizer.safetensors")
        learner.restore(
            {
                # Weights that share memory are kept once.
                "model": {n: weights.get(n, t) for n, t in current["model"].items()},
                "optimizer": _optimizer_state(current["optimizer"], moments),
                "steps": kept["optimizer_steps"][name],
            }
        )
    return int(kept["step"])


def _distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights under their first name alone, as safetensors wants it."""
    seen: dict[int, str] = {}
    kept = {}
    for name, tensor in weights.items():
        if seen.setdefault(tensor.data_ptr(), name) == name:
            kept[name] = tensor.contiguous()
    return kept


def _moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """AdamW's tensors as `number.name`."""
    return {
        f"{number}.{name}": value.contiguous()
        for number, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def _optimizer_state(current: Mapping[str, Any], moments: Mapping[str, Tensor]) -> dict[str, Any]:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = value
    return {**current, "state": states}
