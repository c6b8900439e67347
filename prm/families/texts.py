"""What families ask of a request's texts, and of the tokenizer that makes single tokens of some."""

from pathlib import Path

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, ModelFolderError
from prm.types import Message, Trajectory

# Qwen2.5-Math's own system turn: its PRMs and its RM were trained under it.
MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


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


def answered_ids(
    trajectory: Trajectory, answer: str, system: str | None, tokenizer: ChatTokenizer
) -> tuple[int, ...]:
    """Ids of the chat with this answer, under this system turn where the chat begins with none."""
    chat = [*trajectory.messages, Message(role="assistant", content=answer)]
    if system is not None and chat[0].role != "system":
        chat.insert(0, Message(role="system", content=system))
    return tokenizer.encode_markup(tokenizer.render(chat, add_generation_prompt=False))


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


def refuse_marker(trajectory: Trajectory, marker: str, called: str | None = None) -> None:
    """Raises InvalidInput for a problem or step that holds what the recipe marks steps with.

    It would be taken for one, and the count would be wrong. `called`: what the caller reads.
    """
    called = called or f"the step marker {marker!r}"
    fields = [(f"messages[{n}].content", m.content) for n, m in enumerate(trajectory.messages)]
    fields += [(step_field(trajectory, step.index), step.text) for step in trajectory.steps]
    for field, content in fields:
        if (at := content.find(marker)) >= 0:
            raise InvalidInput(
                f"the text holds {called} at character {at}, which this recipe writes itself; "
                "remove it or write it differently",
                param=field,
            )


def check_count(trajectory: Trajectory, found: int, marker: str) -> None:
    """Raises InvalidInput unless there is one marker per step, before anything is computed."""
    if found != (wanted := len(trajectory.steps)):
        raise InvalidInput(
            f"the model would read {found} markers {marker!r} for {wanted} steps; its template or "
            "tokenizer changes these texts",
            param="messages",
        )


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
