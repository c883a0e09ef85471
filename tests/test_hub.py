"""A model by its Hub id: downloaded, or one sentence that says why not."""

import huggingface_hub
import jax
import pytest

import gptj
from gptj import hub


def test_a_model_is_loaded_by_its_hub_id(monkeypatch, tmp_path):
    config = gptj.ModelConfig(1, 16, 2, 4, 32, 257, 384, 32)
    params = gptj.init(jax.random.key(0), config)
    gptj.Model(config, params, gptj.Tokenizer.bytes()).save(tmp_path / "saved")
    asked = []

    def download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(tmp_path / "saved")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert gptj.load("someone/their-model").config == config
    assert asked == [
        ("someone/their-model", ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model"])
    ]


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    def download(hub_id, allow_patterns):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(gptj.UserError, match=r"the model 'a/b' is neither .*\(no route to host\)"):
        gptj.load("a/b")


@pytest.mark.parametrize("spec", ["/abs/path", "a/b/c", "../up", "~/home", ""])
def test_paths_are_no_ids(spec):
    assert not hub.is_hub_id(spec)


@pytest.mark.parametrize("spec", ["gpt2", "EleutherAI/gpt-j-6b", "a_b/c.d-e", "0/1"])
def test_ids_are_a_name_or_two(spec):
    assert hub.is_hub_id(spec)


@pytest.mark.parametrize("spec", ["a/", "/a", "-a", "a/.b", "a b", "a/b\n", "é/b", "gs://a/b"])
def test_anything_else_is_none(spec):
    assert not hub.is_hub_id(spec)


def test_the_sentence_names_what_was_asked_for_and_keeps_the_reason(monkeypatch):
    def download(hub_id, allow_patterns):
        raise RuntimeError("401 of a kind")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(gptj.UserError) as refusal:
        hub.download("a/b", "tokenizer", ["*.json"])
    assert str(refusal.value) == (
        "the tokenizer 'a/b' is neither a path here nor to be had from the Hugging Face Hub (401 "
        "of a kind): check the name and the network, or give a path"
    )
    assert isinstance(refusal.value.__cause__, RuntimeError)


def test_downloads_are_kept_where_the_hub_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.folder() == tmp_path
