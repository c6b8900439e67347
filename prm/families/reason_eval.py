"""ReasonEval: three classes per step (negative, neutral, positive), read where the step ends.

    Question:\\n{problem}\\nAnswer:\\nLet's think step by step.\\n{step 1}{step 2}…

GAIR-NLP/ReasonEval, `codes/examples.py`; arXiv 2404.05692. Steps are tokenised with a control token
between them, the tokenizer's padding token, which is then taken out: the model reads the steps run
together. The head is one Linear(3). Validity is p₁ + p₂, and that is a step's score here: raw =
log(e^l₁ + e^l₂) − l₀. (Redundancy, p₁, is another question and has no place in a step's score.) The
authors rank by the least validity.

Traps. Where the padding token is also the BOS token (ReasonEval-7B), the authors' script takes the
BOS out with the separators and puts it back without moving their positions: it reads one token
before each step's last. That is what its published numbers are, so it is what is read here; a
34B's padding token is its own, and it is read at the last. The bias is named `use_bias` in one
configuration and `bias` in the other; the tensors decide.
"""

import math
from collections.abc import Sequence
from typing import Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilySpec,
    HeadLayout,
    Proposal,
    Recipe,
    RecipeMismatch,
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head
from prm.families.texts import (
    check_count,
    problem_of,
    refuse_control_tokens,
    refuse_marker,
    single_id,
)
from prm.files import read_json
from prm.manifest import ModelVersion
from prm.types import Trajectory

CLASSES = 3


class ReasonEvalRecipe(Recipe):
    """The prompt around `{problem}`, and the token that parts steps while they are tokenised.

    `bias` tells whether the head has one.
    """

    name: Literal["reason-eval"] = "reason-eval"
    prompt: str = "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"
    separator: str = "<s>"
    bias: bool = False

    @property
    def head(self) -> HeadLayout:
        """The head's tensors."""
        return HeadLayout(prefix="score_head", outputs=CLASSES, bias=self.bias)


class ReasonEvalFamily(HeadFamily[ReasonEvalRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: ReasonEvalRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._separator_id = single_id(version.folder, tokenizer, recipe.separator, None)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, where the authors' script reads each step."""
        problem = problem_of(trajectory)
        steps = [step.text for step in trajectory.steps]
        self._check_least(problem, *steps)
        refuse_marker(trajectory, self.recipe.separator)
        refuse_control_tokens(trajectory, self._tokenizer)
        parts = [self.recipe.prompt.replace("{problem}", problem), *steps]
        text = "".join(part + self.recipe.separator for part in parts)
        ids, ends = self._without_separators(
            self._tokenizer.encode_markup(text, add_special_tokens=True)
        )
        check_count(trajectory, len(ends), self.recipe.separator)
        return self._read_at(ids, ends, width=CLASSES)

    def _without_separators(self, marked: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids that the model reads, and the positions after the prompt's own."""
        ids: list[int] = []
        ends = []
        for token in marked:
            if token == self._separator_id:
                ends.append(len(ids) - 1)
            else:
                ids.append(token)
        if marked[0] == self._separator_id:
            # A BOS that is the separator too: put back, and the positions left where they were.
            return [self._separator_id, *ids], ends[2:]
        return ids, ends[1:]

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        negative, neutral, positive = outputs
        return validity_logit(negative, neutral, positive)


def validity_logit(negative: float, neutral: float, positive: float) -> float:
    """The logit of p(neutral) + p(positive) under a softmax of the three.

    >>> round(validity_logit(0.0, 0.0, 0.0), 4)  # log(2/3 : 1/3)
    0.6931
    """
    highest = max(neutral, positive)
    return highest + math.log1p(math.exp(min(neutral, positive) - highest)) - negative


def propose(checkpoint: Checkpoint) -> Proposal[ReasonEvalRecipe]:
    """By the head; the separator is the tokenizer's padding token."""
    check_architecture(checkpoint, SPEC.architectures)
    bias = "score_head.bias" in checkpoint.shapes
    named = read_json(checkpoint.folder / "tokenizer_config.json").get("pad_token")
    separator = named.get("content") if isinstance(named, dict) else named
    check_head(checkpoint, ReasonEvalRecipe(bias=bias).head)
    if not isinstance(separator, str) or not separator:
        raise RecipeMismatch("tokenizer_config.json names no pad_token to part the steps by")
    recipe = ReasonEvalRecipe(separator=separator, bias=bias)
    return Proposal(recipe=recipe, step_separator="\n")


SPEC = FamilySpec(
    name="reason_eval",
    architectures=("ReasonEval_7B", "ReasonEval_34B", "ForScore"),
    recipe=ReasonEvalRecipe,
    bind=ReasonEvalFamily,
    propose=propose,
    head=lambda recipe: recipe.head,
)
