"""What a PRM family is: how a trajectory becomes tokens, and model outputs become step scores.

A family is pure: it names the reads that it wants of its models and maps what comes back. Running
the models is a backend's business, so a family can be tested on numbers worked out by hand.

In every family a step's `raw` number is a logit: its score is σ(raw), in [0, 1], higher is better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prm.aggregation import PlainAggregation
from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import ModelFolderError
from prm.manifest import ModelRef, ModelVersion, PrmManifest
from prm.types import Step, StepScore, TokenRewards, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobRead:
    """Ask for log p(ids[t] | ids[:t]) of every t ≥ first, in float32, under one model.

    `raw`: what the checkpoint's own head over the vocabulary says of ids[t] there, as it is.
    """

    model: str
    ids: tuple[int, ...]
    first: int
    raw: bool = False

    @property
    def width(self) -> int:
        """Numbers per value."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRead:
    """Ask what a model's head says at these positions, ascending; raw, in float32.

    `labels` are the vocabulary ids whose logits are wanted of a causal LM; empty for a checkpoint
    with a head of its own, all of whose `width` outputs are wanted.
    """

    model: str
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    width: int
    labels: tuple[int, ...] = ()


Read = LogprobRead | HeadRead


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOutput:
    """What one read found: `width` numbers per target token or position, flat.

    `cached_tokens` of its ids cost no forward; the first `cached_values` of its values were not
    computed for this request.
    """

    values: tuple[float, ...]
    cached_tokens: int = 0
    cached_values: int = 0


# Fields of a family's recipe, by the recipe's name.
Settings = Mapping[str, Mapping[str, Any]]


class Recipe(BaseModel):
    """A family's settings, as a manifest holds them. `name` and `revision` stand in every answer.

    `context_limit` is the longest item that the model was trained for, where that is less than what
    its configuration allows. `by_name` fills in, by a recipe's name, what is not stated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    by_name: ClassVar[Settings] = MappingProxyType({})

    name: str
    revision: int = Field(default=1, ge=1)
    context_limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, stated: Any) -> Any:
        if not isinstance(stated, Mapping):
            return stated
        name = stated.get("name", cls.model_fields["name"].default)
        return {**cls.by_name.get(str(name), {}), **stated}

    @property
    def label(self) -> str:
        """`name/revision`."""
        return f"{self.name}/{self.revision}"

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """Other versions that this one is read together with."""
        return ()

    @property
    def adapter_base(self) -> ModelRef | None:
        """The version whose weights this one's adapter is run on; None for weights of its own."""
        return None

    @property
    def raw_scale(self) -> float:
        """What the model's own numbers are multiplied by on their way to a raw score.

        An error of the model's is as much larger or smaller in the score.
        """
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayout:
    """A checkpoint's own head: `prefix` of its tensors, and the number of its outputs.

    Linear layers are named by `layers`: ("",) is `score.weight`; ("0", "2") is `score.0.weight`,
    a ReLU, `score.2.weight`. All layers have a bias, or none has; all but the last are as wide as
    the model.
    """

    prefix: str
    outputs: int
    layers: tuple[str, ...] = ("",)
    bias: bool = True

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers' tensor names, without `.weight` and `.bias`."""
        return tuple(f"{self.prefix}.{layer}" if layer else self.prefix for layer in self.layers)

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of this head on a model with hidden states of this size."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.layer_names:
            outputs = self.outputs if name == self.layer_names[-1] else size
            shapes[f"{name}.weight"] = (outputs, size)
            if self.bias:
                shapes[f"{name}.bias"] = (outputs,)
        return shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTrajectory:
    """A trajectory's tokens and the reads that score it.

    `step_values[k]` is how many values of each read the scores of steps 0 to k need. `steps` are
    the steps that get a score; None is those of the trajectory.
    """

    ids: tuple[int, ...]
    reads: tuple[Read, ...]
    step_values: tuple[int, ...]
    steps: tuple[Step, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScores:
    """Step scores in step order, and per-token rewards where the family has them."""

    steps: tuple[StepScore, ...]
    tokens: TokenRewards | None = None


class Family(Protocol):
    """One PRM kind, bound to one version's tokenizer and recipe."""

    @property
    def recipe(self) -> Recipe:
        """How the version is read."""
        ...

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """Tokens and reads. Raises InvalidInput when the model cannot read the trajectory."""
        ...

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """Step scores from the outputs of `encoded.reads`, in the same order."""
        ...


R = TypeVar("R", bound=Recipe)


class RecipeMismatch(Exception):
    """A checkpoint is not of a family. The message says what differs, with the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(Generic[R]):
    """How a checkpoint would be read, and what its authors split, decide and rank by.

    `is_certain` is False where the files fit and would fit other causal LMs as well: such a
    family is taken only when it is named.
    """

    recipe: R
    step_separator: str = "\n\n"
    aggregation: PlainAggregation = "min"
    threshold: float = 0.5
    is_certain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec(Generic[R]):
    """How a family presents itself before any version of it is loaded.

    `bind` makes the family of one version. `propose` makes the recipe of a checkpoint of this kind
    and raises RecipeMismatch for any other. `head` tells where a checkpoint keeps its head; None
    reads the vocabulary's logits.

    `writes` is True where versions write before they are read: what `bind` makes then reads them
    with nothing written, as their golden scores are; `prm/generative_scorer.py` scores with them.
    `has_cumulative`: step scores come with their running sum. `as_published` makes of a recipe the
    one that is read at the step boundaries of published numbers, where these are others.
    """

    name: str
    architectures: tuple[str, ...]
    recipe: type[R]
    bind: Callable[[ModelVersion, R, ChatTokenizer], Family]
    propose: Callable[[Checkpoint], "Proposal[R]"]
    head: Callable[[R], HeadLayout | None] = field(default=lambda _: None)
    writes: bool = False
    has_cumulative: bool = False
    as_published: Callable[[R], R] | None = None

    def reads_architecture(self, architecture: str) -> bool:
        """Whether a checkpoint of this architecture can be read this way, by its name's end."""
        return architecture.endswith(self.architectures)

    def recipe_of(self, version: ModelVersion) -> R:
        """The version's recipe. Raises ModelFolderError naming the field that does not fit."""
        assert isinstance(version.manifest, PrmManifest)
        try:
            return self.recipe.model_validate(version.manifest.recipe)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(["recipe", *map(str, first["loc"])])
            raise ModelFolderError(
                version.folder / "manifest.json", f"field {place}: {first['msg']}"
            ) from error

    def load(self, version: ModelVersion, tokenizer: ChatTokenizer) -> Family:
        """The family, bound to a version. Raises ModelFolderError when its recipe does not fit."""
        return self.bind(version, self.recipe_of(version), tokenizer)


def sigmoid(value: float) -> float:
    """1 / (1 + e^-value), without overflow at either end."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


def step_score(raw: float) -> StepScore:
    """The score of a logit."""
    return StepScore(raw=raw, score=sigmoid(raw))
