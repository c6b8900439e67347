"""What families that read a problem and steps have in common: their texts, and single tokens."""

from pathlib import Path

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.types import Trajectory


def problem_of(trajectory: Trajectory) -> str:
    """The problem of a family whose recipe has no other turn.

    Raises InvalidInput for anything but one user turn: the model was never shown more.
    """
    messages = trajectory.messages
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise InvalidInput(
            f"this PRM reads one problem, a single user turn, and these turns are {roles}; "
            "put what it must know into one user turn",
            param="messages",
        )
    return messages[0].content


def step_field(trajectory: Trajectory, index: int) -> str:
    """The request field that step `index` came in."""
    return "response" if trajectory.is_cut else f"steps[{index}]"


def refuse_control_tokens(trajectory: Trajectory, tokenizer: ChatTokenizer) -> None:
    """Raises InvalidInput for a control token spelt out in any text.

    For recipes that tokenise texts and markup as one string, where it would become one.
    """
    for position, message in enumerate(trajectory.messages):
        tokenizer.refuse_control_tokens(message.content, param=f"messages[{position}].content")
    for step in trajectory.steps:
        tokenizer.refuse_control_tokens(step.text, param=step_field(trajectory, step.index))


def single_id(folder: Path, tokenizer: ChatTokenizer, text: str, expected: int | None) -> int:
    """The id of a text that must be one token, and `expected` where the recipe names an id.

    Raises ModelFolderError: the folder holds another tokenizer than the recipe was written for.
    """
    path = folder / "tokenizer.json"
    ids = tokenizer.encode_markup(text)
    if len(ids) != 1:
        raise ModelFolderError(path, f"{text!r} is {len(ids)} tokens here; the recipe needs one")
    if expected not in (None, ids[0]):
        raise ModelFolderError(
            path, f"{text!r} is one token with id {expected} in the recipe; here it is {ids[0]}"
        )
    return ids[0]


def named_like(checkpoint: Checkpoint, *words: str) -> bool:
    """Whether its configuration or the last folders of its path name it by one of these words."""
    names = [str(checkpoint.config.get("_name_or_path", "")), *checkpoint.folder.parts[-4:]]
    return any(word in name.lower() for word in words for name in names)
