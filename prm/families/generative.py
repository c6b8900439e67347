"""Generative PRMs: causal LMs that write a verification and then a verdict, read as a token's odds.

| recipe | authors | verdict of step k | after |
| --- | --- | --- | --- |
| `genprm` | RyanLiu112/GenPRM | P(Yes) against P(No) | its own turn of a conversation |
| `thinkprm` | mukhal/ThinkPRM | P(yes) against P(no) | a chain over the steps up to k |

A step's score is the mean over `samples` of them, its raw number that mean's logit. The rest stands
in `verdicts.py`, `genprm.py` and `thinkprm.py`; `prm/generative_scorer.py` scores with them.
"""

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import FamilySpec, Proposal, RecipeMismatch
from prm.families.genprm import GenPrm
from prm.families.proposing import check_causal, named_like
from prm.families.thinkprm import ThinkPrm
from prm.families.verdicts import GenerativeRecipe
from prm.manifest import ModelVersion


def propose(checkpoint: Checkpoint) -> Proposal[GenerativeRecipe]:
    """By name alone: nothing in a checkpoint tells it from any other causal LM."""
    check_causal(checkpoint)
    asked = checkpoint.asked.get("name")
    for name in ("genprm", "thinkprm"):
        if name == asked or (asked is None and named_like(checkpoint, name)):
            recipe = GenerativeRecipe.model_validate({"name": name})
            return Proposal(recipe=recipe, is_certain=False)
    raise RecipeMismatch(
        "nothing in a checkpoint tells a generative PRM; name --recipe genprm or --recipe thinkprm"
    )


def load_generative(version: ModelVersion, tokenizer: ChatTokenizer) -> GenPrm | ThinkPrm:
    """The recipe, bound to a version. Raises ModelFolderError when the tokenizer does not fit."""
    return _bind(version, SPEC.recipe_of(version), tokenizer)


def _bind(
    version: ModelVersion, recipe: GenerativeRecipe, tokenizer: ChatTokenizer
) -> GenPrm | ThinkPrm:
    kind = GenPrm if recipe.name == "genprm" else ThinkPrm
    return kind(version, recipe, tokenizer)


SPEC = FamilySpec(
    name="generative",
    architectures=("ForCausalLM",),
    recipe=GenerativeRecipe,
    bind=_bind,
    propose=propose,
    writes=True,
)
