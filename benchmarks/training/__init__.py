"""GRPO's loop beside `trl`'s GRPOTrainer, and what λ-GRPO and PRIME add to a step."""
