"""Whatever a model is called and wherever it lies, it is the same weights, or one sentence."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import fsspec
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zstandard

import gptj as package
from gptj import ModelConfig, UserError
from gptj.checkpoint import CheckpointError
from gptj.convert import safetensors
from gptj.convert.convert import ConvertConfig, convert, stored_in, write
from gptj.convert.inspect import diff
from gptj.convert.open import open_source
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, from_params
from gptj.convert.tensor import Tensor
from gptj.files import Folder

CONFIG = ModelConfig(2, 16, 2, 4, 64, 257, 258, context=16)
KINDS = ("gptj", "huggingface", "mesh-transformer")
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(dtype="float32", seed=0, **changes):
    config = replace(CONFIG, **changes)
    noise = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(noise.normal(size=x.shape), dtype)  # noqa: E731
    params = jax.tree.map(draw, package.init(jax.random.key(0), config))
    return replace(from_params(config, params, package.Tokenizer.bytes()), step=3)


def stored(array):
    return Tensor(array.shape, array.dtype, lambda: array)


def written(folder, kind="gptj", source=None):
    write(source or made(), folder, kind, 2)
    return folder


def same(params, others):
    def check(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    jax.tree.map(check, params, others)


@each_kind
def test_the_kind_is_seen_from_the_files(kind, gptj, tmp_path):
    folder = written(tmp_path / "model", kind)
    assert open_source(folder).kind == kind
    assert gptj("inspect", folder).out.startswith(f"{folder}: {kind}\n")


def test_a_run_becomes_each_kind_and_stays_the_same_weights(tiny_run, gptj, tmp_path):
    assert (open_source(tiny_run).kind, open_source(tiny_run).step) == ("run", 12)
    place, came = tiny_run, tiny_run
    for kind in ("gptj", "huggingface", "mesh-transformer", "gptj", "huggingface"):
        place, came = tmp_path / f"{place.name}-{kind}", place
        shards = ["--shards", 4] if kind == "mesh-transformer" else []
        assert gptj("convert", came, place, "--to", kind, *shards).code == 0
        assert open_source(place).kind == kind
        found = diff(open_source(tiny_run), open_source(place))
        assert not found.tensors
        assert open_source(place).config.vocab_size == 257
    words = {"prompts": "the ", "max_tokens": 5, "temperature": 0}
    assert package.load(place).generate(**words) == package.load(tiny_run).generate(**words)
    assert gptj("diff", tiny_run, place).code == 0


@each_kind
def test_it_is_read_through_a_url(kind, tmp_path):
    here = written(tmp_path / "model", kind)
    memory, there = fsspec.filesystem("memory"), f"memory://{kind}-of-this-test/step_3"
    memory.put(str(here), there, recursive=True)
    ours, theirs = package.load(here), package.load(there)
    same(theirs.params, ours.params)
    assert (theirs.config, theirs.tokenizer.sha256) == (ours.config, ours.tokenizer.sha256)
    same(package.load(f"memory://{kind}-of-this-test").params, ours.params)  # the one folder in it
    assert diff(open_source(there), open_source(here)).same_bits


def test_a_config_above_the_shards_is_found_behind_a_url_too(tmp_path):
    here, memory = written(tmp_path / "model", KINDS[2]), fsspec.filesystem("memory")
    (here / "config.json").unlink()
    memory.put(str(here), "memory://bare/step_3", recursive=True)
    with pytest.raises(UserError, match="does not say how many heads"):
        open_source("memory://bare/step_3")
    written(tmp_path / "again", KINDS[2])
    memory.put(str(tmp_path / "again" / "config.json"), "memory://bare/config.json")
    assert open_source("memory://bare/step_3").config.heads == 2


def test_a_run_is_not_read_from_afar(tiny_run, refused, tmp_path):
    fsspec.filesystem("memory").put(str(tiny_run), "memory://a/run", recursive=True)
    said = "memory://a/run is a run, which cannot be read from afar: copy it to this machine"
    refused("convert", "memory://a/run", tmp_path / "out", said=(said,))


@pytest.mark.parametrize("place", ["memory://nothing", "memory://nothing/here", "memory://a-file"])
def test_nothing_behind_a_url(place, refused, tmp_path):
    fsspec.filesystem("memory").pipe("/a-file", b"x")
    refused("convert", place, tmp_path / "out", said=(f"no model at {place}: give",))


@pytest.mark.parametrize("place", ["nosuch://bucket/model", "nosuch://"])
def test_an_unknown_kind_of_url(place, refused, tmp_path):
    refused("convert", place, tmp_path / "out", said=(f"{place} cannot be opened", "nosuch"))


@pytest.mark.parametrize(("place", "package"), [("gs://b/step_3", "gcsfs"), ("s3://b", "s3fs")])
def test_a_cloud_whose_package_is_missing(place, package, refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)  # importing it then fails, installed or not
    said = (f"{place} cannot be opened", package, ": pip install 'gptj-jax[cloud]'\n")
    refused("convert", place, tmp_path / "out", said=said)


@pytest.mark.parametrize("call", ["ls", "isfile", "cat_file"])
def test_storage_that_fails(call, refused, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("the token\nhas expired")

    memory = fsspec.filesystem("memory")
    memory.put(str(written(tmp_path / "model")), "memory://failing", recursive=True)
    monkeypatch.setattr(type(memory), call, fail)
    said = ("failing", "cannot be read (the token has expired): check the address, the network")
    refused("convert", "memory://failing", tmp_path / "deep" / "out", said=said)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["memory://bucket", "memory://bucket/", "memory://"])
def test_the_folder_above_a_bucket_is_not_one_of_this_machine(place):
    assert str(Folder(place).parent) == place
    assert str(Folder("memory://bucket/step_1/").parent) == "memory://bucket"


def test_a_hub_id_without_a_network(refused, monkeypatch, tmp_path):
    def download(*_, **__):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    said = ("the model 'someone/model' is neither a path here", "(no route to host)")
    refused("convert", "someone/model", tmp_path / "deep" / "out", said=said)
    assert not list(tmp_path.iterdir())


def packed(folder, into):
    """`folder` as an archive, removed itself."""
    with tarfile.open(into, "w") as archive:
        archive.add(folder, folder.name)
    if into.suffix == ".zst":
        into.write_bytes(zstandard.ZstdCompressor().compress(into.read_bytes()))
    shutil.rmtree(folder)
    return into


def test_an_archive_is_read_in_place_and_nothing_stays(tmp_path):
    archive = packed(written(tmp_path / "step_3", KINDS[2]), tmp_path / "step_3.tar.zst")
    program = (
        "import sys, gptj, gptj.cli\n"
        "from pathlib import Path\n"
        "archive, out = sys.argv[1:]\n"
        "gptj.load(archive).save(out + '/loaded')\n"
        "sys.exit(gptj.cli.main(['convert', archive, out + '/converted']))"
    )
    words = [sys.executable, "-c", program, archive, tmp_path / "out"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"step_3.tar.zst", "out"}
    written(tmp_path / "again", KINDS[2])
    for name in ("loaded", "converted"):
        found = diff(open_source(tmp_path / "out" / name), open_source(tmp_path / "again"))
        assert found.same_bits


@pytest.mark.parametrize("keep", [0, 5000, 30_000])
def test_a_damaged_archive_leaves_nothing(keep, refused, tmp_path):
    archive = packed(written(tmp_path / "step_3", KINDS[2]), tmp_path / "step_3.tar")
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError):
        package.load(archive)
    refused("convert", archive, tmp_path / "deep" / "out", said=(str(archive),))
    assert list(tmp_path.iterdir()) == [archive]


def test_what_is_wrong_in_an_archive_is_named_by_the_archive(refused, tmp_path):
    folder = written(tmp_path / "step_3", KINDS[2])
    damaged = folder / "shard_1" / "0.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    archive = packed(folder, tmp_path / "step_3.tar.zst")
    said = f"{archive}/step_3/shard_1/0.npz is damaged or not what its name says (the checksum of"
    assert "content" not in refused("inspect", archive, said=(said,))
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3" / "notes.txt").write_text("nothing")
    archive = packed(tmp_path / "step_3", tmp_path / "step_3.tar")
    refused("inspect", archive, said=(f"no model at {archive}/step_3: give",))


def test_an_archive_of_no_folder_but_files(gptj, tmp_path):
    folder = written(tmp_path / "step_3", KINDS[2])
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        for path in folder.iterdir():
            archive.add(path, path.name)
    said = gptj("inspect", tmp_path / "flat.tar")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{tmp_path / 'flat.tar'}: mesh-transformer\n")
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "shard_1")
    with tarfile.open(tmp_path / "less.tar", "w") as archive:
        archive.add(folder / "shard_0", "shard_0")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'less.tar'} "):
        open_source(tmp_path / "less.tar")


def test_an_archive_where_nothing_can_be_written(monkeypatch, tmp_path):
    archive = packed(written(tmp_path / "step_3", KINDS[2]), tmp_path / "step_3.tar")

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(UserError, match=r"\(Permission denied\): copy it where you may write"):
        open_source(archive)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_with_an_embedding_bias_is_saved_and_loaded(dtype, tmp_path):
    ours = package.load(written(tmp_path / "a", source=made(dtype, embedding_bias=True)))
    assert ours.params.embedding_bias.any()
    ours.save(tmp_path / "b")
    again = package.load(tmp_path / "b")
    assert again.config == ours.config
    same(again.params, ours.params)
    folded = written(tmp_path / "c", "huggingface", made(embedding_bias=True))
    with_bias = package.load(tmp_path / "a", dtype=jnp.float32).logits([[1, 2, 3]])
    close = 1e-4 if dtype == "float32" else 0.2
    np.testing.assert_allclose(package.load(folded).logits([[1, 2, 3]]), with_bias, atol=close)


@each_kind
def test_float16_is_loaded_as_float32_and_keeps_its_numbers(kind, tmp_path):
    source = made("float16")
    folder = written(tmp_path / "half", kind, source)
    assert {t.dtype for t in open_source(folder).weights.values()} == {np.dtype("float16")}
    ours = package.load(folder)
    assert ours.dtype == np.float32
    assert not diff(source, from_params(ours.config, ours.params, None)).tensors


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_asked_for_is_the_rounded_weights(kind, dtype, tmp_path):
    folder = written(tmp_path / "model", source=made())
    convert(
        ConvertConfig(str(folder), tmp_path / "out", kind, dtype, 2 if "mesh" in kind else None)
    )
    found = diff(stored_in(made(), np.dtype(jnp.dtype(dtype))), open_source(tmp_path / "out"))
    assert found.same_bits


@each_kind
def test_nans_are_counted_and_said(kind, gptj, tmp_path):
    source = made()
    for name in ("blocks.1.ffn_out_bias", "output_bias"):
        damaged = source.weights[name].read().copy()
        damaged[3:5] = np.nan
        source.weights[name] = stored(damaged)
    words = ("convert", written(tmp_path / "model", source=source), tmp_path / "out", "--to", kind)
    said = (
        r"note: 4 weights are not numbers \(NaN\), in 2 tensors, (blocks|output_b).* is damaged\n"
    )
    assert re.search(said, gptj(*words, *shards_of(kind)).out)
    assert not re.search("NaN", gptj("convert", written(tmp_path / "good"), tmp_path / "b").out)
    assert diff(open_source(tmp_path / "out"), source).tensors == 0


@pytest.fixture
def trained(tmp_path):
    """One of our folders, with an optimizer's state."""
    source = made()
    count = stored(np.array(3, np.int32))
    moments = {prefix + n: tensor for prefix in (MU, NU) for n, tensor in source.weights.items()}
    optimizer = {**moments, COUNT: count, SCHEDULE_COUNT: count}
    return written(tmp_path / "model", source=replace(source, optimizer=optimizer))


@each_kind
def test_slim_leaves_the_optimizer_out_and_rounds(kind, trained, gptj, tmp_path):
    assert open_source(trained).optimizer is not None
    done = gptj("convert", trained, tmp_path / "slim", "--to", kind, "--slim", *shards_of(kind))
    assert "note: the optimizer's state is left out\n" in done.out
    slim = open_source(tmp_path / "slim")
    assert (slim.optimizer, slim.dtype) == (None, jnp.bfloat16)
    whole = gptj("convert", trained, tmp_path / "whole", "--to", kind, *shards_of(kind))
    assert ("note: the optimizer" in whole.out) == (
        open_source(tmp_path / "whole").optimizer is None
    )
    assert (kind == "huggingface") == (open_source(tmp_path / "whole").optimizer is None)


def shards_of(kind):
    return ["--shards", "2"] if kind == "mesh-transformer" else []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shards", 2], "shards counts the parts of a mesh-transformer checkpoint"),
        (["--shards", 8], "shards counts the parts of a mesh-transformer checkpoint"),
        (["--shards", 3, "--to", "mesh-transformer"], "shards=3 must be one of 1, 2, 4, 8, 16"),
        (["--to", "mesh-transformer"], "8 shards do not divide the model's heads=2"),
        (["--config", "gpt-j-6b"], "has its own config: leave out the one you give"),
        (["--config", "nowhere.json"], "no config 'nowhere.json'"),
        (["--tokenizer", "./nowhere"], "./nowhere"),
    ],
)
def test_options_that_do_not_fit(flags, said, refused, tmp_path):
    folder = written(tmp_path / "model")
    refused("convert", folder, tmp_path / "deep" / "out", *flags, said=(said,))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_there_is_not_written_over(refused, tmp_path):
    folder = written(tmp_path / "model")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for out in (tmp_path, tmp_path / "notes.txt", folder):
        refused("convert", folder, out, said=(f"{out} exists and is not an empty folder",))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@each_kind
@pytest.mark.parametrize("size", [0, 1000, 8000])
def test_a_full_disk_leaves_nothing(kind, size, trained, full_disk, tmp_path):
    source = open_source(trained)
    with full_disk(size), pytest.raises(CheckpointError, match=r"could not be written.*too large"):
        write(source, tmp_path / "deep" / "out", kind, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def retyped(name, dtype, file="weights.safetensors", notes=None):
    """Damage: one tensor of another type, or the file with other notes."""

    def damage(folder):
        found = dict(safetensors.tensors(Folder(folder).file(file)))
        whole = {n: stored(tensor.read()) for n, tensor in found.items()}
        if name:
            whole[name] = whole[name].cast(np.dtype(dtype), name)
        (folder / file).unlink()
        safetensors.write(folder / file, whole, notes or {})

    return damage


def configured(**changes):
    def damage(folder):
        values = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**values, **changes}))

    return damage


def renamed(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"output_bias"', b'"output_bi\\n"'))


DAMAGES = {
    "layers": (configured(layers=3), ("missing blocks.2.attention_out",)),
    "shape": (configured(d_ff=65), ("ffn_in has shape (16, 64), the config says (16, 65)",)),
    "field": (configured(colour=1), ("model.json", "colour")),
    "names": (renamed, ("weights.safetensors", "unknown output_bi; missing output_bias")),
    "type": (retyped("output", "int32"), ("output is of type int32",)),
    "step": (retyped("", "", notes={"step": "x"}), ("its step 'x' is not a whole number",)),
    "moment": (retyped("mu.output", "int64", "optimizer.safetensors"), ("mu.output is of type",)),
    "counter": (retyped(COUNT, "float32", "optimizer.safetensors"), ("count is not a counter",)),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), ("no complete checkpoint",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_of_ours_is_one_sentence(damage, refused, trained, tmp_path):
    breaks, said = DAMAGES[damage]
    breaks(trained)
    refused("convert", trained, tmp_path / "deep" / "out", said=(str(trained), *said))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
