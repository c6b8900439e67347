"""Both models in memory before they are published, read through the code that will serve them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.families.base import Read, ReadOutput
from prm.families.implicit import ImplicitRecipe
from prm.manifest import GoldenScore, ModelRef, ModelVersion, PolicyManifest, PrmManifest
from training.data import messages_of
from training.demonstration.settings import DemoSettings
from training.demonstration.stages import Groups
from training.scoring import PrmScorer
from training.tasks import arithmetic
from training.types import Rollout

POLICY, PRM = "rung-arith-policy", "rung-arith-prm"
NUM_GOLDEN = 4

# What a manifest holds before there is anything to say.
_NO_GOLDEN = (GoldenScore(messages=(), steps=(), raw=()),)
_NO_HASH = "0" * 64


class Staged:
    """The policy and the PRM of one run, and manifests to read them by."""

    def __init__(
        self, settings: DemoSettings, version: str, created: int, policy: Path, prm: Path
    ) -> None:
        self.policy_folder, self.prm_folder = policy, prm
        self._tokenizer = ChatTokenizer(policy)
        self._models = {
            f"{name}@{version}": CausalLM.load(folder, device="cpu", dtype=torch.float32)
            for name, folder in ((POLICY, policy), (PRM, prm))
        }
        self._known: dict[Read, ReadOutput] = {}
        self.policy_manifest = PolicyManifest(
            name=POLICY,
            version=version,
            created=created,
            files={},
            golden=_NO_GOLDEN,
            step_separator=arithmetic.SEPARATOR,
        )
        self.prm_manifest = PrmManifest(
            name=PRM,
            version=version,
            created=created,
            files={},
            golden=_NO_GOLDEN,
            family="implicit",
            recipe=ImplicitRecipe(
                beta=settings.beta,
                reference=ModelRef(name=POLICY, version=version, weights_sha256=_NO_HASH),
            ).model_dump(exclude_none=True),
            step_separator=arithmetic.SEPARATOR,
            aggregation="min",
            threshold=0.5,
        )

    def scorer(self, manifest: PrmManifest) -> PrmScorer:
        """The PRM as this manifest would have it read."""
        version = ModelVersion(self.prm_folder, manifest)
        return PrmScorer(version, self._tokenizer, self._models, self._known)

    def golden(
        self, manifest: PolicyManifest | PrmManifest, groups: Groups
    ) -> tuple[GoldenScore, ...]:
        """Golden scores of a few rollouts, right and wrong ones, as this manifest reads them."""
        folder = self.policy_folder if manifest.kind == "policy" else self.prm_folder
        version = ModelVersion(folder, manifest)
        wanted = [
            GoldenScore(messages=messages_of(rollout.problem), steps=rollout.steps, raw=())
            for rollout in _examples(groups)
        ]
        return tuple(
            golden.model_copy(
                update={"raw": tuple(golden_raw(version, self._tokenizer, self._models, golden))}
            )
            for golden in wanted
        )


def _examples(groups: Groups) -> Sequence[Rollout]:
    """One rollout each of different problems, half of them right where there are any."""
    firsts = [group[0] for group in groups if group[0].steps]
    right = [rollout for rollout in firsts if rollout.is_correct][: NUM_GOLDEN // 2]
    wrong = [rollout for rollout in firsts if not rollout.is_correct]
    chosen = right + wrong[: NUM_GOLDEN - len(right)]
    assert chosen, "no rollout has a step"
    return chosen
