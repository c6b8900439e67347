"""Tiny real models, published as real versions: random weights, real tokenizer, real manifests."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prm.calibration import (
    Calibration,
    FittedAggregation,
    HeldOut,
    IsotonicMap,
    SampleCounts,
    Term,
)
from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.families.implicit import ImplicitRecipe
from prm.manifest import GoldenScore, ModelVersion, PolicyManifest, PrmManifest
from prm.registry import publish, read_version
from prm.types import Message
from training.checkpoints import ModelSize, new_model, save_model

TINY = ModelSize(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    max_position_embeddings=256,
)
POLICY, PRM = "tiny-policy", "tiny-prm"
PROBLEM = "Evaluate (3+4)*2-5"
STEPS = ("3+4=7", "7*2=14", "14-5=9", "Answer: 9")


def user(text: str) -> tuple[Message, ...]:
    """A chat of one user turn."""
    return (Message(role="user", content=text),)


def publish_tiny_models(root: Path, *, size: ModelSize = TINY) -> Path:
    """A policy and an implicit PRM with different random weights, live under `root`."""
    golden = GoldenScore(messages=user(PROBLEM), steps=STEPS, raw=(0.0,))
    _publish(
        root,
        size,
        1,
        PolicyManifest(
            name=POLICY,
            version="1",
            created=int(time.time()),
            files={},
            golden=(golden,),
            step_separator="\n",
        ),
        references=[],
    )
    publish_tiny_prm(root, "1", size=size, seed=2)
    return root


def publish_tiny_prm(
    root: Path, version: str, *, seed: int, live: bool = True, size: ModelSize = TINY
) -> ModelVersion:
    """Another version of the PRM, with weights of its own, over the policy that is there."""
    policy = read_version(root / POLICY / "1")
    golden = GoldenScore(messages=user(PROBLEM), steps=STEPS, raw=(0.0,) * len(STEPS))
    return _publish(
        root,
        size,
        seed,
        PrmManifest(
            name=PRM,
            version=version,
            created=int(time.time()),
            files={},
            golden=(golden,),
            family="implicit",
            recipe=ImplicitRecipe(beta=0.5, reference=policy.ref).model_dump(exclude_none=True),
            step_separator="\n",
            threshold=0.5,
        ),
        references=[policy],
        live=live,
    )


def calibration_of(version: ModelVersion, *, policy: str) -> Calibration:
    """A calibration of that version with numbers that are easy to foretell."""
    counts = SampleCounts(problems=2, steps=4, responses=2)
    return Calibration(
        prm=version.ref,
        policy=policy,
        created=1,
        command="by hand",
        steps=IsotonicMap(scores=(0.25, 0.75), probabilities=(0.1, 0.9)),
        response=FittedAggregation(
            intercept=0.5,
            terms=(Term(feature="logit_min", mean=0.0, scale=1.0, weight=2.0),),
            l2=0.1,
        ),
        fitted=counts,
        held_out=HeldOut(counts=counts, aggregation="min"),
    )


def _publish(
    root: Path,
    size: ModelSize,
    seed: int,
    manifest: PolicyManifest | PrmManifest,
    *,
    references: Sequence[ModelVersion],
    live: bool = True,
) -> ModelVersion:
    """Publish with golden scores computed by the engine's own code, as a trainer would."""
    staged = Path(tempfile.mkdtemp(prefix="rung-staged-"))
    try:
        save_model(new_model(size, seed=seed), staged)
        draft = ModelVersion(staged, manifest)
        models = {v.key: CausalLM.load(v.folder) for v in (draft, *references)}
        (golden,) = manifest.golden
        raw = golden_raw(draft, ChatTokenizer(staged), models, golden)
        golden = golden.model_copy(update={"raw": tuple(raw)})
        version = publish(
            root, staged, manifest.model_copy(update={"golden": (golden,)}), live=live
        )
        return read_version(version.folder)
    finally:
        shutil.rmtree(staged)
