"""Hugging Face through huggingface_hub, into its own cache. HF_ENDPOINT and HF_HOME are honoured.

Its client begins a file anew in each process. Here the same function of it writes to a partial file
beside the cache's blob, so that a later process goes on from the byte it had.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import disk
from core.errors import HubError
from core.hub.files import Place, is_right
from core.hub.repositories import FoundModel, RepoFile, RepoFiles
from core.models import caches

_TITLE = "Hugging Face"
_TIMEOUT_S = 20.0
_WRITE_BYTES = 256 << 10
_TOLD = ("downloads", "likes", "gated", "tags", "pipeline_tag", "lastModified", "safetensors")
_TYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8": 1, "I8": 1, "U8": 1}


def cache_dir() -> Path:
    return caches.huggingface_cache().absolute()


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def search(text: str, limit: int, token: str | None) -> list[FoundModel]:
    """One request: the client's own search has no time limit, and tries a dead address for half a minute."""
    from huggingface_hub import ModelInfo
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    asked = {"search": text, "sort": "downloads", "limit": limit, "expand": _TOLD}
    with _errors(f"searching for {text!r}", text, None, token):
        headers = build_hf_headers(token=token)
        answer = get_session().get(
            f"{endpoint()}/api/models", params=asked, headers=headers, timeout=_TIMEOUT_S
        )
        hf_raise_for_status(answer)
        found = [ModelInfo(**model) for model in answer.json()]
    return [
        FoundModel(
            hub="huggingface",
            repo=model.id,
            downloads=model.downloads,
            likes=model.likes,
            license=_license(model.tags),
            gated=bool(model.gated),
            task=model.pipeline_tag,
            size_bytes=_weights_bytes(model.safetensors),
            updated_at=model.last_modified,
        )
        for model in found
    ]


def _weights_bytes(told: Any) -> int | None:
    """From the numbers of each type in a repository's safetensors; None where it has none, or odd ones."""
    sizes = (
        [(_TYPE_BYTES.get(kind.partition("_")[0]), count) for kind, count in told.parameters.items()]
        if told
        else []
    )
    if not sizes or any(size is None for size, _ in sizes):
        return None
    return int(sum(size * count for size, count in sizes))


def look(repo: str, revision: str | None, token: str | None) -> RepoFiles:
    with _errors(f"looking at {repo}", repo, revision, token):
        found = _api(token).model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
        files = tuple(
            RepoFile(
                path=file.rfilename,
                size_bytes=file.size or 0,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_sha1=None if file.lfs else file.blob_id,
            )
            for file in found.siblings or ()
        )
        return RepoFiles(
            hub="huggingface",
            repo=found.id,
            revision=revision,
            commit=found.sha,
            files=files,
            license=_license(found.tags or ()),
            gated=bool(found.gated),
            downloads=found.downloads,
        )


def read_range(repo: str, revision: str | None, file: str, start: int, end: int, token: str | None) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint())
    headers = {
        **build_hf_headers(token=token),
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
    }
    with (
        _errors(f"reading {file} of {repo}", repo, revision, token),
        get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer,
    ):
        hf_raise_for_status(answer)
        skip = 0 if answer.status_code == 206 else start  # a server may send the whole file instead
        content = bytearray()
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) >= skip + end - start:
                break
        return bytes(content[skip : skip + end - start])


def place(repo: str, revision: str | None, file: RepoFile) -> Place:
    """The cache names contents by their checksum, as the hub's ETag does."""
    blob = _storage(repo) / "blobs" / (file.sha256 or file.git_sha1 or "unknown")
    return Place(blob, blob.with_name(f"{blob.name}.incomplete"))


def is_linked(repo: str, place: Place) -> bool:
    """Whether a snapshot in the cache uses this blob."""
    links = (_storage(repo) / "snapshots").rglob("*")
    return any(link.is_symlink() and link.resolve() == place.whole.resolve() for link in links)


def fetch(repo: str, revision: str | None, commit: str | None, file: RepoFile, token: str | None) -> None:
    """Have the file's content in the cache, whole and checked. Raises HubError."""
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    at = place(repo, commit, file)
    lock = cache_dir() / ".locks" / _storage(repo).name / f"{at.whole.name}.lock"  # the client's own
    with _errors(f"fetching {file.path} of {repo}", repo, revision, token):
        at.whole.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        if file.size_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            return  # not to be had by plain HTTP: `finish` fetches it as the client does, by Xet
        with WeakFileLock(lock):
            for last in (False, True):
                if at.whole.exists():
                    return
                if _go_on(repo, commit, file, at.partial, token) and is_right(at.partial, file):
                    at.partial.replace(at.whole)
                    return
                at.partial.unlink()
                if last:
                    raise _wrong(repo, file)


def _go_on(repo: str, commit: str | None, file: RepoFile, partial: Path, token: str | None) -> bool:
    """Fetch the bytes that are not there yet; the client itself tries again where a connection breaks.

    Gives False where what the server has is not as long as it should be.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # its 10 MB at a time would be lost when the process is killed, and a slow line would show no progress
    constants.DOWNLOAD_CHUNK_SIZE = _WRITE_BYTES
    url = hf_hub_url(repo, file.path, revision=commit, endpoint=endpoint())
    with partial.open("ab") as content:
        if content.tell() > file.size_bytes:
            content.truncate(0)
        try:
            http_get(
                url,
                content,
                resume_size=content.seek(0, os.SEEK_END),
                headers=build_hf_headers(token=token),
                expected_size=file.size_bytes,
                displayed_filename=file.name,
            )
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # the client's own check of the length
                return False
            raise
    return True


def finish(
    repo: str, revision: str | None, commit: str | None, files: tuple[RepoFile, ...], token: str | None
) -> Path:
    """Link the files where the client and everybody who uses its cache look for them: the snapshot."""
    from huggingface_hub import hf_hub_download

    with _errors(f"linking the files of {repo}", repo, revision, token):
        options = {"cache_dir": cache_dir(), "endpoint": endpoint(), "token": token}
        for file in files:
            hf_hub_download(repo, file.path, revision=commit, **options)
        now = _api(token).model_info(repo, revision=revision, timeout=_TIMEOUT_S)
        if now.sha == commit:  # else it was moved on meanwhile: the name is no longer this commit's
            hf_hub_download(repo, files[0].path, revision=revision, **options)
    return _storage(repo) / "snapshots" / str(commit)


def _storage(repo: str) -> Path:
    return cache_dir() / f"models--{repo.replace('/', '--')}"


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token)


def _license(tags: Any) -> str | None:
    return next((tag.partition(":")[2] for tag in tags or () if tag.startswith("license:")), None)


def _wrong(repo: str, file: RepoFile) -> HubError:
    return HubError(
        f"{file.path} of {repo} came twice with a wrong checksum, and was deleted.",
        hint="The hub or a mirror between serves a damaged file; try again later or from another one.",
        kind="checksum",
    )


@contextlib.contextmanager
def _errors(doing: str, repo: str, revision: str | None, token: str | None) -> Iterator[None]:
    """Say what the client's exceptions mean. Its own messages are left out: they hold addresses."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repo} is gated: its owner must let you in first.",
            hint=f"Ask for access on {endpoint()}/{repo}, then enter a token of that account, "
            "or set HF_TOKEN.",
            kind="gated",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{repo} has no revision {revision!r}.", hint="Check its name.", kind="revision"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(f"{doing.capitalize()} failed: it is not there.", kind="missing") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise HubError(
            f"There is no model {repo} on {_TITLE}, or it is private.",
            hint="Check its name." + (" The token may lack the right to read it." if token else " "
            "For a private one, enter a token."),
            kind="missing",
        ) from error  # fmt: skip
    except errors.HfHubHTTPError as error:
        raise _refused(doing, error.response.status_code) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubError(
            f"{_TITLE} can't be reached, or broke off while {doing}.",
            hint=f"Check the network. The address is {endpoint()} (HF_ENDPOINT names a mirror).",
            kind="unreachable",
        ) from error
    except OSError as error:
        raise _written(doing, error) from error


def _refused(doing: str, status: int) -> HubError:
    if status == 401:
        hint = "Enter another token, or forget the one that is saved."
        return HubError(f"{_TITLE} refuses the token.", hint=hint, kind="token")
    if status == 403:
        hint = "Its owner must let you in, or the token lacks the right to read."
        return HubError(f"{_TITLE} forbids {doing}.", hint=hint, kind="gated")
    if status == 429 or status >= 500:
        hint = "Try again in some minutes; what came is kept."
        return HubError(
            f"{_TITLE} is in trouble: HTTP {status} while {doing}.", hint=hint, kind="unreachable"
        )
    return HubError(f"{_TITLE} answered HTTP {status} while {doing}.")


def _written(doing: str, error: OSError) -> HubError:
    if disk.is_full(error):
        return HubError(
            f"The disk of {cache_dir()} is full.",
            hint="Free some space, then resume: what came is kept.",
            kind="disk",
        )
    cause = error.strerror or type(error).__name__
    return HubError(f"{doing.capitalize()} failed: {cause}.", hint=f"Check the folder {cache_dir()}.")
