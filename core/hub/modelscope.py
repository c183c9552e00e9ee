"""ModelScope through its own client, into its own cache. MODELSCOPE_ENDPOINT and _CACHE are honoured.

modelscope_hub is what the modelscope package itself fetches with; it imports in 0.6 s instead of 5.5 s.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from core import disk
from core.errors import HubError
from core.hub.files import Place
from core.hub.repositories import FoundModel, RepoFile, RepoFiles
from core.models import caches

_TITLE = "ModelScope"
_BRANCH = "master"

# read when the client is imported; its five tries to reach a hub take a quarter of a minute
os.environ.setdefault("MODELSCOPE_API_MAX_RETRIES", "2")


def cache_dir() -> Path:
    return caches.modelscope_cache().resolve()


def endpoint() -> str:
    """MODELSCOPE_DOMAIN is the older name, which may lack the scheme."""
    named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ""
    named = named.strip().rstrip("/") or "https://modelscope.cn"
    return named if named.startswith(("http://", "https://")) else f"https://{named}"


def search(text: str, limit: int, token: str | None) -> list[FoundModel]:
    with _errors(f"searching for {text!r}", text, None):
        page = _api(token).list_repos("model", search=text, sort="downloads", page_size=min(limit, 50))
        return [
            FoundModel(
                hub="modelscope",
                repo=model.repo_id,
                downloads=model.downloads,
                likes=model.likes,
                license=model.license,
                gated=bool(model.gated or model.login_required),
                task=model.tasks[0] if model.tasks else None,
                size_bytes=model.file_size,
                updated_at=model.last_modified if isinstance(model.last_modified, datetime) else None,
            )
            for model in page.items
            if model.repo_id
        ]


def look(repo: str, revision: str | None, token: str | None) -> RepoFiles:
    with _errors(f"looking at {repo}", repo, None):
        about = _api(token).get_repo(repo, "model")
    with _errors(f"listing the files of {repo}", repo, revision):
        files = tuple(
            RepoFile(path=file.path, size_bytes=file.size or 0, sha256=file.sha256 or None)
            for file in _api(token).list_repo_files(repo, "model", revision=revision or _BRANCH)
            if file.type != "tree"
        )
    return RepoFiles(
        hub="modelscope",
        repo=repo,
        revision=revision,
        commit=None,
        files=files,
        license=about.license,
        gated=bool(about.gated or about.login_required),
        downloads=about.downloads,
    )


def read_range(repo: str, revision: str | None, file: str, start: int, end: int, token: str | None) -> bytes:
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with _errors(f"reading {file} of {repo}", repo, None):
        client = _api(token).legacy
        answer = client.download_stream(repo, "model", file, revision or _BRANCH, headers=headers)
        with contextlib.closing(answer):
            skip = 0 if answer.status_code == 206 else start  # small files come whole
            content = bytearray()
            for chunk in answer.iter_content(64 << 10):
                content += chunk
                if len(content) >= skip + end - start:
                    break
            return bytes(content[skip : skip + end - start])


def place(repo: str, revision: str | None, file: RepoFile) -> Place:
    whole = folder(repo, revision) / file.path
    return Place(whole, whole.with_name(f"{whole.name}.incomplete"))


def folder(repo: str, revision: str | None) -> Path:
    """Where the client keeps a model: as it does now, or where an earlier version of it has left one."""
    owner, _, name = repo.partition("/")
    for base in (cache_dir(), cache_dir() / "hub"):
        old = base / "models" / owner / name.replace(".", "___")
        if old.is_dir() and any(old.iterdir()):
            return old
    return cache_dir() / "models" / repo.replace("/", "--") / "snapshots" / (revision or _BRANCH)


def is_linked(repo: str, place: Place) -> bool:
    return False  # every revision has files of its own


def fetch(repo: str, revision: str | None, commit: str | None, file: RepoFile, token: str | None) -> None:
    """Have the file in the cache, whole and checked: the client goes on where it was. Raises HubError."""
    with _errors(f"fetching {file.path} of {repo}", repo, revision):
        _api(token).download_file(
            repo,
            "model",
            file.path,
            revision=revision or _BRANCH,
            cache_dir=cache_dir(),
            expected_sha256=file.sha256.lower() if file.sha256 else None,
            file_size=file.size_bytes,
        )


def finish(
    repo: str, revision: str | None, commit: str | None, files: tuple[RepoFile, ...], token: str | None
) -> Path:
    return folder(repo, revision)


def _api(token: str | None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MODELSCOPE_DOMAIN's name
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig

        api = HubApi(HubConfig(endpoint=endpoint(), token=token, cache_dir=cache_dir()))
        _ = api.openapi, api.legacy, api.downloader  # made here, where the warning is ignored
    return api


@contextlib.contextmanager
def _errors(doing: str, repo: str, revision: str | None) -> Iterator[None]:
    """Say what the client's exceptions mean. Its own messages are left out: they hold addresses."""
    from modelscope_hub import errors

    try:
        yield
    except errors.AuthenticationError as error:
        hint = "Enter a token, or another one."
        raise HubError(
            f"{_TITLE} wants a token, or refuses the one it got.", hint=hint, kind="token"
        ) from error
    except errors.PermissionDeniedError as error:
        raise HubError(
            f"{_TITLE} forbids {doing}: its owner must let you in first.",
            hint=f"Ask for access on {endpoint()}/models/{repo}, then enter a token of that account, "
            "or set MODELSCOPE_API_TOKEN.",
            kind="gated",
        ) from error
    except (errors.NetworkError, errors.ServerError, errors.RateLimitError) as error:
        if disk.is_full(error):  # the client tries it again, then takes it for the network's fault
            raise _full() from error
        raise HubError(
            f"{_TITLE} can't be reached, or broke off while {doing}.",
            hint=f"Check the network. The address is {endpoint()} (MODELSCOPE_ENDPOINT names another).",
            kind="unreachable",
        ) from error
    except errors.NotExistError as error:
        if revision is not None:
            raise HubError(
                f"{repo} has no revision {revision!r}.", hint="Check its name.", kind="revision"
            ) from error
        hint = "Check its name; for a private one, enter a token."
        raise HubError(f"There is no model {repo} on {_TITLE}.", hint=hint, kind="missing") from error
    except errors.FileIntegrityError as error:
        raise HubError(
            f"{doing.capitalize()}: it came with a wrong checksum or size each time, and was deleted.",
            hint="The hub or a mirror between serves a damaged file; try again later or from another one.",
            kind="checksum",
        ) from error
    except errors.HubError as error:
        status = getattr(error, "status_code", None)
        raise HubError(f"{_TITLE} answered HTTP {status} while {doing}.") from error
    except OSError as error:
        if disk.is_full(error):
            raise _full() from error
        cause = error.strerror or type(error).__name__  # the whole message may hold a signed address
        hint = f"Check the network and the folder {cache_dir()}, then resume."
        raise HubError(f"{doing.capitalize()} failed: {cause}.", hint=hint, kind="unreachable") from error


def _full() -> HubError:
    hint = "Free some space, then resume: what came is kept."
    return HubError(f"The disk of {cache_dir()} is full.", hint=hint, kind="disk")
