"""Shapes in signatures are checked in tests and cost nothing in production."""

from jaxtyping import install_import_hook

with install_import_hook(
    [
        "training.advantages",
        "training.algorithms",
        "training.coupled",
        "training.data",
        "training.divergence",
        "training.groups",
        "training.logprobs",
        "training.losses",
        "training.prefix_sets",
        "training.weighting",
    ],
    "beartype.beartype",
):
    import training.algorithms.grpo
    import training.algorithms.implicit_prm
    import training.algorithms.lambda_grpo
    import training.algorithms.prime
    import training.algorithms.prl
    import training.algorithms.repirl
    import training.algorithms.rloo
    import training.algorithms.sft
    import training.algorithms.step_bce
    import training.coupled
    import training.data
    import training.logprobs
    import training.losses  # noqa: F401
