"""A training job, as a file says it. Nothing here imports torch.

    job = read_job(Path("job.toml"))

Everything that decides what a run becomes stands in its job: two runs of one job on one machine are
the same, step by step. Closed and typed: a wrong key, or settings that cannot mean anything
together, are named with the remedy before a model is loaded.
"""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prm.errors import InvalidInput
from prm.validation import first_problem
from training.datasets import SourceSettings
from training.settings import Algorithm, ImplicitPrm, PolicySettings, Prime, StepBce
from training.settings.base import Positive, Share, set_beside
from training.tasks import AnyTask

Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "bfloat16"]


class Closed(BaseModel):
    """No key that is not known, and no change after the job was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewModel(Closed):
    """A Qwen2 model with random weights over the task's alphabet, or over bytes."""

    hidden_size: Count = 128
    num_hidden_layers: Count = 4
    num_attention_heads: Count = 4
    num_key_value_heads: Count = 2
    intermediate_size: Count = 384
    max_position_embeddings: Count = 512


class TaskData(Closed):
    """Problems made by program.

    `problems` None draws new ones in every step; a number is a fixed set, gone through again and
    again in another order.
    """

    type: Literal["task"] = "task"
    task: AnyTask
    problems: Count | None = None


class FileData(Closed):
    """Problems out of files, mixed by weight; answers are compared as mathematics, or programs run.

    `held_out` are the problems of evaluations. `separator` ends a step of a response.
    """

    type: Literal["files"] = "files"
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    held_out: tuple[SourceSettings, ...] = ()
    grading: Literal["math", "code"] = "math"
    separator: str = Field(default="\n\n", min_length=1)


class LabelledData(Closed):
    """Responses that somebody judged: JSON Lines, as docs/training-data.md has them.

    `step_bce` learns from labels of their steps, `implicit_prm` from their outcomes. A step of
    training takes `rollouts.problems` of them (of problems with their responses, where the loss is
    of pairs). `separator` joins given steps, and cuts whole responses. `held_out` are measured in
    evaluations.
    """

    type: Literal["labelled"] = "labelled"
    files: tuple[Path, ...] = Field(min_length=1)
    held_out: tuple[Path, ...] = ()
    separator: str = "\n\n"


class Server(Closed):
    """A vLLM server that writes the rollouts: its address, and which of its models.

    `model` None: the only one. `key_variable` names the environment variable that holds its key,
    where it wants one. The policy's weights are left for it in `weights_folder`, by default the
    run's own; it must see that folder under the same name. A server that is away is waited for
    `patience_s`.
    """

    url: str = Field(pattern=r"^https?://[^\s/]+(/v1)?/?$")
    model: str | None = None
    key_variable: str = "VLLM_API_KEY"
    weights_folder: Path | None = None
    patience_s: Positive = 300.0


class Rollouts(Closed):
    """How the policy writes: `per_problem` responses to each of `problems` problems a step.

    Where groups are dropped, new problems are tried up to `most_draws` times the number that is
    wanted (PRIME's online filter); with 1, a step trains on what is left.
    """

    problems: Count = 32
    per_problem: Count = 8
    temperature: Positive = 1.0
    max_tokens: Count | None = Field(default=None, description="None: what the task needs")
    max_batch: Count = 64
    most_draws: Count = 1
    server: Server | None = Field(default=None, description="None: this process writes")


class Optimizer(Closed):
    """AdamW. `lr` is reached after `warmup` (a share of all steps), then constant or a cosine to 0.

    `minibatches`: gradient steps per batch of rollouts. `micro_tokens`: tokens of one forward and
    backward; gradients add up to the same, whatever it is.
    """

    lr: Positive
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Share = 0.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: Positive = 1.0
    minibatches: Count = 1
    micro_tokens: Count = 16_384


class Adapter(Closed):
    """A LoRA adapter (arXiv 2106.09685): W + (alpha/rank)·B·A, of which only A and B train.

    `target_modules` are names of linear layers, as peft takes them; "all-linear" are all of them
    but the head.
    """

    rank: Count = 16
    alpha: Count = 32
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    @model_validator(mode="after")
    def _targets_something(self) -> Self:
        if not self.target_modules:
            raise ValueError('target_modules is empty: name some, or write "all-linear"')
        return self


class Evaluation(Closed):
    """Held-out problems, sampled every so many steps and at the end."""

    every: Count = 20
    problems: Count = 200
    per_problem: Count = 4


class TrainingJob(Closed):
    """One run. `reference` None is the policy as it was before its first step, `prm` None the same.

    With `train_policy` false rePIRL leaves the policy as it is and trains the PRM alone, from
    `demonstrations` per problem beside the rollouts.
    `evaluation` false leaves it out. `checkpoint_every`: steps between states to resume from.
    Events tell the policy's KL to the reference wherever its log-probs are at hand; with
    `reference_kl_every` they are computed for that in every so many steps.
    `threads`: of torch on a CPU, in each process. With `adapter` the policy trains as a LoRA
    adapter on weights that stay, and with `prm_adapter` the PRM. `precision` and
    `activation_checkpointing`: see `training.reading`.
    """

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    threads: Count = 1
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    policy: NewModel | Path
    adapter: Adapter | None = None
    prm_adapter: Adapter | None = None
    reference: Path | None = None
    prm: Path | None = None
    data: Annotated[TaskData | FileData | LabelledData, Field(discriminator="type")]
    algorithm: Algorithm
    train_policy: bool = True
    demonstrations: Count = 1
    rollouts: Rollouts = Rollouts()
    optimizer: Optimizer
    prm_optimizer: Optimizer | None = None
    steps: Count
    checkpoint_every: Count = 50
    evaluation: Evaluation | Literal[False] = Evaluation()
    reference_kl_every: Count | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        least = self.algorithm.least_group_size
        kind = self.algorithm.type
        if self.algorithm.trains_policy and self.rollouts.per_problem < least:
            raise ValueError(
                f"rollouts.per_problem is {self.rollouts.per_problem}, and {kind} compares each "
                f"rollout with others of its problem: set it to {least} or more"
            )
        stays = isinstance(self.algorithm, Prime) and self.algorithm.update == "never"
        if stays and (self.prm is None or self.prm_optimizer):
            raise ValueError(
                'algorithm.update "never" rewards with a PRM that was trained before: give prm, '
                "and leave prm_optimizer out"
            )
        both = self.algorithm.trains_policy and self.algorithm.trains_prm
        if both and not stays and not self.prm_optimizer:
            raise ValueError(
                f"{kind} trains a PRM beside the policy: give prm_optimizer, whose lr is usually "
                "a few times the policy's"
            )
        if not self.algorithm.trains_prm and (self.prm is not None or self.prm_optimizer):
            name = "prm" if self.prm is not None else "prm_optimizer"
            raise ValueError(f"{kind} trains no PRM: leave {name} out")
        if isinstance(self.data, FileData):
            self._check_files(self.data)
        if self.rollouts.server is not None:
            self._check_server()
        self._check_adapters()
        if not self.train_policy and kind != "repirl":
            raise ValueError(
                f"train_policy false is a form of repirl, not of {kind}; for a PRM of a policy "
                'that stays as it is take type "implicit_prm"'
            )
        if self.demonstrations != 1 and kind != "repirl":
            raise ValueError(f"{kind} learns from no demonstrations: leave demonstrations out")
        if isinstance(self.policy, NewModel) and kind != "sft":
            raise ValueError(
                f"policy: {kind} begins with a model that can already write; give a folder, for "
                'example one that an "sft" job has made'
            )
        return self

    def _check_adapters(self) -> None:
        kind = self.algorithm.type
        if self.adapter is not None and isinstance(self.policy, NewModel):
            raise ValueError("adapter: a new model's weights are random and must all train")
        if self.adapter is not None and not (self.algorithm.trains_policy and self.train_policy):
            raise ValueError(
                "adapter: the policy stays as it is in this job: leave it out (the PRM's is "
                "prm_adapter)"
            )
        if self.prm_adapter is not None and not self.algorithm.trains_prm:
            raise ValueError(f"{kind} trains no PRM: leave prm_adapter out")
        if self.prm_adapter is not None and getattr(self.algorithm, "update", None) == "never":
            raise ValueError('algorithm.update "never" trains no PRM: leave prm_adapter out')
        if getattr(self.algorithm, "read_out", None) != "head":
            return
        for name in ("prm_adapter", "activation_checkpointing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: a PRM with a head of its own trains whole; leave it out, or take "
                    'algorithm.read_out "log_ratio"'
                )
        if self.precision != "float32":
            raise ValueError(
                f'precision "{self.precision}": a PRM with a head of its own trains in float32; '
                'leave it out, or take algorithm.read_out "log_ratio"'
            )

    def _check_server(self) -> None:
        heat, settings = self.rollouts.temperature, self.algorithm
        if heat != 1.0 and isinstance(settings, PolicySettings) and settings.importance_cap > 0:
            raise ValueError(
                f"rollouts.temperature {heat:g} with rollouts.server: vLLM tells log-probs of "
                "temperature 1, which say nothing of how what it sampled differs from the "
                "policy's; set temperature to 1, or algorithm.importance_cap to 0"
            )

    @model_validator(mode="after")
    def _step_labels_come_from_somewhere(self) -> Self:
        settings = self.algorithm
        if self.reference_kl_every and not isinstance(settings, PolicySettings):
            raise ValueError(
                f"reference_kl_every: the policy of {settings.type} is not held against a "
                "reference; leave it out"
            )
        if isinstance(self.data, LabelledData):
            self._check_labelled(self.data)
        elif isinstance(settings, ImplicitPrm) and settings.step_prefix:
            raise ValueError(
                "algorithm.step_prefix is written before steps that were given, and a policy "
                'writes its own; leave it out, or set data.type to "labelled"'
            )
        elif isinstance(self.data, FileData) and getattr(settings, "labels", None) == "step":
            raise ValueError(
                'algorithm.labels "step" takes labels that are there, and files of problems have '
                'none; set labels to "soft" or "hard" (completions make them), or data.type to '
                '"labelled"'
            )
        return self

    def _check_labelled(self, data: LabelledData) -> None:
        settings = self.algorithm
        is_made = isinstance(settings, StepBce) and settings.labels != "step"
        if not isinstance(settings, StepBce | ImplicitPrm) or is_made:
            raise ValueError(
                'data.type "labelled" holds labels of responses and their steps, which '
                f"{settings.type} does not take"
                + (" with labels of its own" if is_made else "")
                + ': set algorithm to {type = "implicit_prm"} for outcomes or to {type = '
                '"step_bce"} for steps, or take other data'
            )
        sampling = tuple(name for name in Rollouts.model_fields if name != "problems")
        if given := set_beside(self.rollouts, sampling):
            raise ValueError(
                f'rollouts.{given[0]}: nothing is sampled from data.type "labelled", of which a '
                "step takes rollouts.problems responses; leave it out"
            )
        if self.evaluation and not data.held_out:
            raise ValueError(
                "evaluation needs data.held_out, labelled responses that the run does not train "
                "on; give some, or set evaluation to false"
            )

    def _check_files(self, data: FileData) -> None:
        if self.algorithm.type in ("sft", "repirl"):
            raise ValueError(
                f"{self.algorithm.type} imitates demonstrations, which files of problems have not: "
                'take a task (data.type "task")'
            )
        if self.rollouts.max_tokens is None:
            raise ValueError(
                "rollouts.max_tokens: only a task knows how long its responses are; give the most "
                "tokens of a response"
            )
        if self.evaluation and not data.held_out:
            raise ValueError(
                "evaluation needs data.held_out, problems that the run does not train on; give "
                "some, or set evaluation to false"
            )


def read_job(path: Path) -> TrainingJob:
    """The job of a TOML or JSON file; relative paths are relative to the file.

    Raises InvalidInput that names the file, the field and what is wrong with it.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw.decode())
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", param="job") from error
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}", param="job") from error
    try:
        job = TrainingJob.model_validate(content)
    except ValidationError as error:
        raise InvalidInput(f"{path}: {first_problem(error)}", param="job") from error
    job = _with_paths(job, path.parent)
    folders = {
        field: folder
        for field in ("policy", "reference", "prm")
        if isinstance(folder := getattr(job, field), Path)
    }
    for field, folder in folders.items():
        if not (folder / "config.json").is_file():
            raise InvalidInput(
                f"{path}: {field}: {folder} is no model folder: it has no config.json", param=field
            )
    return job


def _with_paths(job: TrainingJob, base: Path) -> TrainingJob:
    """The job with its paths relative to where its file stands."""
    changes: dict[str, object] = {
        field: base / folder
        for field in ("policy", "reference", "prm")
        if isinstance(folder := getattr(job, field), Path)
    }
    server = job.rollouts.server
    if server is not None and server.weights_folder is not None:
        seen = server.model_copy(update={"weights_folder": base / server.weights_folder})
        changes["rollouts"] = job.rollouts.model_copy(update={"server": seen})
    if isinstance(job.data, FileData):
        moved = {
            field: tuple(
                source.model_copy(update={"path": base / source.path})
                for source in getattr(job.data, field)
            )
            for field in ("sources", "held_out")
        }
        changes["data"] = job.data.model_copy(update=moved)
    if isinstance(job.data, LabelledData):
        there = {
            field: tuple(base / path for path in getattr(job.data, field))
            for field in ("files", "held_out")
        }
        changes["data"] = job.data.model_copy(update=there)
    return job.model_copy(update=changes)
