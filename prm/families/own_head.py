"""What families have in common whose checkpoint keeps a head of its own."""

from collections.abc import Mapping
from typing import Any

from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import HeadLayout, RecipeMismatch
from prm.families.texts import step_field
from prm.types import Trajectory

# Qwen2.5-Math's own system turn: its PRMs and its RM were trained under it.
MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def refuse_text(trajectory: Trajectory, text: str) -> None:
    """Raises InvalidInput for a problem or step that spells out the recipe's marker.

    The tokenizer would make a marker of it, and the count of markers would be wrong.
    """
    fields = [(f"messages[{n}].content", m.content) for n, m in enumerate(trajectory.messages)]
    fields += [(step_field(trajectory, step.index), step.text) for step in trajectory.steps]
    for field, content in fields:
        if (at := content.find(text)) >= 0:
            raise InvalidInput(
                f"the text holds the step marker {text!r} at character {at}; remove it or write it "
                "differently",
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


def check_architecture(checkpoint: Checkpoint, endings: tuple[str, ...]) -> None:
    """Raises RecipeMismatch unless the architecture's name ends in one of these."""
    if not checkpoint.architecture.endswith(endings):
        raise RecipeMismatch(
            f"architecture {checkpoint.architecture or 'none'} is not …{' or …'.join(endings)}"
        )


def check_head(checkpoint: Checkpoint, layout: HeadLayout) -> None:
    """Raises RecipeMismatch, with the shapes, for a checkpoint without a head of this layout."""
    size = checkpoint.config.get("hidden_size")
    if not isinstance(size, int):
        raise RecipeMismatch("config.json names no hidden_size")
    for name, wanted in layout.shapes(size).items():
        found = checkpoint.shapes.get(name)
        if found != wanted:
            there = "missing" if found is None else f"of shape {list(found)}"
            raise RecipeMismatch(f"{name} is {there}; this kind has one of shape {list(wanted)}")


def has_tensor(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the checkpoint holds a tensor of this name."""
    return name in checkpoint.shapes


def with_defaults(values: Any, defaults: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """A recipe's fields, those that are not given filled in by the recipe's name."""
    if not isinstance(values, dict):
        return values
    return {**defaults.get(str(values.get("name", name)), {}), **values}
