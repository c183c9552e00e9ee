"""Tokens and keys: where they come from, how they are kept."""

import stat

import pytest

from core.errors import ParameterError, WorkbenchError
from core.secrets import Secrets


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_saved_token_is_found_again_until_it_is_forgotten(settings):
    assert Secrets(settings).find("huggingface") is None
    Secrets(settings).save("huggingface", "  hf_abc\n")
    Secrets(settings).save("endpoint:http://host/v1", "key")
    assert Secrets(settings).find("huggingface") == "hf_abc"
    assert Secrets(settings).where("huggingface") == "saved"
    Secrets(settings).forget("huggingface")
    Secrets(settings).forget("huggingface")
    assert Secrets(settings).where("huggingface") is None
    assert Secrets(settings).find("endpoint:http://host/v1") == "key"


def test_the_environment_wins_and_is_not_saved(settings, monkeypatch):
    secrets = Secrets(settings)
    secrets.save("modelscope", "saved")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "given")
    assert (secrets.find("modelscope"), secrets.where("modelscope")) == ("given", "environment")
    assert "given" not in (settings.home / "secrets.json").read_text()


def test_only_its_owner_may_read_the_file_and_nothing_shows_what_is_in_it(settings):
    secrets = Secrets(settings)
    secrets.save("huggingface", "hf_abc")
    assert stat.S_IMODE((settings.home / "secrets.json").stat().st_mode) == 0o600
    assert "hf_abc" not in repr(secrets)
    assert not list(settings.home.glob(".secrets.*"))


@pytest.mark.parametrize("value", ["", "  ", "two\nlines", "x" * 5000, "naïve"])
def test_what_can_be_no_token_is_refused_without_repeating_it(settings, value):
    with pytest.raises(ParameterError) as caught:
        Secrets(settings).save("huggingface", value)
    assert value.strip() == "" or value not in str(caught.value)


def test_a_broken_file_says_what_to_do(settings):
    (settings.home / "secrets.json").write_text("{")
    with pytest.raises(WorkbenchError, match="Delete it"):
        Secrets(settings).find("huggingface")
