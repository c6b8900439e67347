"""Dashboards that a run may be told to beside its `events.jsonl`. Nothing here imports torch.

Which ones is no part of a job: they change nothing that comes out.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prm.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Trackers:
    """A folder of TensorBoard's event files, and a project of trackio's; None is neither."""

    tensorboard: Path | None = None
    trackio: str | None = None

    def check(self) -> None:
        """Raises InvalidInput, before any work is done, for one that is not installed."""
        for option, package, wanted in (
            ("--tensorboard", "tensorboard", self.tensorboard is not None),
            ("--trackio", "trackio", self.trackio is not None),
        ):
            if wanted and find_spec(package) is None:
                raise InvalidInput(
                    f"{option} needs {package}, which is not installed: "
                    "pip install 'rung[trackers]'",
                    param=option,
                )

    @property
    def options(self) -> list[str]:
        """As the command line of `training.run` takes them."""
        named = {"--tensorboard": self.tensorboard, "--trackio": self.trackio}
        return [f"{option}={value}" for option, value in named.items() if value is not None]
