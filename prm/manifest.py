"""The manifest of a published version: everything about it that its weights do not say."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from prm.aggregation import PlainAggregation
from prm.files import read_json
from prm.types import Message

# Beside the versions of a model lies a folder with their calibrations.
CALIBRATION_FOLDER = "calibration"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Size and hash of one file of the version."""

    bytes: int
    sha256: Sha256


class ModelRef(_Record):
    """Another version, pinned by the hash of its weights."""

    name: Name
    version: Name
    weights_sha256: Sha256

    @property
    def key(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class GoldenScore(_Record):
    """One trajectory and the raw step scores that the publisher computed for it.

    For a policy, `raw` holds one number: the summed log-probability of the response.
    """

    messages: tuple[Message, ...]
    steps: tuple[str, ...]
    raw: tuple[Finite, ...]


class _Manifest(_Record):
    schema_version: Literal[2] = 2
    name: Name
    version: Name
    created: int
    files: Mapping[str, FileRecord]
    golden: tuple[GoldenScore, ...] = Field(min_length=1)
    training: Mapping[str, Any] = Field(default_factory=dict)
    metrics: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("version")
    @classmethod
    def _version_is_free(cls, version: str) -> str:
        if version == CALIBRATION_FOLDER:
            raise ValueError("is the name of the folder of calibrations; choose another")
        return version

    @property
    def key(self) -> str:
        """`name@version`: how this version is written in requests, answers and logs."""
        return f"{self.name}@{self.version}"


class PolicyManifest(_Manifest):
    """A causal language model that writes steps."""

    kind: Literal["policy"] = "policy"
    step_separator: str = "\n\n"


class PrmManifest(_Manifest):
    """A process reward model: how it is read (`family` and its recipe) and what decides.

    The family checks `recipe`. `threshold` is on the step score in [0, 1]: below it, a step counts
    as wrong.
    """

    kind: Literal["prm"] = "prm"
    family: str
    recipe: Mapping[str, Any]
    step_separator: str = "\n\n"
    aggregation: PlainAggregation = "min"
    threshold: float = Field(ge=0, le=1)


Manifest = Annotated[PolicyManifest | PrmManifest, Field(discriminator="kind")]


class ManifestFile(BaseModel):
    """Tells the two kinds of manifest apart by `kind`."""

    manifest: Manifest


class ModelVersion:
    """An immutable published version: its folder and its manifest."""

    def __init__(self, folder: Path, manifest: PolicyManifest | PrmManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.key = manifest.key
        self.config = read_json(folder / "config.json")

    @property
    def ref(self) -> ModelRef:
        """This version, pinned."""
        return ModelRef(
            name=self.manifest.name,
            version=self.manifest.version,
            weights_sha256=self.weights_sha256,
        )

    @property
    def context_limit(self) -> int:
        """The most tokens that this model reads at once."""
        return longest_read(self.config)

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights: what a `ModelRef` pins. Of shards, the hash of their hashes."""
        weights = {
            name: record.sha256
            for name, record in sorted(self.manifest.files.items())
            # An adapter's configuration scales its weights.
            if name.endswith(".safetensors") or name == "adapter_config.json"
        }
        if len(weights) == 1:
            return next(iter(weights.values()))
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in weights.items())
        return hashlib.sha256(lines.encode()).hexdigest()


def longest_read(config: Mapping[str, Any]) -> int:
    """The most tokens that a model of this configuration reads with full attention.

    Up to the width of a sliding window, attention through it and full attention are the same.
    """
    positions = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if not window or not config.get("use_sliding_window", True):
        return positions
    return min(positions, int(window))
