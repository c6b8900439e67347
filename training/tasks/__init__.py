"""The table of tasks: one file and one line each. Nothing here imports torch."""

from typing import Annotated

from pydantic import Field

from training.tasks.arithmetic_task import Arithmetic
from training.tasks.base import Task
from training.tasks.chain_calc import ChainCalc
from training.tasks.list_functions import ListFunctions
from training.tasks.long_chain import LongChain
from training.tasks.running_sum import RunningSum
from training.tasks.shared_prefix import SharedPrefix

# A task with its settings, as a job names it: {"type": "chain_calc", "operations": [4, 4]}.
AnyTask = Annotated[
    Arithmetic | RunningSum | ChainCalc | SharedPrefix | LongChain | ListFunctions,
    Field(discriminator="type"),
]

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "running_sum": RunningSum,
    "chain_calc": ChainCalc,
    "shared_prefix": SharedPrefix,
    "long_chain": LongChain,
    "list_functions": ListFunctions,
}

__all__ = ["TASKS", "AnyTask", "Task"]
