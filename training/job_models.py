"""The models of a job, of which each set of weights that stays is loaded once."""

from pathlib import Path
from typing import Any

import torch

from training.lora import AdaptedBase, AdaptedLM
from training.models import TrainedLM, load_causal
from training.ranks import Ranks
from training.reading import PackedReading
from training.spec import Adapter, TrainingJob


class JobModels:
    """Policy, reference and PRM. `folder` is the policy's.

    Models that do not train, and those that train as an adapter, share the weights of their folder
    where an adapter is on them.
    """

    def __init__(self, job: TrainingJob, folder: Path, ranks: Ranks) -> None:
        self._job = job
        self.folder = folder
        self._ranks = ranks
        self._numerics: dict[str, Any] = {
            "precision": job.precision,
            "activation_checkpointing": job.activation_checkpointing,
        }
        self._bases: dict[Path, AdaptedBase] = {}

    @property
    def prm_folder(self) -> Path:
        """What the PRM begins as: the policy where the job names no other."""
        return self._job.prm or self.folder

    def policy(self) -> TrainedLM:
        """What writes."""
        if self._job.adapter is not None:
            return AdaptedLM(self._base(self.folder), "policy")
        return self._load(self.folder)

    def reference(self) -> TrainedLM:
        """What stays: the job's reference, or the policy as it was before its first step."""
        folder = self._job.reference or self.folder
        if self._adapters_on(folder):
            return AdaptedLM(self._base(folder), None)
        return self._load(folder).freeze()

    def prm(self) -> TrainedLM:
        """φ as a language model."""
        if self._job.prm_adapter is not None:
            return AdaptedLM(self._base(self.prm_folder), "prm")
        return self._load(self.prm_folder)

    def _load(self, folder: Path) -> TrainedLM:
        return TrainedLM.load(folder, device=self._job.device, ranks=self._ranks, **self._numerics)

    def _adapters_on(self, folder: Path) -> dict[str, Adapter]:
        """The job's adapters that are trained on this folder's weights."""
        job = self._job
        placed = {
            "policy": (self.folder, job.adapter),
            "prm": (self.prm_folder, job.prm_adapter),
        }
        return {
            name: adapter
            for name, (base, adapter) in placed.items()
            if adapter is not None and base.resolve() == folder.resolve()
        }

    def _base(self, folder: Path) -> AdaptedBase:
        place = folder.resolve()
        if place not in self._bases:
            model = load_causal(folder, device=self._job.device, dtype=torch.float32)
            reading = PackedReading(model, **self._numerics)
            self._bases[place] = AdaptedBase(reading, self._adapters_on(folder), self._ranks)
        return self._bases[place]
