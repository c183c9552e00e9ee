"""Settings of the whole workbench, from the environment (prefix `WORKBENCH_`) or a `.env` file."""

from __future__ import annotations

from pathlib import Path

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.api import cors
from core.errors import SettingsError


class Settings(BaseSettings):
    """Frozen. `WORKBENCH_HOME=/data/wb` sets `home`, and so on for each field."""

    model_config = SettingsConfigDict(
        env_prefix="WORKBENCH_",
        env_file=".env",
        env_ignore_empty=True,  # an empty path would be the current folder
        frozen=True,
        extra="ignore",
    )

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("vllm-workbench", appauthor=False),
        description="Workspace folder: catalogue, runs, the embedded model, logs.",
    )
    tables_dir: Path | None = Field(
        default=None, description="Folder of this server whose tables may be picked on the batch page."
    )
    engine: str = Field(
        default="auto",
        description="Engine that is loaded at start: auto (vLLM, or the first that can run here), vllm, "
        "transformers, llamacpp, openai or scripted.",
    )
    model: str = Field(
        default="embedded",
        description="Model that is loaded at start: 'embedded', a name of the library, a folder, a GGUF "
        "file, or a hub's id; of a remote endpoint the name that it has there.",
    )
    base_url: str | None = Field(
        default=None, description="Address of the OpenAI-compatible server that is used at start."
    )
    autoload: bool = Field(default=True, description="Load the engine when the workbench starts.")
    max_model_len: int | None = Field(default=None, ge=16, description="Context length in tokens.")
    max_num_seqs: int | None = Field(default=None, ge=1, description="Requests in the engine's batch.")
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1 << 20, description="KV cache in bytes.")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1, description="Share of GPU memory.")
    enforce_eager: bool | None = Field(default=None, description="No torch.compile, no CUDA graphs.")
    scripted_tokens_per_s: float = Field(
        default=0,
        ge=0,
        description="Speed of the scripted engine, tokens/s per request; 0 answers at once.",
    )

    api_autostart: bool = Field(default=False, description="Start the API with the workbench.")
    api_host: str = Field(
        default="127.0.0.1",
        description="Address that the API listens on; beyond this machine, it asks for a key.",
    )
    api_port: int = Field(default=8000, ge=0, le=65535, description="Port of the API; 0: a free one.")
    api_require_key: bool = Field(default=False, description="Ask for a key on this machine, too.")
    api_allowed_hosts: str = Field(
        default="",
        description="Names, comma-separated, by which others call the API (a tunnel's, a proxy's).",
    )
    api_allowed_origins: str = Field(
        default="",
        description="Origins, comma-separated, of web pages that may ask the API from a browser (CORS).",
    )
    api_ssl_certfile: Path | None = Field(
        default=None, description="Certificate with its chain (PEM): the API is served under https."
    )
    api_ssl_keyfile: Path | None = Field(
        default=None, description="The certificate's key (PEM), where it is in a file of its own."
    )
    api_max_requests: int = Field(default=1024, ge=1, description="Requests that the API answers at once.")
    api_max_body_bytes: int = Field(
        default=16 << 20, ge=1 << 10, description="Largest body of a request, uploaded files left out."
    )

    @field_validator("api_allowed_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        cors.listed(text)
        return text

    @property
    def benchmarks_dir(self) -> Path:
        return self.home / "benchmarks"

    @property
    def api_files_dir(self) -> Path:
        return self.home / "api-files"

    @property
    def runs_dir(self) -> Path:
        return self.home / "runs"

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def uploads_dir(self) -> Path:
        return self.home / "uploads"

    @property
    def catalogue_path(self) -> Path:
        return self.home / "workbench.sqlite"


def load_settings() -> Settings:
    """Read the environment and make the workspace folder.

    Raises SettingsError when a value makes no sense or the folder can't be written.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "WORKBENCH_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(
            f"{name}={first['input']!r} can't be used: {first['msg']}.", hint="Change or unset it."
        ) from error
    home = settings.home.expanduser().resolve()
    tables_dir = settings.tables_dir.expanduser().absolute() if settings.tables_dir else None
    settings = settings.model_copy(update={"home": home, "tables_dir": tables_dir})
    try:
        for folder in (settings.runs_dir, settings.models_dir, settings.logs_dir, settings.uploads_dir):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The workspace folder {home} can't be written: {error.strerror}.",
            hint="Set WORKBENCH_HOME to a folder of your own.",
        ) from error
    return settings
