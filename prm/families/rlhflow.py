"""RLHFlow's PRMs: a causal LM in a chat where every assistant turn is one `+`.

    user: {problem} {step 1} · assistant: + · user: {step 2} · assistant: + · …

RLHFlow/RLHF-Reward-Modeling, `math-rm/prm_evaluate.py`: the label of a step is predicted just
before the `+` that answers it, among `+` and `-`; raw = l₊ − l₋, so that the score is the softmax
of the two. The turn before is `+` whatever the model thinks of it. The authors render and run one
chat per step and read the third token from its end; a causal model says the same in one forward
over the longest chat, which is what is done here.

Traps. The position is found from the characters of the answers, never by searching for `+`, which
steps are full of. Steps are stripped, as in the authors' script. Problem and first step are joined
by a space there and by a blank line in the ProcessBench script, hence `problem_joint`.
"""

from collections.abc import Sequence
from typing import Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import EncodedTrajectory, FamilySpec, Proposal, Recipe, RecipeMismatch
from prm.families.bound import HeadFamily
from prm.families.proposing import check_causal, named_like
from prm.families.texts import (
    problem_of,
    refuse_control_tokens,
    refuse_marker,
    single_id,
    step_field,
)
from prm.manifest import ModelVersion
from prm.types import Message, Trajectory

# One character for an answer while its place is sought; no text may hold it.
PLACEHOLDER = "\ue000"
_MISTRAL = "prm-mistral-data"


class RlhflowRecipe(Recipe):
    """The two answers, and what joins the problem and the first step."""

    name: Literal["rlhflow-mistral", "rlhflow-deepseek"] = "rlhflow-deepseek"
    good: str = "+"
    bad: str = "-"
    problem_joint: Literal[" ", "\n\n"] = " "


class RlhflowFamily(HeadFamily[RlhflowRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: RlhflowRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._good = single_id(version.folder, tokenizer, recipe.good, None)
        self._bad = single_id(version.folder, tokenizer, recipe.bad, None)
        try:
            self._place("0", ["1", "2"])
        except ValueError as error:
            raise ModelFolderError(version.folder / "tokenizer.json", str(error)) from error

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, just before every answer."""
        problem = problem_of(trajectory)
        refuse_control_tokens(trajectory, self._tokenizer)
        refuse_marker(trajectory, PLACEHOLDER, "the private-use character U+E000")
        steps = [step.text.strip() for step in trajectory.steps]
        self._check_least(problem, *steps)
        try:
            ids, answers = self._place(problem, steps)
        except ValueError as error:
            field = step_field(trajectory, 0).partition("[")[0]
            raise InvalidInput(str(error), param=field) from error
        self.check_length(len(ids))
        positions = [answer - 1 for answer in answers]
        return self._read_at(ids, positions, width=2, labels=(self._good, self._bad))

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        good, bad = outputs
        return good - bad

    def _place(self, problem: str, steps: Sequence[str]) -> tuple[tuple[int, ...], list[int]]:
        """The chat's ids, and where its answers stand. Raises ValueError for a lost answer."""
        turns = [problem + self.recipe.problem_joint + steps[0], *steps[1:]]
        messages = [
            message
            for turn in turns
            for message in (
                Message(role="user", content=turn),
                Message(role="assistant", content=PLACEHOLDER),
            )
        ]
        text = self._tokenizer.render(messages, add_generation_prompt=False)
        places = [at for at, character in enumerate(text) if character == PLACEHOLDER]
        if len(places) != len(steps):
            raise ValueError(
                f"the chat template writes {len(places)} answers for {len(steps)} steps"
            )
        encoded = self._tokenizer.encode_marked(text.replace(PLACEHOLDER, self.recipe.good))
        answers = {
            span: place
            for place, (token, span) in enumerate(
                zip(encoded.ids, encoded.char_offsets, strict=True)
            )
            if token == self._good
        }
        found = [answers.get((at, at + 1)) for at in places]
        if None in found:
            raise ValueError(
                f"the answer {self.recipe.good!r} to step {found.index(None)} is not one token "
                "with an id of its own in the chat"
            )
        return encoded.ids, [answer for answer in found if answer is not None]


def propose(checkpoint: Checkpoint) -> Proposal[RlhflowRecipe]:
    """Any chat LM with `+` and `-` as single tokens; Mistral-Data by its name alone."""
    check_causal(checkpoint)
    for text in ("+", "-"):
        if len(ids := checkpoint.tokenizer.encode_markup(text)) != 1:
            raise RecipeMismatch(f"{text!r} is {len(ids)} tokens; the recipe needs one")
    try:
        checkpoint.tokenizer.render(
            [Message(role="user", content="0")], add_generation_prompt=False
        )
    except (InvalidInput, ModelFolderError) as error:
        raise RecipeMismatch(f"the recipe is a chat, and this folder has none: {error}") from error
    asked = checkpoint.asked.get("name")
    is_mistral = asked == "rlhflow-mistral" if asked else named_like(checkpoint, _MISTRAL)
    return Proposal(
        recipe=RlhflowRecipe(name="rlhflow-mistral" if is_mistral else "rlhflow-deepseek"),
        step_separator="\n" if is_mistral else "\n\n",
        aggregation="mean",
        is_certain=named_like(checkpoint, _MISTRAL, "prm-deepseek-data"),
    )


SPEC = FamilySpec(
    name="rlhflow",
    architectures=("ForCausalLM",),
    recipe=RlhflowRecipe,
    bind=RlhflowFamily,
    propose=propose,
)
