"""PRMs that are token classifiers: TRL's PRMTrainer, Hugging Face H4, PURE, and rePIRL's head.

    [bos] {problem}{step 1}{separator}{step 2}{separator}…       every part tokenised alone

AutoModelForTokenClassification: one Linear, read at the last token of each step's separator, where
training put the step's label (TRL, `trl/experimental/prm`, `tokenize_row`); where the recipe has no
separator, at the step's own last token. With two classes raw = l₁ − l₀, so that the score is the
softmax of the two and LABEL_1 is "correct"; with one output raw is that output and the score its
sigmoid.

| recipe | separator | BOS | steps | outputs |
| --- | --- | --- | --- | --- |
| `trl` | line end (TRL's default) | the tokenizer's, if any | as they are | 2 |
| `h4` | blank line (HuggingFaceH4/…-PRM-0.2) | the tokenizer's, if any | as they are | 2 |
| `pure` | blank line | none | white space at the end cut | 2 |
| `repirl` | blank line | the tokenizer's, if any | as they are | 1 |

PURE's own number is p₁ − p₀ = 2 · score − 1, its threshold 0 is the score's 0.5. Its evaluation
scripts are copied with a line end for separator as well; who has such a checkpoint sets it.

Traps. Step and separator tokenised together merge into other tokens than the model was trained on
(huggingface/ProcessBench PR 12: F1 56.1 against about 60). No separator is looked for, so one that
stands inside a step changes nothing.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import (
    EncodedTrajectory,
    FamilySpec,
    HeadLayout,
    Proposal,
    Recipe,
    RecipeMismatch,
    Settings,
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head, named_like
from prm.families.texts import problem_of, step_field
from prm.manifest import ModelVersion
from prm.types import Trajectory


class TokenHeadRecipe(Recipe):
    """What stands behind a step and before the problem, and the head's outputs.

    `separator` may be empty, as of texts in which each character is a step. `bias` tells whether
    the head has one. `strip_ends` cuts white space at the end of steps.
    """

    name: Literal["trl", "h4", "pure", "repirl"] = "trl"
    separator: str = "\n\n"
    bos: bool = True
    strip_ends: bool = False
    outputs: Literal[1, 2] = 2
    bias: bool = True

    by_name: ClassVar[Settings] = {
        "trl": {"separator": "\n"},
        "pure": {"bos": False, "strip_ends": True},
        "repirl": {"outputs": 1},
    }

    @property
    def head(self) -> HeadLayout:
        """The classifier's tensors."""
        return HeadLayout(prefix="score", outputs=self.outputs, bias=self.bias)


class TokenHeadFamily(HeadFamily[TokenHeadRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: TokenHeadRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._separator = tokenizer.encode_markup(recipe.separator)
        bos_id = tokenizer.token_id(tokenizer.bos_text) if recipe.bos else None
        self._start = () if bos_id is None else (bos_id,)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at the last token of every separator."""
        problem = problem_of(trajectory)
        self._check_least(problem, trajectory.response)
        self._tokenizer.refuse_control_tokens(problem, param="messages[0].content")
        ids = [*self._start, *self._tokenizer.encode_markup(problem)]
        positions = []
        for step in trajectory.steps:
            text = step.text.rstrip() if self.recipe.strip_ends else step.text
            tokens = (*self._tokenizer.encode_response(text).ids, *self._separator)
            if not tokens:
                raise InvalidInput(
                    f"step {step.index} has no token, and this recipe writes none behind it",
                    param=step_field(trajectory, step.index),
                )
            ids += tokens
            positions.append(len(ids) - 1)
        return self._read_at(ids, positions, width=self.recipe.outputs)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        return outputs[1] - outputs[0] if len(outputs) == 2 else outputs[0]


def propose(checkpoint: Checkpoint) -> Proposal[TokenHeadRecipe]:
    """By class and head; whose it is by its name. The separator stands in no file: TRL's default.

    A head of one output is rePIRL's.
    """
    check_architecture(checkpoint, SPEC.architectures)
    outputs = checkpoint.shapes.get("score.weight", (0,))[0]
    if outputs not in (1, 2):
        raise RecipeMismatch(f"score.weight has {outputs} outputs; this kind has 1 or 2")
    if outputs == 1:
        name = "repirl"
    elif named_like(checkpoint, "pure"):
        name = "pure"
    else:
        name = "h4" if named_like(checkpoint, "huggingfaceh4", "prm-0.2") else "trl"
    name = checkpoint.asked.get("name", name)
    bias = "score.bias" in checkpoint.shapes
    recipe = TokenHeadRecipe.model_validate({"name": name, "bias": bias})
    check_head(checkpoint, recipe.head)
    return Proposal(recipe=recipe, step_separator=recipe.separator)


SPEC = FamilySpec(
    name="token_head",
    architectures=("ForTokenClassification",),
    recipe=TokenHeadRecipe,
    bind=TokenHeadFamily,
    propose=propose,
    head=lambda recipe: recipe.head,
)
