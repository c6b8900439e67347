"""Everything that can be set about a server, in one place.

Each field is an environment variable (`RUNG_` and the field's name) and most are an option of
`rung serve`; the option wins. Secrets may lie in files instead (`server/secret_files.py`). The
object is made once and passed in; nothing reads it globally.
"""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from prm.engine.process import EngineOptions
from server.secret_files import SecretFiles

BUNDLED_MODELS = Path(__file__).resolve().parent.parent / "models"


class Settings(BaseSettings):
    """Settings of one server process."""

    # An empty variable is none: what a compose file passes on where nobody has set it.
    model_config = SettingsConfigDict(
        env_prefix="RUNG_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="Address to bind.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to bind; 0 picks a free one.")
    models: Path = Field(default=BUNDLED_MODELS, description="Folder of model versions.")
    runs: Path = Field(
        default=Path("runs"), description="Folder of training jobs, uploaded files and feedback."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("redis_url", "RUNG_REDIS_URL", "REDIS_URL"),
        description="Redis that servers and workers share; without it this process is alone.",
    )
    worker: bool | None = Field(
        default=None, description="Run training jobs here; default: where there is no Redis."
    )
    policy_url: str | None = Field(
        default=None, description="An OpenAI-compatible server whose models write the steps."
    )
    policy_api_key: SecretStr | None = Field(default=None, description="Its key, when it has one.")
    policy_tokenizer: Path | None = Field(
        default=None,
        description="Folder with its model's tokenizer files, where it lacks vLLM's /tokenize.",
    )
    policy_prompts: Literal["ids", "text"] = Field(
        default="ids", description="text: it takes no token ids, or tells none."
    )
    scoring_urls: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description=(
            "vLLM servers that score in the engine's place: a JSON object of URLs by NAME or "
            "NAME@VERSION."
        ),
    )
    scoring_api_key: SecretStr | None = Field(
        default=None, description="Their key, when they have one."
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="Keys that may do everything, separated by commas or lines."
    )
    keys_file: Path = Field(
        default=Path.home() / ".config" / "rung" / "keys.json",
        description="Keys made by `rung keys create`.",
    )

    device: str = Field(default="cpu", description="Device of the engine: cpu, cuda, cuda:1.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: float32 on a CPU, the checkpoint's own elsewhere."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the engine; default: all cores but one."
    )
    max_batch: int = Field(default=64, ge=1, description="Sequences that decode together.")
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of one scoring forward; default: 2048 on a CPU, 8192 on a GPU.",
    )
    cache_mb: int = Field(
        default=1024, ge=1, description="Memory for keys and values of scored prefixes, in MiB."
    )

    answer_processes: int = Field(
        default=2, ge=1, description="Processes that compare final answers as mathematics."
    )

    code_processes: int = Field(
        default=2, ge=1, description="Programs that are run at once as code answers, in a sandbox."
    )

    reload_poll_s: float = Field(
        default=0.5, gt=0, description="How often it is looked whether a version was published."
    )

    swap: Literal["auto", "beside", "drain"] = Field(
        default="auto",
        description="A new version is loaded beside the old one, or, where memory cannot hold "
        "both, in its place: auto asks the engine.",
    )
    swap_wait_s: float = Field(
        default=30.0,
        gt=0,
        description="Longest wait of a request whose model is exchanged in its place; then 503.",
    )
    keep_versions: int | None = Field(
        default=None,
        ge=1,
        description="After a promotion, versions beyond so many are removed; default: none is.",
    )

    canary_error_rate: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="A canary that fails in a larger share than the live version by this is ended.",
    )
    canary_drift: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="And one whose mean score lies further from the live version's.",
    )
    canary_requests: int = Field(
        default=50, ge=1, description="Requests of both before their scores are compared."
    )

    feedback_hours: float = Field(
        default=24.0,
        ge=0,
        description="How long feedback may name what was served; 0: nothing is remembered.",
    )
    feedback_mb: int = Field(
        default=256, ge=1, description="Disk for what is remembered, in MiB; the oldest goes first."
    )
    feedback_per_key_day: int = Field(
        default=10_000, ge=1, description="Labels that a key may give on one day (UTC)."
    )
    feedback_key_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Most of a training's weight that comes from one key, where there are others.",
    )
    retrain_every: int | None = Field(
        default=None, ge=1, description="Train a PRM anew after so many labels more."
    )
    retrain_hours: float | None = Field(
        default=None, gt=0, description="Or after so many hours, where there are new ones."
    )

    engine_silence_s: float = Field(
        default=30.0, ge=5, description="An engine that gave no sign of life for so long is killed."
    )

    max_body_bytes: int = Field(default=8 << 20, ge=1, description="Largest request body.")
    max_file_mb: int = Field(
        default=256, ge=1, description="Largest uploaded file of training data, in MiB."
    )
    max_jobs: int = Field(
        default=100, ge=1, description="Most training jobs that are not done; more: 429."
    )
    job_memory_mb: int | None = Field(
        default=None, ge=64, description="Memory of a job's processes, in MiB; default: no limit."
    )
    job_silence_s: float = Field(
        default=1800.0, gt=0, description="A job that gave no sign of life for so long is ended."
    )
    job_pause_s: float = Field(
        default=60.0, ge=0, description="How long a job that is paused may take to end its step."
    )
    job_attempts: int = Field(
        default=5, ge=1, description="Starts of a job without a new checkpoint, before it failed."
    )
    max_items: int = Field(default=512, ge=1, description="Most items in one scoring request.")
    max_candidates: int = Field(
        default=512, ge=1, description="Most candidates of a search at a time: n, or n times width."
    )
    max_in_flight: int = Field(default=64, ge=1, description="Requests served at once; more: 429.")
    request_timeout_s: float = Field(default=300.0, gt=0, description="Longest time for a request.")
    log_format: Literal["console", "json"] = "console"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then variables, then the files that variables name."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, keys: object) -> object:
        if isinstance(keys, str):
            return tuple(filter(None, map(str.strip, re.split(r"[,\n]", keys))))
        return keys

    @field_validator("scoring_urls", mode="before")
    @classmethod
    def _parse_urls(cls, urls: object) -> object:
        if isinstance(urls, str):
            try:
                return json.loads(urls)
            except json.JSONDecodeError as error:
                raise ValueError(
                    'is no JSON object of URLs, as {"NAME": "http://HOST:PORT"}'
                ) from error
        return urls

    @property
    def runs_jobs(self) -> bool:
        """Whether this server trains, too."""
        return self.redis_url is None if self.worker is None else self.worker

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the bind address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def engine_options(self) -> EngineOptions:
        """What the engine process is started with."""
        return EngineOptions(
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            max_batch=self.max_batch,
            token_budget=self.token_budget,
            cache_mb=self.cache_mb,
            silence_s=self.engine_silence_s,
        )
