"""`python -m core models search|download`: what the hubs have, and how it comes here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from core.cli.options import JsonLinesOption
from core.cli.session import say
from core.hub import choosing, permissions, repositories
from core.hub.choosing import Permission
from core.hub.downloads import Downloads, DownloadSpec
from core.hub.records import Download, size_words
from core.settings import load_settings
from core.store import Store
from core.types import Hub

HubOption = Annotated[Hub, typer.Option("--hub", help="Where to look: huggingface or modelscope.")]


def search(
    text: Annotated[str, typer.Argument(help="Part of a model's name.")],
    hub: HubOption = "huggingface",
    limit: Annotated[
        int, typer.Option(min=1, max=50, help="At most so many, the most downloaded first.")
    ] = 20,
    as_json: JsonLinesOption = False,
) -> None:
    """Search a hub for models: name, downloads, licence, whether it is gated."""
    found = repositories.search(hub, text, limit)
    if not found:
        say(f"Nothing on {repositories.TITLES[hub]} has {text!r} in its name.")
    for model in found:
        if as_json:
            fields = ("hub", "repo", "downloads", "likes", "license", "gated", "task", "size_bytes")
            print(json.dumps({name: getattr(model, name) for name in fields}))
        else:
            size = size_words(model.size_bytes) if model.size_bytes else ""
            words = (
                f"{model.downloads or 0:>12,} downloads",
                f"{size:>8}",
                model.license or "no licence told",
            )
            print("  ".join((f"{model.repo:<60}", *words, *(["gated"] if model.gated else []))))


def download(
    repo: Annotated[str, typer.Argument(help="The model: owner/name, or its web address.")],
    hub: HubOption = "huggingface",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only files of this pattern, such as '*Q4_K_M.gguf'; may be given several times."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option(help="Take this model's pickle weights: they can run any code when loaded.")
    ] = False,
    allow_code: Annotated[
        bool, typer.Option(help="Take this model's own Python code, which runs when it is loaded.")
    ] = False,
) -> None:
    """Download a model into the hub's own cache, and print its folder. Ctrl-C keeps what came."""
    settings = load_settings()
    store = Store(settings.catalogue_path)
    downloads = Downloads(settings, store)
    patterns = tuple(include or ())
    wishes: dict[Permission, bool] = {"pickle": allow_pickle, "code": allow_code}
    allow = frozenset(name for name, wished in wishes.items() if wished)
    try:
        found = repositories.look(hub, repo, revision, settings=settings)
        known = permissions.allowed(settings, found.repo, hub)
        choice = choosing.choose(found, patterns, allow | known)
        for file, reason in choice.refused:
            say(f"not taken: {file.path}: {reason}")
        choosing.demand(found, choice, patterns)
        say(f"{found.repo}: {len(choice.taken)} files, {size_words(choice.total_bytes)}, "
            f"licence: {found.license or 'not told'}")  # fmt: skip
        spec = DownloadSpec(hub=hub, repo=repo, revision=revision, patterns=patterns, allow=allow)
        download_id = downloads.start(spec, found)
        try:
            ended = downloads.wait(download_id, _progress())
        except KeyboardInterrupt:
            downloads.pause(download_id)
            _stopped(downloads.view(download_id))
        if ended.state == "failed":
            raise ended.error()
        if ended.state != "finished" or ended.path is None:
            _stopped(ended)
        print(ended.path)
    finally:
        downloads.close()
        store.close()


def _stopped(download: Download) -> NoReturn:
    say(f"{download.state} at {size_words(download.received_bytes)}; the same command goes on from there")
    raise SystemExit(130)


def _progress() -> Callable[[Download], None]:
    """Writes over one line of a terminal; elsewhere a line each tenth part."""
    terminal = sys.stderr.isatty()
    told = -1

    def show(download: Download) -> None:
        nonlocal told
        step = int(download.share * 10)
        if terminal or step > told:
            told = step
            rate = f", {size_words(download.bytes_per_s)}/s" if download.bytes_per_s else ""
            left = f", about {download.eta_s:,.0f} s left" if download.eta_s else ""
            amount = f"{size_words(download.received_bytes)} of {size_words(download.total_bytes)}"
            line = f"{download.share:>4.0%}  {amount}{rate}{left}"
            end = "\r" if terminal and download.state == "running" else "\n"
            print(f"{line:<70}" if terminal else line, end=end, file=sys.stderr, flush=True)

    return show
