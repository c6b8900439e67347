"""A job is accepted: everything that can be refused is refused here, and then it is on disk.

    request → models → data → TrainingJob → what it publishes → gate → job.json → announced

Whoever asks, a route or the server itself, goes this way.
"""

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from prm.errors import InvalidInput, Overloaded, Unavailable
from prm.manifest import NAME_PATTERN, PrmManifest
from prm.registry import Registry
from server.files.store import FileStore
from server.jobs.data import read_data
from server.jobs.mapping import Asked, gate_of, training_job
from server.jobs.models import find_models, kind_of
from server.jobs.records import JobRecord, Publication, new_id, version_of
from server.jobs.store import JobStore
from server.schemas.fine_tuning import JobRequest
from server.services import Services
from server.settings import Settings
from training.served import served_as
from training.spec import TrainingJob

# When somebody who is refused for the number of jobs should ask again.
_RETRY_S = 60


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a job is looked at and kept."""

    settings: Settings
    registry: Registry
    files: FileStore
    jobs: JobStore


async def create_job(
    services: Services, request: JobRequest, key_id: str | None = None
) -> JobRecord:
    """Accept a job, or say why not; when this returns the job is on disk and announced.

    Raises UnknownModel, NotFound and InvalidInput naming the request's field, Overloaded where too
    many jobs wait, Unavailable where the disk does not take it.
    """
    place = _Place(
        settings=services.settings,
        registry=services.registry,
        files=services.files,
        jobs=services.jobs,
    )
    record = await asyncio.to_thread(_accept, place, request, key_id)
    await services.announce(record.id)
    return record


def _accept(place: _Place, request: JobRequest, key_id: str | None) -> JobRecord:
    _check_room(place)
    _check_integrations(request)
    models = find_models(request, place.registry)
    asked = Asked(
        job_id=new_id("ftjob"),
        request=request,
        models=models,
        data=read_data(request, place.files, models.separator),
        seed=secrets.randbelow(1 << 31) if request.seed is None else request.seed,
    )
    training = training_job(asked, place.settings)
    publishes = _publications(place, asked, training)
    makes_prm = any(each.role == "prm" for each in publishes)
    record = JobRecord(
        id=asked.job_id,
        created_at=int(time.time()),
        key_id=key_id,
        request=request,
        base=models.base.key,
        publishes=publishes,
        gate=gate_of(asked, training, makes_prm=makes_prm),
        training=training,
    )
    used = [name for name in (request.training_file, request.validation_file) if name is not None]
    try:
        with place.files.kept(used):
            place.jobs.create(record)
        place.jobs.tell(record.id, f"Created fine-tuning job: {record.id}")
    except OSError as error:
        raise Unavailable(
            f"the job cannot be kept: {error.strerror or error}", retry_after_s=_RETRY_S
        ) from error
    return record


def _check_room(place: _Place) -> None:
    open_jobs = [job for job in place.jobs.ids() if not place.jobs.state(job).is_finished]
    if len(open_jobs) >= place.settings.max_jobs:
        raise Overloaded(
            f"{len(open_jobs)} jobs are not finished, and this server takes at most "
            f"{place.settings.max_jobs}; wait for one, or cancel one",
            retry_after_s=_RETRY_S,
        )


def _check_integrations(request: JobRequest) -> None:
    """Raises InvalidInput for what is not installed here."""
    for place, wanted in enumerate(request.integrations or []):
        if find_spec(wanted.type) is None:
            raise InvalidInput(
                f"integrations: {wanted.type} is not installed here: pip install 'rung[trackers]'",
                param=f"integrations[{place}]",
            )


def _publications(place: _Place, asked: Asked, training: TrainingJob) -> tuple[Publication, ...]:
    """The versions that the job makes: their number is the job's own, so that no two are one."""
    models, run, version = asked.models, asked.run, version_of(asked.job_id, asked.request.suffix)
    algorithm, found = training.algorithm, []
    if algorithm.trains_policy and training.train_policy:
        name = _name(place, asked, "policy", run.policy_name, models.base.manifest.name)
        found.append(Publication(role="policy", name=name, version=version))
    if algorithm.trains_prm and getattr(algorithm, "update", None) != "never":
        served = served_as(training)
        assert served is not None
        divisor = models.reference or models.policy
        found.append(
            Publication(
                role="prm",
                name=_name(place, asked, "prm", run.prm_name, _prm_name(asked)),
                version=version,
                reference=divisor.key if served.has_reference else None,
                like=models.base.key if models.trains_further else None,
            )
        )
    if len({each.name for each in found}) < len(found):
        raise InvalidInput(
            f"prm_name and policy_name are both {found[0].name}; give each its own",
            param=f"method.{asked.kind}.prm_name",
        )
    return tuple(found)


def _prm_name(asked: Asked) -> str:
    """Of the PRM that it begins as; else the policy's with -prm behind it."""
    prm = asked.models.prm
    if prm is not None and isinstance(prm.manifest, PrmManifest):
        return prm.manifest.name
    return f"{asked.models.base.manifest.name}-prm"


def _name(
    place: _Place, asked: Asked, role: Literal["policy", "prm"], wanted: str | None, usual: str
) -> str:
    """The name that a result is a version of. Raises InvalidInput where it is of another kind."""
    name, param = wanted or usual, f"method.{asked.kind}.{role}_name"
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(f"{role}_name: {name} is too long for a name; give one", param=param)
    other = _kind_of(place, name, role)
    if other is not None:
        raise InvalidInput(
            f"{role}_name: what is called {name} is a {other}, and a {role} comes out of this job; "
            f"give another {role}_name",
            param=param,
        )
    return name


def _kind_of(place: _Place, name: str, role: str) -> str | None:
    """The other kind that a name belongs to: by a version, or by a job that is not finished."""
    there = kind_of(place.registry, name)
    if there is not None:
        return there if there != role else None
    for job_id in place.jobs.ids():
        for each in place.jobs.record(job_id).publishes:
            clashes = each.name == name and each.role != role
            if clashes and not place.jobs.state(job_id).is_finished:
                return f"{each.role} of {job_id}"
    return None
