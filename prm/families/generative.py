"""Generative PRMs: causal LMs that write a verification and then a verdict, read as a token's odds.

| recipe | authors | verdict of step k | after |
| --- | --- | --- | --- |
| `genprm` | RyanLiu112/GenPRM | P(Yes) against P(No) | its own turn of a conversation |
| `thinkprm` | mukhal/ThinkPRM | P(yes) against P(no) | a chain over the steps up to k |

A step's score is the mean over `samples` of them, its raw number that mean's logit. The rest stands
in `verdicts.py`, `genprm.py` and `thinkprm.py`; `prm/generative.py` runs them.
"""

from collections.abc import Sequence

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    Proposal,
    ReadOutput,
    RecipeMismatch,
    step_score,
)
from prm.families.genprm import GenPrm
from prm.families.texts import named_like
from prm.families.thinkprm import ThinkPrm
from prm.families.verdicts import GenerativeRecipe, verdict
from prm.manifest import ModelVersion
from prm.types import Trajectory


class SilentFamily:
    """A generative version, read with nothing written: see `Verifier.silent`."""

    def __init__(
        self, version: ModelVersion, recipe: GenerativeRecipe, tokenizer: ChatTokenizer
    ) -> None:
        self.recipe = recipe
        self._verifier = _verifier(version, recipe, tokenizer)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read per step."""
        reads = tuple(self._verifier.silent(trajectory))
        return EncodedTrajectory(ids=reads[-1].ids, reads=reads, step_values=(1,) * len(reads))

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        temperature = self.recipe.decision_temperature
        raws = (verdict(output.values, temperature) for output in outputs)
        return FamilyScores(steps=tuple(map(step_score, raws)))


def propose(checkpoint: Checkpoint) -> Proposal[GenerativeRecipe]:
    """By name alone: nothing in a checkpoint tells it from any other causal LM."""
    if not checkpoint.architecture.endswith(SPEC.architectures):
        raise RecipeMismatch(f"architecture {checkpoint.architecture} is not a causal LM")
    asked = checkpoint.asked.get("name")
    for name in ("genprm", "thinkprm"):
        if name == asked or (asked is None and named_like(checkpoint, name)):
            recipe = GenerativeRecipe.model_validate({"name": name})
            return Proposal(recipe=recipe, is_certain=False)
    raise RecipeMismatch(
        "nothing in a checkpoint tells a generative PRM; name --recipe genprm or --recipe thinkprm"
    )


def load_verifier(version: ModelVersion, tokenizer: ChatTokenizer) -> GenPrm | ThinkPrm:
    """The recipe, bound to a version. Raises ModelFolderError when the tokenizer does not fit."""
    return _verifier(version, SPEC.recipe_of(version), tokenizer)


def _verifier(
    version: ModelVersion, recipe: GenerativeRecipe, tokenizer: ChatTokenizer
) -> GenPrm | ThinkPrm:
    kind = GenPrm if recipe.name == "genprm" else ThinkPrm
    return kind(version, recipe, tokenizer)


SPEC = FamilySpec(
    name="generative",
    architectures=("ForCausalLM",),
    recipe=GenerativeRecipe,
    bind=SilentFamily,
    propose=propose,
    writes=True,
)
