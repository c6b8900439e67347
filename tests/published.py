"""PRM versions of any family over tiny random models, published and scored for real."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.heads import load_model
from prm.engine.model import EngineModel
from prm.engine.reader import read_now
from prm.families.base import Read, ReadOutput, Recipe
from prm.manifest import GoldenScore, ModelVersion, PolicyManifest, PrmManifest
from prm.registry import publish
from prm.scorer import Scorer
from prm.steps import join_steps
from prm.types import Message, ScoredTrajectory, Trajectory

CONFIGS: Mapping[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
}


@dataclass(frozen=True, kw_only=True)
class LocalReply:
    """What `LocalBackend` answers."""

    outputs: Sequence[ReadOutput]
    queue_ms: float = 0.0
    inference_ms: float = 0.0


class LocalBackend:
    """Loaded models in this process."""

    def __init__(self, models: Mapping[str, EngineModel]) -> None:
        self._models = models

    async def read(self, reads: Sequence[Read]) -> LocalReply:
        """See `prm.scorer.Backend`."""
        return LocalReply(outputs=read_now(self._models, reads))


def random_lm(kind: str, *, vocab: int, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A causal LM of this architecture with large random weights: scores far from one half."""
    torch.manual_seed(seed)
    config = CONFIGS[kind](
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=vocab,
        **{"max_position_embeddings": 1024, "tie_word_embeddings": False} | settings,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


PLACEHOLDER = GoldenScore(messages=(Message(role="user", content="1"),), steps=("2",), raw=(0.0,))


def publish_prm(
    root: Path,
    name: str,
    family: str,
    recipe: Recipe,
    stage: Callable[[Path], None],
    *,
    separator: str = "\n\n",
    golden: GoldenScore = PLACEHOLDER,
) -> ModelVersion:
    """Publish what `stage` writes into a folder; an engine takes it if `golden` is right."""
    manifest = PrmManifest(
        name=name,
        version="1",
        created=0,
        files={},
        golden=(golden,),
        family=family,
        recipe=recipe.model_dump(mode="json"),
        step_separator=separator,
        threshold=0.5,
    )
    return _publish(root, manifest, stage)


def computed_golden(version: ModelVersion, problem: str, steps: Sequence[str]) -> GoldenScore:
    """The golden score of this item, as a publisher would compute it."""
    blank = GoldenScore(
        messages=(Message(role="user", content=problem),), steps=tuple(steps), raw=()
    )
    models = {version.key: load_model(version)}
    raw = golden_raw(version, ChatTokenizer(version.folder), models, blank)
    return blank.model_copy(update={"raw": tuple(raw)})


def publish_policy(root: Path, name: str, stage: Callable[[Path], None]) -> ModelVersion:
    """Publish what `stage` writes into a folder as a policy."""
    manifest = PolicyManifest(name=name, version="1", created=0, files={}, golden=(PLACEHOLDER,))
    return _publish(root, manifest, stage)


def _publish(
    root: Path, manifest: PolicyManifest | PrmManifest, stage: Callable[[Path], None]
) -> ModelVersion:
    staged = Path(tempfile.mkdtemp(prefix="rung-staged-"))
    try:
        stage(staged)
        return publish(root, staged, manifest)
    finally:
        shutil.rmtree(staged)


def scorer_of(version: ModelVersion, *others: ModelVersion) -> Scorer:
    """A scorer over the version and those it is read with, all loaded here."""
    models = {v.key: load_model(v) for v in (version, *others)}
    return Scorer(version, LocalBackend(models))


async def score_items(
    scorer: Scorer, items: Sequence[tuple[str, Sequence[str]]]
) -> list[ScoredTrajectory]:
    """Scores of (problem, steps) items, in one request."""
    trajectories = []
    for problem, steps in items:
        response, placed = join_steps(steps, scorer.step_separator)
        messages = (Message(role="user", content=problem),)
        trajectories.append(Trajectory(messages=messages, response=response, steps=placed))
    return list((await scorer.score(trajectories)).items)
