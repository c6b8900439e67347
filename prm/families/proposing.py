"""What families ask of a checkpoint before they propose a recipe for it."""

from prm.checkpoint import Checkpoint
from prm.families.base import HeadLayout, RecipeMismatch


def check_architecture(checkpoint: Checkpoint, endings: tuple[str, ...]) -> None:
    """Raises RecipeMismatch unless the architecture's name ends in one of these."""
    if not checkpoint.architecture.endswith(endings):
        raise RecipeMismatch(
            f"architecture {checkpoint.architecture or 'none'} is not …{' or …'.join(endings)}"
        )


def check_causal(checkpoint: Checkpoint) -> None:
    """Raises RecipeMismatch for a checkpoint that is no causal LM."""
    if not checkpoint.architecture.endswith("ForCausalLM"):
        raise RecipeMismatch(f"architecture {checkpoint.architecture} is not a causal LM")


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


def named_like(checkpoint: Checkpoint, *words: str) -> bool:
    """Whether its configuration or the last folders of its path name it by one of these words."""
    names = [str(checkpoint.config.get("_name_or_path", "")), *checkpoint.folder.parts[-4:]]
    return any(word in name.lower() for word in words for name in names)
