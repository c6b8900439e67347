"""PQM: a value head read at a token `[PRM]` behind every numbered step.

    {instruction with the problem}\\nStep 1: {step} [PRM]\\nStep 2: {step} [PRM]…      no BOS

WindyLee0822/Process_Q_Model, `bon_eval_hf.py` and `value_model.py`; arXiv 2410.11287. The head is
one Linear with a bias on the last hidden state; raw is its value, an unbounded Q-value that only
ranks, and the score its sigmoid, as the authors weigh votes by it. They rank by the least.

Traps. The script numbers the steps itself, after it has cut "Step N:" off; so does this one, and a
step that is nothing but its number has nothing to score. The published checkpoints hold weights
alone: configuration and tokenizer are the backbone's, with `[PRM]` added last, and the tensors'
names begin with `pretrained_model.`, which the engine takes off.
"""

import re
from collections.abc import Sequence
from typing import Literal

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
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head
from prm.families.texts import (
    check_count,
    problem_of,
    refuse_control_tokens,
    refuse_marker,
    single_id,
    step_field,
)
from prm.manifest import ModelVersion
from prm.types import Trajectory

HEAD = HeadLayout(prefix="v_head.summary", outputs=1)
_NUMBER = re.compile(r"\s*Step \d+:")
_PROMPT = (
    "Below is an instruction that describes a task.\n"
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{problem}\n\n### Response: Let's think step by step\n"
)


class PqmRecipe(Recipe):
    """The prompt around `{problem}`, the marker behind a step, and whether steps are numbered."""

    name: Literal["pqm"] = "pqm"
    prompt: str = _PROMPT
    marker: str = "[PRM]"
    marker_id: int | None = None
    number_steps: bool = True


class PqmFamily(HeadFamily[PqmRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(self, version: ModelVersion, recipe: PqmRecipe, tokenizer: ChatTokenizer) -> None:
        super().__init__(version, recipe, tokenizer)
        self._marker_id = single_id(version.folder, tokenizer, recipe.marker, recipe.marker_id)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at every marker."""
        problem = problem_of(trajectory)
        self._check_least(problem, trajectory.response)
        refuse_marker(trajectory, self.recipe.marker)
        refuse_control_tokens(trajectory, self._tokenizer)
        steps = self._numbered(trajectory) if self.recipe.number_steps else _texts(trajectory)
        answer = "\n".join(f"{step} {self.recipe.marker}" for step in steps)
        ids = self._tokenizer.encode_markup(
            self.recipe.prompt.replace("{problem}", problem) + answer
        )
        positions = [place for place, token in enumerate(ids) if token == self._marker_id]
        check_count(trajectory, len(positions), self.recipe.marker)
        return self._read_at(ids, positions, width=HEAD.outputs)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        (value,) = outputs
        return value

    def _numbered(self, trajectory: Trajectory) -> list[str]:
        texts = [_NUMBER.sub("", text, count=1).strip() for text in _texts(trajectory)]
        if "" in texts:
            index = texts.index("")
            raise InvalidInput(
                f"step {index} is nothing but its number; leave it out",
                param=step_field(trajectory, index),
            )
        return [f"Step {number}: {text}" for number, text in enumerate(texts, start=1)]


def _texts(trajectory: Trajectory) -> list[str]:
    return [step.text for step in trajectory.steps]


def propose(checkpoint: Checkpoint) -> Proposal[PqmRecipe]:
    """By the value head and the marker in the vocabulary."""
    check_architecture(checkpoint, SPEC.architectures)
    check_head(checkpoint, HEAD)
    marker_id = checkpoint.tokenizer.token_id(PqmRecipe().marker)
    if marker_id is None:
        raise RecipeMismatch("the tokenizer has no token '[PRM]'")
    return Proposal(recipe=PqmRecipe(marker_id=marker_id), step_separator="\n")


SPEC = FamilySpec(
    name="pqm",
    architectures=("ForCausalLM", "ForCausalLMWithValueHead"),
    recipe=PqmRecipe,
    bind=PqmFamily,
    propose=propose,
    head=lambda _: HEAD,
)
