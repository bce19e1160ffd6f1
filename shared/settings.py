"""One frozen settings object, built by entry points from `AIGC_*` variables and `.env`, then passed down.

Nothing else in the project reads the environment. Without any variable the *embedded* profile holds: SQLite, a
folder as storage, and a Redis that `aigc up` owns, all below `data_dir`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import RequestError
from shared.services import OPENAI, OPENAI_URL, Service, read_services, service_key, service_url

#: settings of which nothing is shown where they are wrong
_SECRET = frozenset({"database_url", "redis_url", "s3_secret_access_key", "openai_api_key", "services"})
_PASSWORD = re.compile(r"^([^:/?#]+://[^:/@]*):.*@", re.DOTALL)
_S3_USER = re.compile(r"^(s3://).*@", re.DOTALL | re.IGNORECASE)
_PASSWORD_IN_QUERY = re.compile(r"([?&](?:password|sslpassword)=)[^&]*", re.IGNORECASE)


class Settings(BaseSettings):
    """All that can be set, with the defaults of the embedded profile."""

    model_config = SettingsConfigDict(
        env_prefix="AIGC_", env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    #: where the embedded profile keeps its database, its files and its run state
    data_dir: Path = Path("~/.aigc")
    #: SQLAlchemy URL; empty = SQLite in `data_dir`
    database_url: SecretStr | None = None
    #: broker; empty = the Redis that `aigc up` owns
    redis_url: SecretStr | None = None
    #: prefix of every Redis key, for a Redis shared with other applications
    redis_prefix: str = ""
    #: `file:///folder` or `s3://bucket/prefix`; empty = a folder in `data_dir`
    store_url: str | None = None
    s3_endpoint_url: str | None = None
    #: endpoint used in links that leave the cluster; empty = `s3_endpoint_url`
    s3_public_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    #: path of a CA bundle for the S3 endpoint
    s3_ca: Path | None = None
    s3_addressing: Literal["auto", "path", "virtual"] = "auto"
    #: whose jobs these are
    tenant: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "default"
    #: single-file checkpoints and adapters of the operator
    models_dir: Path | None = None
    #: hub models and folders that may run here (comma separated; `org/*`, `/models/*`); empty = all
    models_allowed: Annotated[tuple[str, ...], NoDecode] = ()
    #: what the operator says about models; empty = `models.toml` in `data_dir`, if it is there
    models_file: Path | None = None
    #: seconds after which a worker that does not renew is presumed dead
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    #: seconds that a stopping worker may use to finish what it holds
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    #: seconds between two looks of an idle worker into SQL
    idle_look_s: Annotated[float, Field(ge=0.2, le=600)] = 10.0
    #: seconds between two rounds of the keeper, at most a third of the lease
    keeper_interval_s: Annotated[float, Field(ge=0.1, le=600)] = 2.0
    #: days after which a batch that has ended is deleted with its outputs; empty = it is kept for ever
    retention_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    #: most messages that wait in one queue; the keeper tops up
    queue_messages: Annotated[int, Field(ge=1, le=10_000)] = 64
    #: most jobs that run together on a device
    microbatch: Annotated[int, Field(ge=1, le=1024)] = 32
    #: attempts a job gets before it fails for good
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    #: most models that stay in memory of one worker
    resident_models: Annotated[int, Field(ge=1, le=64)] = 4
    #: megabytes of a worker's device that models in memory may take (0 = as many as the device has room for)
    resident_mb: Annotated[int, Field(ge=0)] = 0
    #: megabytes of host memory for models that had to leave a GPU and may come back (0 = a quarter of the host's)
    parked_mb: Annotated[int, Field(ge=0)] = 0
    #: seconds that a lane whose turn it is may wait because another model is in memory
    age_bound_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0
    #: number type on CUDA; a CPU always computes in float32
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    #: whether models are compiled where their generator can do that (pictures): a slow start, then faster
    compile: bool = False
    #: threads a worker computes with; 0 = as many as this machine has physical cores
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    #: where this worker computes: `cpu`, `cuda`, or `auto` (the first GPU it sees, else the CPU)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: what this worker is called, after its host; set by `aigc worker` (empty = its device)
    worker_name: Annotated[str, Field(max_length=64)] = ""
    #: queues that this worker serves (comma separated); set by `aigc worker`, or by Celery's `-Q`
    queues: Annotated[tuple[str, ...], NoDecode] = ()
    #: seconds that a model may take for one step before its worker is ended
    stall_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    #: seconds that a model may take to be fetched and loaded before its worker is ended
    load_s: Annotated[float, Field(ge=1, le=86_400)] = 3600.0
    #: seconds that a worker may see ready jobs and claim none before it starts anew
    stuck_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    #: megabytes that a worker may grow by, with the same models loaded, before it starts anew (0 = any)
    memory_growth_mb: Annotated[int, Field(ge=0)] = 4096
    #: megabytes of outputs that a worker may have on their way to the storage before its model waits
    buffer_mb: Annotated[int, Field(ge=1)] = 512
    #: megabytes that one file may have which a job names
    input_mb: Annotated[int, Field(ge=1)] = 256
    #: pixels that a picture may have which a job names
    input_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    #: seconds that sound or a video may take which a job names
    input_seconds: Annotated[float, Field(gt=0)] = 3600.0
    #: megabytes of fetched files that a worker keeps for jobs to come
    inputs_mb: Annotated[int, Field(ge=0)] = 2048
    #: hosts that jobs may name although they are at private addresses (comma separated; `*.studio.lan`)
    fetch_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    #: objects beside the queue's own store that jobs may name (comma separated; `s3://photos/*`)
    s3_inputs: Annotated[tuple[str, ...], NoDecode] = ()
    #: the key of `openai:…` models; workers alone need it
    openai_api_key: SecretStr | None = None
    #: where `openai:…` models are asked: any address that speaks the API of OpenAI
    openai_base_url: str = OPENAI_URL
    #: further remote services by name, as a JSON object; see docs/remote.md
    services: Annotated[tuple[Service, ...], NoDecode] = ()
    #: where a worker's child tells its parent how it is; set by the parent
    pulse_file: Path | None = None
    #: stop when this process is gone (0 = never); set by `aigc up` and `aigc worker` for what they start
    parent_pid: Annotated[int, Field(ge=0)] = 0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: seconds a connection attempt to SQL, Redis or the storage may take
    connect_timeout_s: Annotated[float, Field(ge=0.1, le=120)] = 5.0

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        try:
            return path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("there is no home folder: set AIGC_DATA_DIR") from None

    @field_validator("models_file")
    @classmethod
    def _of_a_home(cls, path: Path | None) -> Path | None:
        try:
            return path and path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("there is no such home folder: write the whole path") from None

    @field_validator("models_allowed", "queues", "fetch_hosts", "s3_inputs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("services", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return (read_services(value) if value.strip() else ()) if isinstance(value, str) else value

    @field_validator("openai_api_key")
    @classmethod
    def _key_can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        return service_key(key)

    @field_validator("openai_base_url")
    @classmethod
    def _address_of_a_service(cls, url: str) -> str:
        return service_url(url or OPENAI_URL)

    @field_validator(
        "database_url", "redis_url", "store_url", "s3_endpoint_url", "s3_public_endpoint_url", "s3_region",
        "s3_access_key_id", "s3_secret_access_key", "s3_ca", "models_dir", "models_file", "pulse_file",
        "retention_days", mode="before",
    )  # fmt: skip
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _keepers_look_often_enough(self) -> Self:
        """Else an outage, in which no worker may be taken for dead, cannot be told from a usual pause."""
        most = self.lease_s / 3
        if self.keeper_interval_s > most:
            raise ValueError(
                f"AIGC_KEEPER_INTERVAL_S is {self.keeper_interval_s:g}, and may be at most a third of AIGC_LEASE_S "
                f"({self.lease_s:g}): set AIGC_KEEPER_INTERVAL_S to {most:.4g} or less, or AIGC_LEASE_S to "
                f"{3 * self.keeper_interval_s:g} or more"
            )
        return self

    @model_validator(mode="after")
    def _waiting_for_a_turn_is_not_being_stuck(self) -> Self:
        """Else a worker that leaves jobs to wait, as it was told to, would be taken for one that is stuck."""
        if self.age_bound_s >= self.stuck_s:
            raise ValueError(
                f"AIGC_AGE_BOUND_S is {self.age_bound_s:g}, and has to be less than AIGC_STUCK_S ({self.stuck_s:g}): "
                "lower the one, or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _one_word_about_openai(self) -> Self:
        """Else nobody could tell which of two keys is in force."""
        if OPENAI in {service.name for service in self.services} and (
            self.openai_api_key is not None or self.openai_base_url != OPENAI_URL
        ):
            raise ValueError(
                "AIGC_SERVICES names openai, and so do AIGC_OPENAI_API_KEY or AIGC_OPENAI_BASE_URL: set either"
            )
        return self

    @property
    def remote_services(self) -> dict[str, Service]:
        """Every remote service by name."""
        openai = Service(name=OPENAI, url=self.openai_base_url, key=self.openai_api_key)
        return {service.name: service for service in (openai, *self.services)}

    def make_data_dir(self) -> None:
        """Make the data folder where it is missing: prompts and outputs are for its owner alone. Raises `OSError`."""
        make_private(self.data_dir)

    @property
    def run_dir(self) -> Path:
        """Where `aigc up` leaves its lock, its log and the address of its Redis."""
        return self.data_dir / "run"

    @property
    def models_path(self) -> Path:
        """Where the operator's `models.toml` is looked for."""
        return self.models_file or self.data_dir / "models.toml"

    @property
    def spool_dir(self) -> Path:
        """Where submissions are spooled while they are validated."""
        return self.data_dir / "spool"

    @property
    def sql_url(self) -> str:
        """The SQLAlchemy URL in force, password included: never print it, see `without_password`."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{quote(str(self.data_dir / 'aigc.db'), safe='/')}"

    @property
    def storage_url(self) -> str:
        """The URL of the storage in force."""
        return self.store_url or (self.data_dir / "store").as_uri()

    @property
    def broker_url(self) -> str | None:
        """The URL of the Redis in force, password included; None if it is ours and `aigc up` does not run."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        try:
            record = json.loads((self.run_dir / "redis.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        url = record.get("url") if isinstance(record, dict) else None
        return url if isinstance(url, str) else None


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone; one that is there stays as it is. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def load_settings(**overrides: object) -> Settings:
    """Build the settings from the environment and `.env`.

    Raises `RequestError` naming every variable that cannot be understood, and what it may be.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise RequestError(f".env is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise RequestError(f".env cannot be read: {error.strerror}") from None
    except ValidationError as error:
        # Of what concerns several settings there is no name, and the input would be all of them: passwords, too.
        lines = [
            f"AIGC_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}{_got(item)}"
            if item["loc"]
            else str(item.get("ctx", {}).get("error", item["msg"]))
            for item in error.errors()
        ]
        raise RequestError("the settings are wrong:\n" + "\n".join(lines)) from None


def _got(item: ErrorDetails) -> str:
    return "" if item["loc"][0] in _SECRET else f", got {item['input']!r}"


def without_password(url: str) -> str:
    """The same URL, fit to be shown: user and host stay, the password does not. Of `s3://` the user goes too."""
    # Not by `urlsplit`: to it a password ends at a `/`, `?` or `#`; what connects takes them.
    shown = _PASSWORD.sub(r"\1:***@", _S3_USER.sub(r"\1", url))
    return _PASSWORD_IN_QUERY.sub(r"\1***", shown)
