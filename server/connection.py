"""Where the command line's questions go: to a running server, or to an engine started here."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from prm.errors import InvalidInput, Unavailable, UnknownModel
from prm.manifest import ModelRef, ModelVersion, PrmManifest
from prm.registry import Registry
from prm.validation import first_problem
from server.schemas.feedback import FeedbackReport
from server.schemas.models import ModelList, PrmOut
from server.schemas.score import ScoreRequest, ScoreResponse
from server.schemas.search import SearchRequest, SearchResponse
from server.services import Services, running_services
from server.settings import Settings

Request = TypeVar("Request", bound=BaseModel)
Answer = TypeVar("Answer", bound=BaseModel)


class Answers(Protocol):
    """What the commands ask of either."""

    async def names(self) -> dict[str, list[str]]:
        """Names of the models by kind: `policy`, `prm`."""
        ...

    async def prm(self, model: str) -> ModelRef:
        """The PRM version behind a name, and its weights. Raises CallerError."""
        ...

    async def score(self, request: dict[str, Any]) -> ScoreResponse:
        """Answer a scoring request. Raises RungError."""
        ...

    async def search(self, request: dict[str, Any]) -> SearchResponse:
        """Answer a search. Raises RungError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How the command line was told to find its answers."""

    settings: Settings
    url: str | None
    api_key: str | None

    async def change_version(self, name: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Have the server at `url` change which version answers. Raises RungError."""
        async with self.open() as answers:
            assert isinstance(answers, _Remote)
            return await answers.change_version(name, what, body)

    async def feedback_report(self, model: str | None) -> FeedbackReport:
        """The report of the server at `url` on a PRM's feedback. Raises RungError."""
        async with self.open() as answers:
            assert isinstance(answers, _Remote)
            return await answers.feedback_report(model)

    async def ask(self, method: str, path: str) -> Any:
        """What the server at `url` answers, as JSON. Raises RungError."""
        self._check_there_is_one()
        async with self.open() as answers:
            assert isinstance(answers, _Remote)
            return await answers.call(method, path, None)

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, until `[DONE]`. Raises RungError."""
        self._check_there_is_one()
        async with self.open() as answers:
            assert isinstance(answers, _Remote)
            async for event in answers.events(path):
                yield event

    def _check_there_is_one(self) -> None:
        if self.url is None:
            raise InvalidInput("jobs are a server's: name it with --url, or RUNG_URL")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Answers]:
        """The server at `url`, or an engine of our own for as long as this is open."""
        if self.url is not None:
            _check_url(self.url)
            if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
                raise InvalidInput("--api-key is empty or holds characters beyond ASCII")
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            async with httpx2.AsyncClient(
                base_url=self.url, headers=headers, timeout=self.settings.request_timeout_s
            ) as http:
                yield _Remote(http)
            return
        async with running_services(self.settings, Registry.open(self.settings.models)) as services:
            yield Embedded(services)


def prm_of(registry: Registry, model: str) -> ModelVersion:
    """The PRM version called `model` in a folder. Raises UnknownModel naming those there are."""
    version = registry.get(model)
    if version is None or not isinstance(version.manifest, PrmManifest):
        known = sorted(v.key for v in registry if isinstance(v.manifest, PrmManifest))
        raise UnknownModel(
            f"no PRM named {model!r}; there is {', '.join(known) or 'none'}", param="model"
        )
    return version


class Embedded:
    """The services of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {"policy": await self._services.policies.remote_names()}
        for version in self._services.registry.live():
            known = names.setdefault(version.manifest.kind, [])
            if version.manifest.name not in known:
                known.append(version.manifest.name)
        return names

    async def prm(self, model: str) -> ModelRef:
        return prm_of(self._services.registry, model).ref

    async def score(self, request: dict[str, Any]) -> ScoreResponse:
        return await self._services.scores.score(_validated(ScoreRequest, request))

    async def search(self, request: dict[str, Any]) -> SearchResponse:
        prepared = await self._services.searches.prepare(_validated(SearchRequest, request))
        return await self._services.searches.run(prepared)


class _Remote:
    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        answer = await self.call("GET", "/v1/models", None)
        for model in self._parsed(ModelList, answer).data:
            names.setdefault(model.kind, []).append(model.id)
        return names

    async def prm(self, model: str) -> ModelRef:
        name, _, version = model.partition("@")
        answer = self._parsed(
            PrmOut, await self.call("GET", f"/v1/prm/models/{quote(name, safe='')}", None)
        )
        wanted = version or answer.live
        for known in answer.versions:
            if known.id == wanted:
                return ModelRef(
                    name=answer.id, version=known.id, weights_sha256=known.weights_sha256
                )
        raise UnknownModel(f"{name} has no version {wanted!r} there", param="model")

    async def score(self, request: dict[str, Any]) -> ScoreResponse:
        return self._parsed(ScoreResponse, await self.call("POST", "/v1/prm/score", request))

    async def search(self, request: dict[str, Any]) -> SearchResponse:
        return self._parsed(SearchResponse, await self.call("POST", "/v1/search", request))

    async def change_version(self, name: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/prm/models/{quote(name, safe='')}/{what}"
        answer = self._parsed(PrmOut, await self.call("POST", path, body))
        return answer.model_dump()

    async def feedback_report(self, model: str | None) -> FeedbackReport:
        query = f"?model={quote(model, safe='')}" if model else ""
        return self._parsed(
            FeedbackReport, await self.call("GET", f"/v1/feedback/report{query}", None)
        )

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        # It may be silent for long: a comment comes every fifteen seconds.
        wait = httpx2.Timeout(60)
        try:
            async with self._http.stream("GET", path, timeout=wait) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._check(response)
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}") from error
        raise Unavailable(f"{self._http.base_url} has ended the stream")

    async def call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}") from error
        self._check(response)
        try:
            return response.json()
        except ValueError as error:
            raise _not_ours(self._http.base_url, f"{response.status_code}, no JSON") from error

    def _check(self, response: httpx2.Response) -> None:
        """Raises what an answer that is none says."""
        if response.status_code >= 500:
            raise Unavailable(f"{response.status_code}: {_message(response)}")
        if response.status_code >= 400:
            param = _error_of(response).get("param")
            raise InvalidInput(
                f"{response.status_code}: {_message(response)}",
                param=param if isinstance(param, str) else None,
            )

    def _parsed(self, kind: type[Answer], answer: Any) -> Answer:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            raise _not_ours(self._http.base_url, str(error).partition("\n")[0]) from error


def _check_url(url: str) -> None:
    """Raises InvalidInput for what no request can be sent to."""
    try:
        parsed = httpx2.URL(url)
        is_good = parsed.scheme in ("http", "https") and parsed.host.strip() == parsed.host != ""
        is_good = is_good and (parsed.port is None or parsed.port < 1 << 16)
    except (httpx2.InvalidURL, ValueError):
        is_good = False
    if not is_good:
        raise InvalidInput(f"--url {url!r} is no server's address, as http://127.0.0.1:8080")


def _not_ours(url: object, what: str) -> Unavailable:
    return Unavailable(f"{url} answers, and not as a Rung server does ({what}); check --url")


def _error_of(response: httpx2.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _message(response: httpx2.Response) -> str:
    return str(_error_of(response).get("message") or response.text[:200])


def _validated(kind: type[Request], request: dict[str, Any]) -> Request:
    try:
        return kind.model_validate(request)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
