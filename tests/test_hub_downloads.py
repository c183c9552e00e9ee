"""Downloads by the hubs' real clients, from a local server that gives real files and misbehaves."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hub_server import COMMIT, TINY, WEIGHTS, HubServer, Model, only_hub
from waiting import until

from core.cli import hub as cli_hub
from core.errors import HubError, ModelError, WorkbenchError
from core.hub import permissions, repositories
from core.hub.downloads import Downloads, DownloadSpec, fetch_now
from core.secrets import Secrets

ROOT = Path(__file__).parents[1]
HUBS = ("huggingface", "modelscope")
TAKEN = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> HubServer:
    with only_hub(tmp_path, monkeypatch) as server:
        monkeypatch.setenv("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "1")
        yield server


@pytest.fixture
def downloads(settings, store):
    downloads = Downloads(settings, store)
    yield downloads
    downloads.close()


def tiny(name, **more):
    return DownloadSpec(hub=name, repo="org/tiny", **more)


def ended(downloads, download_id):
    return downloads.wait(download_id, lambda download: None, every_s=0.05)


def in_the_middle(downloads, download_id, least=300_000):
    """Wait until some of the weights are there, and not yet all."""

    def some():
        weights = next(file for file in downloads.view(download_id).files if file.path == "model.safetensors")
        return least < weights.received_bytes < weights.size_bytes

    until(some)


def partial_bytes(folder):
    """Bytes of files that are not whole yet; one that is whole meanwhile has another name."""
    found = 0
    for path in folder.rglob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


@pytest.mark.parametrize("name", HUBS)
def test_a_model_comes_whole_and_without_what_is_not_needed(name, hub, downloads):
    found = ended(downloads, downloads.start(tiny(name)))
    assert (found.state, found.message) == ("finished", "")
    assert {file.path for file in found.files} == {path.name for path in found.path.iterdir()} == TAKEN
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert found.received_bytes == found.total_bytes == sum(len(TINY[path]) for path in TAKEN)
    assert hub.sent("model.safetensors") == len(WEIGHTS)
    assert not hub.sent("pytorch_model.bin")


def test_the_hubs_own_client_finds_what_came(hub, downloads):
    import huggingface_hub

    path = ended(downloads, downloads.start(tiny("huggingface"))).path
    folder = huggingface_hub.snapshot_download(
        "org/tiny", cache_dir=Path(os.environ["HF_HOME"]) / "hub", local_files_only=True
    )
    assert Path(folder) == path
    assert path.name == COMMIT
    again = ended(downloads, downloads.start(tiny("huggingface")))
    assert again.state == "finished"
    assert downloads.list() == [again]
    assert hub.sent("model.safetensors") == len(WEIGHTS)


@pytest.mark.parametrize("name", HUBS)
def test_paused_and_resumed_it_goes_on_from_the_byte_it_had(name, hub, downloads, tmp_path):
    hub.bytes_per_s = 1e6
    download_id = downloads.start(tiny(name))
    in_the_middle(downloads, download_id)
    until(lambda: downloads.view(download_id).bytes_per_s)
    assert downloads.view(download_id).eta_s > 0
    downloads.pause(download_id)
    assert downloads.view(download_id).state == "paused"
    had = partial_bytes(tmp_path / name)
    assert had > 300_000
    hub.bytes_per_s = None
    downloads.resume(download_id)
    found = ended(downloads, download_id)
    assert hub.starts("model.safetensors") == [0, had]
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS


def test_when_its_process_is_killed_it_is_interrupted_and_can_be_resumed(
    hub, settings, store, downloads, tmp_path
):
    hub.bytes_per_s = 1e6
    download_id = downloads.start(tiny("huggingface"))
    in_the_middle(downloads, download_id)
    worker = downloads._running[download_id].process
    worker.kill()
    until(lambda: downloads.view(download_id).state == "interrupted")
    had = partial_bytes(tmp_path / "huggingface")
    hub.bytes_per_s = None
    later = Downloads(settings, store)  # as after a restart
    assert [one.state for one in later.list()] == ["interrupted"]
    assert later.start(tiny("huggingface")) == download_id
    assert (ended(later, download_id).path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.starts("model.safetensors") == [0, had]


def test_kill_9_of_the_program_ends_its_downloads_and_the_same_command_goes_on(
    hub, settings, downloads, tmp_path
):
    hub.bytes_per_s = 1e6
    command = [sys.executable, "-m", "core", "models", "download", "org/tiny"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: partial_bytes(tmp_path / "huggingface") > 300_000)
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    worker.wait(10)
    assert [one.state for one in downloads.list()] == ["interrupted"]
    had = partial_bytes(tmp_path / "huggingface")
    hub.bytes_per_s = None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.starts("model.safetensors") == [0, had]
    assert "100%" in done.stderr


def test_ctrl_c_keeps_what_came(hub, settings, downloads, tmp_path):
    hub.bytes_per_s = 1e6
    command = [sys.executable, "-m", "core", "models", "download", "org/tiny"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: partial_bytes(tmp_path / "huggingface") > 300_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "paused at" in said and "Traceback" not in said
    assert [one.state for one in downloads.list()] == ["paused"]
    assert partial_bytes(tmp_path / "huggingface") > 300_000


@pytest.mark.parametrize("name", HUBS)
def test_cut_connections_are_tried_again_from_where_they_were(name, hub, downloads):
    hub.cut_after["model.safetensors"] = [500_000]
    found = ended(downloads, downloads.start(tiny(name)))
    assert (found.state, found.message) == ("finished", "")
    assert hub.starts("model.safetensors")[0] == 0
    assert 0 < hub.starts("model.safetensors")[1] <= 500_000
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", HUBS)
def test_a_server_without_ranges_sends_it_anew(name, hub, downloads):
    hub.without_ranges = True
    hub.cut_after["model.safetensors"] = [500_000]
    found = ended(downloads, downloads.start(tiny(name)))
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", HUBS)
def test_a_damaged_file_is_fetched_once_more(name, hub, downloads):
    hub.damaged["model.safetensors"] = 1
    found = ended(downloads, downloads.start(tiny(name)))
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.starts("model.safetensors") == [0, 0]


@pytest.mark.parametrize(
    ("name", "path"),
    [("huggingface", "model.safetensors"), ("huggingface", "config.json"), ("modelscope", "config.json")],
)
def test_a_file_that_stays_damaged_is_deleted_and_said(name, path, hub, downloads, tmp_path):
    before = set(tmp_path.rglob(path))
    repo = repositories.look(name, "org/tiny")
    hub.damaged[path] = 10
    found = ended(downloads, downloads.start(tiny(name), repo))
    assert (found.state, found.kind) == ("failed", "checksum")
    assert path in found.message
    assert set(tmp_path.rglob(path)) == before
    assert not list(tmp_path.rglob(f"{path}.incomplete"))


@pytest.mark.parametrize("other", [b'{"architectures": ["OtherForCausalLM"]}', b"{}"])
def test_small_files_are_checked_by_gits_own_names(other, hub, downloads):
    repo = repositories.look("huggingface", "org/tiny")
    (config,) = (file for file in repo.files if file.path == "config.json")
    assert config.sha256 is None and config.git_sha1
    hub.models["org/tiny"].files["config.json"] = other
    found = ended(downloads, downloads.start(tiny("huggingface"), repo))
    assert (found.state, found.kind) == ("failed", "checksum")


@pytest.mark.parametrize("name", HUBS)
def test_a_disk_that_is_too_small_is_said_before(name, downloads, monkeypatch):
    monkeypatch.setattr(repositories, "free_bytes", lambda hub: 2_000_000)
    with pytest.raises(HubError, match=r"needs 2\.9 MiB in .*, and 1\.9 MiB are free") as caught:
        downloads.start(tiny(name))
    assert caught.value.kind == "disk"
    assert downloads.list() == []


@pytest.mark.parametrize("name", HUBS)
def test_a_disk_that_fills_up_keeps_what_came(name, hub, downloads, tmp_path):
    limit = 1_500_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the download's process inherits it
    try:
        download_id = downloads.start(tiny(name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = ended(downloads, download_id)
    assert (found.state, found.kind) == ("failed", "disk")
    assert "full" in found.message and "resume" in found.hint
    assert partial_bytes(tmp_path / name) == limit
    downloads.resume(download_id)
    assert ended(downloads, download_id).state == "finished"
    assert hub.starts("model.safetensors") == [0, limit] or name == "modelscope"
    assert hub.starts("model.safetensors")[-1] == limit


@pytest.mark.parametrize("name", HUBS)
def test_cancel_removes_what_came_but_not_what_was_there(name, hub, downloads, tmp_path):
    first = ended(downloads, downloads.start(tiny(name, patterns=("tokenizer.json",))))
    hub.bytes_per_s = 1e6
    download_id = downloads.start(tiny(name))
    in_the_middle(downloads, download_id)
    downloads.cancel(download_id)
    assert partial_bytes(tmp_path) == 0
    assert not list(tmp_path.rglob("model.safetensors*"))
    assert (first.path / "tokenizer.json").read_bytes() == TINY["tokenizer.json"]
    assert [one.download_id for one in downloads.list()] == [first.download_id]
    downloads.forget(first.download_id)
    assert downloads.list() == []
    assert (first.path / "tokenizer.json").is_file()
    hub.models["org/other"] = Model(dict(TINY))
    download_id = downloads.start(DownloadSpec(hub=name, repo="org/other"))
    in_the_middle(downloads, download_id)
    downloads.cancel(download_id)
    assert not (tmp_path / "huggingface/hub/models--org--other").exists()
    assert not (tmp_path / "modelscope/models/org--other").exists()


def test_several_run_at_once_and_another_process_can_pause_them(hub, settings, store, downloads):
    hub.models["org/other"] = Model(dict(TINY))
    hub.bytes_per_s = 3e5
    wanted = (("huggingface", "org/tiny"), ("huggingface", "org/other"), ("modelscope", "org/tiny"))
    ids = [downloads.start(DownloadSpec(hub=name, repo=repo)) for name, repo in wanted]
    for download_id in ids:
        in_the_middle(downloads, download_id, least=20_000)
    other = Downloads(settings, store)
    assert {one.state for one in other.list()} == {"running"}
    other.pause(ids[0])
    until(lambda: downloads.view(ids[0]).state == "paused")
    assert downloads.view(ids[2]).state == "running"
    hub.bytes_per_s = None
    assert ended(downloads, ids[1]).state == ended(downloads, ids[2]).state == "finished"


@pytest.mark.parametrize("name", HUBS)
def test_a_gated_model_says_what_to_do_and_comes_with_a_token(name, hub, downloads, settings):
    hub.models["org/gated"] = Model(dict(TINY), gated=True, token="secret-token")
    spec = DownloadSpec(hub=name, repo="org/gated")
    assert repositories.look(name, "org/gated", settings=settings).locked
    with pytest.raises(HubError, match="its owner must let you in") as caught:
        downloads.start(spec)
    assert caught.value.kind == "gated"
    Secrets(settings).save(name, "secret-token")
    download_id = downloads.start(spec)
    assert "secret-token" not in " ".join(
        psutil.Process(downloads._running[download_id].process.pid).cmdline()
    )
    assert ended(downloads, download_id).state == "finished"
    asked = {one.host.partition(":")[0]: one.authorization for one in hub.served}
    assert asked["127.0.0.1"] == "Bearer secret-token"
    assert asked.get("localhost") is None  # where a hub sends for large files, the token does not go


@pytest.mark.parametrize("name", HUBS)
def test_a_token_that_is_refused_is_not_repeated(name, hub, downloads, settings, monkeypatch):
    hub.models["org/private"] = Model(dict(TINY), token="right")
    monkeypatch.setenv({"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[name], "wrong-token")
    repo = repositories.look(name, "org/private", settings=settings)
    assert "wrong-token" not in repo.locked
    found = ended(downloads, downloads.start(DownloadSpec(hub=name, repo="org/private"), repo))
    assert (found.state, found.kind) == ("failed", "token")
    assert "wrong-token" not in found.message + found.hint


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    ("repo", "revision", "kind"),
    [
        ("org/nowhere", None, "missing"),
        ("org/tiny", "nothing", "revision"),
        ("../../etc", None, "missing"),
        ("org/tiny", "../x", "revision"),
    ],
)
def test_what_is_not_there_is_said(name, repo, revision, kind, settings):
    with pytest.raises(HubError) as caught:
        repositories.look(name, repo, revision, settings=settings)
    assert caught.value.kind == kind
    assert caught.value.hint


@pytest.mark.parametrize("name", HUBS)
def test_a_hub_that_is_not_reached_is_said_with_its_address(name, hub, settings, monkeypatch):
    variable = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[name]
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(HubError, match="can't be reached") as caught:
        repositories.look(name, "org/tiny", settings=settings)
    assert caught.value.kind == "unreachable"
    assert "127.0.0.1:9" in caught.value.hint and variable in caught.value.hint


def test_a_hub_in_trouble_is_unreachable_and_the_download_can_be_resumed(hub, downloads):
    repo = repositories.look("huggingface", "org/tiny")
    hub.out_of_order = True
    download_id = downloads.start(tiny("huggingface"), repo)
    found = ended(downloads, download_id)
    assert (found.state, found.kind) == ("failed", "unreachable")
    hub.out_of_order = False
    downloads.resume(download_id)
    assert ended(downloads, download_id).state == "finished"


@pytest.mark.parametrize("name", HUBS)
def test_search_and_reading_a_part_of_a_file(name, hub, settings):
    hub.models["other/thing"] = Model({})
    (found,) = repositories.search(name, "TINY", settings=settings)
    assert (found.repo, found.downloads, found.likes, found.license) == ("org/tiny", 1234, 56, "apache-2.0")
    size = {"huggingface": 2024, "modelscope": sum(map(len, TINY.values()))}
    assert (found.size_bytes, found.updated_at.year) == (size[name], 2026)
    assert repositories.search(name, "no such", settings=settings) == []
    arguments = (name, "org/tiny", None, "model.safetensors")
    assert repositories.read_range(*arguments, 100, 200, settings=settings) == WEIGHTS[100:200]
    until(lambda: hub.sent("model.safetensors") == 100)
    hub.without_ranges = True
    assert repositories.read_range(*arguments, 100, 200, settings=settings) == WEIGHTS[100:200]
    with pytest.raises(ModelError):
        repositories.read_range(name, "org/tiny", None, "../../../etc/passwd", 0, 1, settings=settings)


def test_the_command_line_lists_what_a_search_finds(hub, settings, capsys):
    cli_hub.search("tiny", "huggingface", 5, False)
    assert "org/tiny" in (line := capsys.readouterr().out) and "1,234 downloads" in line
    cli_hub.search("tiny", "modelscope", 5, True)
    assert json.loads(capsys.readouterr().out)["license"] == "apache-2.0"
    cli_hub.search("nothing", "huggingface", 5, False)
    assert "Nothing on Hugging Face" in capsys.readouterr().err


def test_names_out_of_the_folder_are_left_out(hub, settings):
    hub.models["org/evil"] = Model({"../../evil.json": b"{}", "/abs.json": b"{}", "ok.json": b"{}"})
    for name in HUBS:
        assert [file.path for file in repositories.look(name, "org/evil", settings=settings).files] == [
            "ok.json"
        ]


def test_pickle_only_is_refused_until_it_is_allowed_for_this_model(hub, downloads, settings):
    files = {path: content for path, content in TINY.items() if path != "model.safetensors"}
    hub.models["org/pickled"] = Model(files)
    spec = DownloadSpec(hub="huggingface", repo="org/pickled")
    with pytest.raises(HubError, match="pickle only") as caught:
        downloads.start(spec)
    assert caught.value.kind == "refused"
    allowed = DownloadSpec(hub="huggingface", repo="org/pickled", allow=frozenset({"pickle"}))
    found = ended(downloads, downloads.start(allowed))
    assert (found.path / "pytorch_model.bin").is_file()
    assert permissions.allowed(settings, "org/pickled", "huggingface") == {"pickle"}
    assert permissions.allowed(settings, "org/pickled", "modelscope") == frozenset()
    downloads.forget(found.download_id)
    assert ended(downloads, downloads.start(spec)).state == "finished"  # remembered


def test_fetch_now_reports_and_gives_the_folder(settings, hub):
    hub.bytes_per_s = 6e6
    said = []
    folder = fetch_now("modelscope", "org/tiny", None, settings, said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any(line.startswith("Downloading org/tiny: ") and line.endswith("%") for line in said)


def test_fetch_now_gives_up_its_process_when_its_caller_does(settings, hub, downloads):
    hub.bytes_per_s = 1e6

    def stop(stage):
        if stage.startswith("Downloading") and hub.sent("model.safetensors") > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_now("huggingface", "org/tiny", None, settings, stop)
    assert [one.state for one in downloads.list()] == ["interrupted"]
    sent = hub.sent("model.safetensors")
    time.sleep(0.3)
    assert hub.sent("model.safetensors") <= sent + 200_000


def test_one_gguf_file_comes_alone(hub, downloads):
    hub.models["org/gguf"] = Model(
        {"m.Q8_0.gguf": b"8" * 3000, "m.Q4_K_M.gguf": b"4" * 2000, "README.md": b"x"}
    )
    found = ended(downloads, downloads.start(DownloadSpec(hub="huggingface", repo="org/gguf")))
    assert found.path.name == "m.Q4_K_M.gguf" and found.path.read_bytes() == b"4" * 2000
    other = DownloadSpec(hub="modelscope", repo="org/gguf", patterns=("*Q8_0.gguf",))
    assert ended(downloads, downloads.start(other)).path.name == "m.Q8_0.gguf"


def test_a_catalogue_that_can_not_be_written_leaves_no_process_and_is_made_up_for(
    hub, downloads, monkeypatch
):
    download_id = downloads.start(tiny("huggingface"))
    write = downloads._update

    def full(*arguments, **values):
        raise WorkbenchError("The catalogue can't be written: database or disk is full.")

    monkeypatch.setattr(downloads, "_update", full)
    assert ended(downloads, download_id).state == "finished"
    hub.models["org/other"] = Model(dict(TINY))
    with pytest.raises(WorkbenchError, match="disk is full"):
        downloads.start(DownloadSpec(hub="huggingface", repo="org/other"))

    def workers():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, or long ago
                if "core.hub.worker" in child.cmdline():
                    yield child

    until(lambda: not list(workers()))
    monkeypatch.setattr(downloads, "_update", write)
    assert ended(downloads, downloads.start(DownloadSpec(hub="huggingface", repo="org/other"))).path
