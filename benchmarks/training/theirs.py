"""`trl`'s GRPOTrainer, taking turns: `python -m benchmarks.training.theirs SETUP`.

Runs in an environment that has `trl` and nothing of ours. One `train()` goes through all turns: a
callback waits at the start of a step when a turn is over.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contestant import next_task, tell_answer
from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.training.tasks import Setup, reward_of, summed


def main() -> None:
    """Load what the argument says, then take turns of so many steps."""
    setup = Setup(**json.loads(sys.argv[1]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(setup.threads)
    turns = Turns(resident_bytes())

    class Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Hears of steps. What a step logs, it logs at its end."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin_step()

        def on_log(self, *_: Any, **told: Any) -> None:
            if "entropy" in told["logs"]:
                turns.end_step(told["logs"])

    def reward(completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        turns.rolled_out(completion_ids)
        return [
            reward_of(chat[-1]["content"], place % setup.per_problem, 1000)
            for place, chat in enumerate(completions)
        ]

    with tempfile.TemporaryDirectory(prefix="rung-bench-") as folder:
        trainer = GRPOTrainer(
            model=setup.folder,
            processing_class=AutoTokenizer.from_pretrained(setup.folder),
            reward_funcs=reward,
            args=GRPOConfig(output_dir=folder, **_settings(setup)),
            train_dataset=Dataset.from_list(
                [{"prompt": [{"role": "user", "content": text}]} for text in setup.read_prompts()]
            ),
            callbacks=[Callback()],
        )
        trainer.train()


def _settings(setup: Setup) -> dict[str, Any]:
    """Rung's settings in TRL's words; where TRL has a choice, the fastest on a CPU."""
    return {
        # The same method: one step per batch of rollouts, tokens weighted alike, no reference.
        "num_generations": setup.per_problem,
        "max_completion_length": setup.max_tokens,
        "generation_batch_size": setup.rollouts,
        "per_device_train_batch_size": setup.micro_rollouts,
        "gradient_accumulation_steps": setup.rollouts // setup.micro_rollouts,
        "num_iterations": 1,
        "beta": 0.0,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
        "max_steps": len(setup.read_prompts()) // setup.problems,
        "learning_rate": setup.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        # The same numbers, and nothing beside the work.
        "use_cpu": True,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "disable_dropout": True,
        "gradient_checkpointing": False,
        "torch_empty_cache_steps": None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_completions": False,
        "seed": 0,
    }


class Turns:
    """The parent's turns, as a run of steps that does not know of them sees them."""

    def __init__(self, base_bytes: int) -> None:
        self._base_bytes = base_bytes
        self._wanted = 0
        self._steps: list[dict[str, float]] = []
        self._started = self._rolled = 0.0
        self._tokens = self._rollouts = 0

    def begin_step(self) -> None:
        """Wait until it is our turn, and start the clock."""
        if not self._wanted:
            self._wanted = next_task()["steps"]
            self._steps = []
            reset_peak()
        self._tokens = self._rollouts = 0
        self._started = time.perf_counter()

    def rolled_out(self, completion_ids: Sequence[Sequence[int]]) -> None:
        """The step's rollouts are there, and about to be rewarded."""
        self._rolled = time.perf_counter()
        self._tokens += sum(map(len, completion_ids))
        self._rollouts += len(completion_ids)

    def end_step(self, logs: Mapping[str, float]) -> None:
        """The step is over; so is the turn, when it was its last one."""
        ended = time.perf_counter()
        self._steps.append(
            {
                "seconds": ended - self._started,
                "seconds_rollouts": self._rolled - self._started,
                "tokens": self._tokens,
                "rollouts": self._rollouts,
                "entropy": logs["entropy"],
                "grad_norm": logs["grad_norm"],
            }
        )
        self._wanted -= 1
        if not self._wanted:
            tell_answer(summed(self._steps, peak_bytes=peak_bytes() - self._base_bytes))


if __name__ == "__main__":
    main()
