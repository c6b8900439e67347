"""Everything that decides what the demonstration models become."""

from dataclasses import dataclass, field

from training.checkpoints import ModelSize
from training.tasks import arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """One run. The defaults made the bundled models.

    `slip_probability`: how often an operation that a slip applies to is done wrongly in the
    solutions that the policy imitates. `beta`: 0.05 in the paper, whose responses have hundreds of
    tokens; over 40 tokens it could not bring βs near a label.
    """

    seed: int = 0
    threads: int = 2
    size: ModelSize = field(default_factory=ModelSize)
    operations: tuple[int, int] = arithmetic.OPERATIONS
    slip_probability: float = 0.5
    sft_steps: int = 3400
    sft_batch_size: int = 32
    sft_lr: float = 2e-3
    prm_problems: int = 3000
    prm_samples: int = 8
    prm_epochs: int = 2
    prm_batch_size: int = 64
    prm_lr: float = 5e-4
    beta: float = 0.5
    validation_problems: int = 200
    test_problems: int = 500
    test_samples: int = 16

    @classmethod
    def quick(cls) -> "DemoSettings":
        """Seconds instead of minutes, through the same code; the models learn nothing."""
        return cls(
            threads=1,
            size=ModelSize(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=32,
            ),
            sft_steps=20,
            prm_problems=8,
            prm_samples=4,
            prm_epochs=1,
            validation_problems=8,
            test_problems=8,
            test_samples=4,
        )
