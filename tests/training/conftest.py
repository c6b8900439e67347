"""Shapes in signatures are checked in tests and cost nothing in production."""

from jaxtyping import install_import_hook

with install_import_hook(
    ["training.algorithms", "training.data", "training.logprobs"], "beartype.beartype"
):
    import training.algorithms.implicit_prm
    import training.algorithms.sft
    import training.data
    import training.logprobs  # noqa: F401
