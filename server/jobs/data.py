"""What a job learns from: its files looked at as its method reads them, before it is accepted.

The same readers as the trainer's, so that what passes here is read there; errors name the file by
its id, and the line.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from prm.errors import InvalidInput
from prm.evaluation.gate import Metric, first_error
from prm.evaluation.labelled import Labelled, read_labelled
from server.files.store import FileStore
from server.schemas.fine_tuning import JobRequest
from server.schemas.methods import ImplicitPrmIn, RunIn, StepBceIn, run_of
from training.datasets import DatasetSettings, SourceSettings, load_problems
from training.datasets.rows import read_rows
from training.spec import FileData, LabelledData, TaskData

Kind = Literal["problems", "outcomes", "steps"]
# Fields by which a line is a response, and no problem to be solved.
_RESPONSE = ("steps", "response", "candidates")
_SNIFFED_LINES = 1


@dataclass(frozen=True, kw_only=True)
class JobData:
    """The job's data, how many problems or responses it trains on, and of the held-out ones.

    `examples` None: of a task, which makes new ones. `metrics` are the gate's that the held-out
    responses have the labels for, the best first; None where the run writes them itself.
    """

    data: TaskData | FileData | LabelledData
    examples: int | None
    held_out: int | None = None
    metrics: tuple[Metric, ...] | None = None


def read_data(request: JobRequest, files: FileStore, separator: str) -> JobData:
    """Look at all of a job's data. Raises NotFound, and InvalidInput that names file and line."""
    kind, run = request.method.type, run_of(request.method)
    if run.task is not None:
        return _of_task(request, run)
    if request.training_file is None:
        raise InvalidInput(
            f"training_file: give the id of a file (POST /v1/files), or method.{kind}.task, which "
            "makes problems by program",
            param="training_file",
        )
    if request.training_file == request.validation_file:
        raise InvalidInput(
            "validation_file: it is the training file; what is measured must be what the job does "
            "not train on",
            param="validation_file",
        )
    paths = {
        param: files.content(files.get(file_id, param).id)
        for param in ("training_file", "validation_file")
        if (file_id := getattr(request, param)) is not None
    }
    with _named(request, paths):
        is_of = _kind(kind, run, paths["training_file"])
        separator = separator if run.separator is None else run.separator
        if is_of == "problems":
            return _of_problems(paths, separator)
        return _of_responses(paths, separator, is_of)


def _of_task(request: JobRequest, run: RunIn) -> JobData:
    assert run.task is not None
    for param in ("training_file", "validation_file"):
        if getattr(request, param) is not None:
            raise InvalidInput(
                f"{param}: a task makes its own problems; leave it out, or leave out "
                f"method.{request.method.type}.task",
                param=param,
            )
    if run.separator is not None:
        raise InvalidInput(
            "separator: a task has its own; leave it out",
            param=f"method.{request.method.type}.separator",
        )
    return JobData(data=TaskData(task=run.task, problems=run.problems), examples=run.problems)


def _of_problems(paths: dict[str, Path], separator: str) -> JobData:
    counts: dict[str, int] = {}
    graded: dict[str, bool] = {}
    for param, path in paths.items():
        problems = load_problems(DatasetSettings(path=path)).problems
        tested = [problem.tests is not None for problem in problems]
        if len(set(tested)) > 1:
            raise InvalidInput(
                f"{path}: {sum(tested)} of {len(tested)} problems have tests and the others "
                "answers; a job grades by one of them: upload them apart",
                param=param,
            )
        counts[param], graded[param] = len(problems), tested[0]
    if len(set(graded.values())) > 1:
        raise InvalidInput(
            "validation_file: its problems are graded otherwise than those of the training file "
            "(by tests, and by answers); give another one",
            param="validation_file",
        )
    sources = {param: (SourceSettings(path=path),) for param, path in paths.items()}
    data = FileData(
        sources=sources["training_file"],
        held_out=sources.get("validation_file", ()),
        grading="code" if graded["training_file"] else "math",
        separator=separator or "\n\n",
    )
    return JobData(
        data=data, examples=counts["training_file"], held_out=counts.get("validation_file")
    )


def _of_responses(paths: dict[str, Path], separator: str, kind: Kind) -> JobData:
    read = {param: read_labelled(path) for param, path in paths.items()}
    for param, responses in read.items():
        for response in responses:
            _check_response(response, separator, kind, param)
    held_out = read.get("validation_file")
    for param, responses in read.items() if kind == "outcomes" else ():
        if len({response.response.correct for response in responses}) == 1:
            raise InvalidInput(
                f"{paths[param]}: all {len(responses)} responses are labelled alike, from which "
                "nobody can tell right from wrong; give others, too",
                param=param,
            )
    data = LabelledData(
        files=(paths["training_file"],),
        held_out=(paths["validation_file"],) if held_out is not None else (),
        separator=separator,
    )
    return JobData(
        data=data,
        examples=len(read["training_file"]),
        held_out=None if held_out is None else len(held_out),
        metrics=() if held_out is None else _metrics(held_out, separator),
    )


def _check_response(response: Labelled, separator: str, kind: Kind, param: str) -> None:
    if response.response.steps is None and response.response.response is None:
        raise InvalidInput(
            f"{response.where}: holds no response to learn from; give steps, or response",
            param=param,
        )
    steps = response.trajectory(separator).steps
    labels = response.labels(len(steps))
    if kind == "outcomes" and response.response.correct is None:
        raise InvalidInput(
            f"{response.where}: does not say whether the response is correct; give correct (true, "
            "false, or a number from 0 to 1), or leave the line out",
            param=param,
        )
    if kind == "steps" and all(label is None for label in labels):
        raise InvalidInput(
            f"{response.where}: no step has a label; give labels or first_error, or leave the "
            "line out",
            param=param,
        )


def _metrics(responses: Sequence[Labelled], separator: str) -> tuple[Metric, ...]:
    """The gate's metrics that these labels give a number for."""
    judged, outcomes, problems = set(), set(), set()
    for response in responses:
        labels = response.labels(len(response.trajectory(separator).steps))
        place = first_error(labels)
        if None not in labels[:place]:
            judged.add(place is None)
        correct = response.response.correct
        outcomes.add(None if correct is None else correct >= 1)
        problems.add(response.response.problem or repr(response.response.messages))
    found: list[Metric] = []
    if judged == {True, False}:
        found.append("first_error_f1")
    if outcomes == {True, False}:
        # Where most problems have a single response, there is nothing to choose among.
        found += ["best_of_n", "auroc"] if 2 * len(problems) <= len(responses) else ["auroc"]
    return tuple(found)


def _kind(method: str, run: RunIn, path: Path) -> Kind:
    """How this method reads the file."""
    if method == "prime_feedback":
        return "outcomes"
    if isinstance(run, StepBceIn) and run.labels == "step":
        return "steps"
    if isinstance(run, ImplicitPrmIn):
        rows = islice(read_rows(path), _SNIFFED_LINES)
        return "outcomes" if any(set(_RESPONSE) & row.values.keys() for row in rows) else "problems"
    return "problems"


@contextmanager
def _named(request: JobRequest, paths: dict[str, Path]) -> Iterator[None]:
    """Files go by their ids in errors, and their fields by the request's names."""
    try:
        yield
    except InvalidInput as error:
        message, param = str(error), error.param
        for name, path in paths.items():
            if str(path) in message:
                message, param = message.replace(str(path), getattr(request, name)), name
        raise InvalidInput(message, param=param) from error
