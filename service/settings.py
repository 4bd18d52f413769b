"""The service's settings, read once from ``EDGEFILL_`` environment variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.cache import CACHE_BYTES
from engine.header import PictureLimits
from service.addresses import AddressPolicy
from service.errors import SettingsError
from service.origins import OriginPolicy, origin_of
from service.storage import Location
from service.webhooks import parse_secrets

PREFIX: Final = "EDGEFILL_"


def _comma_list(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip(" ,"):
            raise ValueError("holds commas only")
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_secrets(value: SecretStr) -> SecretStr:
    try:
        parse_secrets(value.get_secret_value())
    except SettingsError as exc:
        raise ValueError(str(exc)) from None
    return value


class Settings(BaseSettings):
    """What an operator can set. Each field is the variable ``EDGEFILL_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="Keys that clients may use, separated by commas. Without any, every "
        "non-empty key is taken and the server binds to loopback only.",
    )
    bundle: Path | None = Field(
        default=None, description="Directory of the model bundle; the default bundle where unset."
    )
    device: str = Field(
        default="auto",
        description="Where the networks run; `edgefill doctor` lists what works on a machine.",
    )
    data_dir: Path = Field(
        default=Path("edgefill-data"),
        description="Directory for the pictures that were made and the job store.",
    )
    public_url: str | None = Field(
        default=None,
        description="The address clients reach the server at, used in the links of answers; "
        "where unset, the address of the request.",
    )
    origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="Origins whose web pages may use the API, separated by commas, or `*` for all; "
        "where unset, all with API keys, and without only pages of this machine.",
    )
    wait_seconds: float = Field(
        default=20.0, gt=0, le=600, description="Longest time a request is waited for, in seconds."
    )
    storage_url: str | None = Field(
        default=None,
        description="URL of the storage for pictures: s3://bucket/prefix (needs the s3 extra) or "
        "file:///folder; a folder in the data directory where unset.",
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the job store; a SQLite file in the data directory where "
        "unset.",
    )
    queue_limit: int = Field(
        default=20, ge=1, le=100_000, description="Requests of one key that may wait."
    )
    queue_total: int = Field(
        default=100, ge=1, le=1_000_000, description="Requests of all keys that may wait."
    )
    slots: int = Field(
        default=8, ge=1, le=256, description="Requests that are worked on at the same time."
    )
    retention_hours: float = Field(
        default=24.0, gt=0, le=8760, description="How long answers and pictures are kept."
    )
    base64_mode: Literal["inline", "link", "data_uri"] = Field(
        default="inline",
        description="What `base64: true` answers with: bare base64 text, a link to a file that "
        "holds it, or a data URI.",
    )
    webhook_secret: Annotated[SecretStr, AfterValidator(_check_secrets)] = Field(
        default=SecretStr(""),
        description="Secrets that webhooks are signed with, by Standard Webhooks: `whsec_` and "
        "base64 of 24 to 64 bytes; several, separated by commas, while receivers change over.",
    )
    fetch_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="Host names, addresses and CIDRs, separated by commas, that pictures may be "
        "fetched from beyond ports 80 and 443 of the public internet.",
    )
    fetch_seconds: float = Field(
        default=10.0, gt=0, le=120, description="Longest time for fetching one picture, in seconds."
    )
    picture_limit_mb: int = Field(
        default=20, ge=1, le=256, description="Largest picture that is taken, in megabytes."
    )
    picture_limit_megapixels: int = Field(
        default=25,
        ge=1,
        le=64,
        description="Largest picture that is decoded, in megapixels. Most cameras and phones make "
        "12 or 24; each of the two decoding processes may take 1 GB and 20 MB for every megapixel.",
    )
    cache_mb: int = Field(
        default=CACHE_BYTES >> 20,
        ge=0,
        le=65_536,
        description="Most memory for embeddings of prompts and encodings of pictures that were "
        "seen before, in mebibytes; 0 keeps none. Pictures come out the same with it and without.",
    )
    body_limit_mb: int = Field(
        default=32, ge=1, le=1024, description="Largest request body that is taken, in megabytes."
    )

    streams: int = Field(
        default=16, ge=1, le=10_000, description="Realtime streams that may be open at once."
    )
    streams_per_key: int = Field(
        default=4, ge=1, le=10_000, description="Realtime streams of one key."
    )
    stream_idle_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="A realtime stream is closed when nothing was asked for so long, in seconds.",
    )

    metrics: Literal["loopback", "key", "open", "off"] = Field(
        default="loopback",
        description="Who may read `/metrics`: clients on this machine, those with a key, "
        "everybody, or nobody.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Log lines for people, or one JSON object per line.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is less important is not logged."
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        if not value.isascii() or any(c in value for c in " \t\r\n?#\\\"'<>"):
            raise ValueError("must be an address without spaces, query or fragment")
        origin_of(value)
        return value.rstrip("/")

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        OriginPolicy.parse(value, keys=False, public_url=None)
        return value

    @field_validator("storage_url")
    @classmethod
    def _check_storage_url(cls, value: str | None) -> str | None:
        try:
            return value if value is None else str(Location.parse(value))
        except SettingsError as exc:
            raise ValueError(str(exc)) from None

    @field_validator("fetch_allow")
    @classmethod
    def _check_fetch_allow(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy.parse(value)
        return value

    @classmethod
    def load(cls) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: With the first variable whose value is not allowed.
        """
        try:
            return cls()
        except ValidationError as exc:
            error = exc.errors(include_url=False, include_input=False)[0]
            name = PREFIX + str(error["loc"][0]).upper()
            raise SettingsError(f"{name}: {error['msg']}") from None

    @classmethod
    def variables(cls) -> tuple[str, ...]:
        """The names of all variables that are read."""
        return tuple(PREFIX + name.upper() for name in cls.model_fields)

    @classmethod
    def unknown_variables(cls) -> tuple[str, ...]:
        """Names in the environment that look like ours and are not, such as a misspelt one."""
        found = {name for name in os.environ if name.upper().startswith(PREFIX)}
        return tuple(sorted(name for name in found if name.upper() not in cls.variables()))

    @property
    def address_policy(self) -> AddressPolicy:
        """Where pictures may be fetched from."""
        return AddressPolicy.parse(self.fetch_allow)

    @property
    def origin_policy(self) -> OriginPolicy:
        """Whose web pages may use the API."""
        return OriginPolicy.parse(
            self.origins, keys=bool(self.api_keys), public_url=self.public_url
        )

    @property
    def picture_limit(self) -> int:
        """Largest picture in bytes."""
        return self.picture_limit_mb * 1_000_000

    @property
    def picture_limits(self) -> PictureLimits:
        """Which pictures are decoded. The longest shape that can be asked for is 1024x64."""
        return PictureLimits(
            max_bytes=self.picture_limit,
            max_pixels=self.picture_limit_megapixels * 1_000_000,
            min_side=8,
            max_aspect=16,
        )

    @property
    def cache_bytes(self) -> int:
        """Most memory for what was seen before, in bytes."""
        return self.cache_mb << 20

    @property
    def body_limit(self) -> int:
        """Largest request body in bytes."""
        return self.body_limit_mb * 1_000_000
