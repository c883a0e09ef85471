"""The original's shards: written and read bit for bit, and refused when anything is amiss."""

import json
import shutil
import tracemalloc
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj as package
from gptj import PRESETS, ModelConfig, UserError
from gptj.convert import names
from gptj.convert.convert import write
from gptj.convert.inspect import diff
from gptj.convert.mesh_transformer import FIELDS, SHARDS, ordered, read_config, scope
from gptj.convert.open import config_named, open_source
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, from_params
from gptj.convert.tensor import Tensor

CONFIG = ModelConfig(2, 32, 16, 2, 128, 64, 64, context=16, embedding_bias=True)
SUMMED = ("embedding_bias", "blocks.0.ffn_out_bias", "blocks.1.ffn_out_bias")
NORMS = ("blocks.0.norm_scale", "blocks.1.norm_offset", "norm_scale", "norm_offset")


def made(config=CONFIG, dtype="float32", seed=0, optimizer=False, step=7):
    """A model with noise for weights, and for Adam's moments."""
    noise = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(noise.normal(size=x.shape), dtype)  # noqa: E731
    params = jax.tree.map(draw, package.init(jax.random.key(0), config))
    source = replace(from_params(config, params, None), step=step)
    if not optimizer:
        return source
    stored = lambda x: Tensor(x.shape, x.dtype, lambda: x)  # noqa: E731
    moments = {
        prefix + name: stored(noise.normal(size=tensor.shape).astype(np.float32))
        for prefix in (MU, NU)
        for name, tensor in source.weights.items()
    }
    counts = {COUNT: stored(np.array(7, np.int32)), SCHEDULE_COUNT: stored(np.array(3, np.int32))}
    return replace(source, optimizer={**moments, **counts})


def written(folder, source=None, shards=2):
    write(source or made(), folder, "mesh-transformer", shards)
    return folder


def raw(folder):
    """The leaves of each shard as NumPy reads them."""
    count = len(list(folder.glob("shard_*")))
    files = [[folder / f"shard_{s}" / f"{i}.npz" for i in range(16)] for s in range(count)]
    return [[array for f in shard for array in np.load(f).values()] for shard in files]


def equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        x, y = tensor.read(), found[name].read()
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", SHARDS)
def test_there_and_back_every_bit_stays(dtype, shards, tmp_path):
    source = made(dtype=dtype, optimizer=shards < 4)
    back = open_source(written(tmp_path / "shards", source, shards))
    assert (back.config, back.step) == (source.config, source.step)
    equal(back.weights, source.weights)
    equal(back.optimizer or {}, source.optimizer or {})


def test_a_model_without_an_embedding_bias_gets_one_of_zeros(tmp_path):
    source = made(replace(CONFIG, embedding_bias=False), "bfloat16", optimizer=True)
    folder = written(tmp_path / "shards", source)
    back = open_source(folder)
    assert back.config == CONFIG
    for found, held in ((back.weights, source.weights), (back.optimizer, source.optimizer)):
        added = {name: found.pop(name) for name in set(found) - set(held)}
        assert added
        assert all(name.endswith("embedding_bias") for name in added)
        assert not any(tensor.read().any() for tensor in added.values())
        assert {tensor.dtype for tensor in added.values()} == {found[n].dtype for n in found} - {
            np.dtype("int32")
        }
        equal(found, held)
    assert not diff(open_source(folder), source).tensors


def test_leaves_are_in_the_order_of_their_names_as_strings():
    order = ordered(12)
    first = {layer: order.index(f"blocks.{layer}.query") for layer in range(12)}
    assert sorted(first, key=first.get) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    of_a_layer = [name.removeprefix("blocks.1.") for name in order if "blocks.1." in name]
    assert of_a_layer == [
        *("query", "value", "key", "attention_out", "ffn_in_bias", "ffn_in"),
        *("ffn_out_bias", "ffn_out", "norm_offset", "norm_scale"),
    ]
    assert order[:2] == ["embedding_bias", "embedding"]
    assert order[-4:] == ["output_bias", "output", "norm_offset", "norm_scale"]
    full = scope(12, True)
    moments = [MU + name for name in order] + [NU + name for name in order]
    assert full == [COUNT, *moments, SCHEDULE_COUNT, *scope(12, False)]


@pytest.mark.parametrize("full", [False, True])
def test_the_files_hold_the_leaves_in_order_in_sixteen_groups(full, tmp_path):
    source = made(replace(CONFIG, layers=11), optimizer=full)
    folder = written(tmp_path / "shards", source, 1)
    sizes = [len(np.load(folder / "shard_0" / f"{i}.npz").files) for i in range(16)]
    least, more = divmod(len(scope(11, full)), 16)
    assert sizes == [least + 1] * more + [least] * (16 - more)
    held = {**source.weights, **(source.optimizer or {})}
    for name, array in zip(scope(11, full), raw(folder)[0], strict=True):
        expected = np.array(7, np.int32) if name == "step" else held[name].read()
        np.testing.assert_array_equal(array.reshape(expected.shape), expected, name)


def test_the_released_model_has_the_leaves_it_has():
    assert len(scope(28, False)) == 287 == 15 * 18 + 17
    assert len(scope(28, True)) == 861 == 13 * 54 + 3 * 53


def test_what_every_shard_has_a_copy_of(tmp_path):
    source = made(optimizer=True)
    shards = raw(written(tmp_path / "shards", source, 4))
    copies = {n: [s[i] for s in shards] for i, n in enumerate(scope(2, True))}
    for name in SUMMED:
        whole = source.weights[name].read()
        assert all((copy == whole / 4).all() for copy in copies[name])
        for moment in (MU + name, NU + name):
            assert all((copy == source.optimizer[moment].read()).all() for copy in copies[moment])
    for name in NORMS:
        assert (copies[name][0] == source.weights[name].read()).all()
        assert all((rest == name.endswith("scale")).all() for rest in copies[name][1:])
        assert (copies[MU + name][0] == source.optimizer[MU + name].read()).all()
        assert not any(rest.any() for rest in copies[MU + name][1:])


def test_of_a_norm_only_the_first_copy_counts(tmp_path):
    folder, other = written(tmp_path / "shards"), written(tmp_path / "other")
    shards = raw(folder)
    shards[1][scope(2, False).index("norm_scale")][:] = 99
    regroup(folder / "shard_1", shards[1])
    assert diff(open_source(folder), open_source(other)).same_bits


def test_bfloat16_is_two_bytes_without_a_type(tmp_path):
    file = written(tmp_path / "shards", made(dtype="bfloat16")) / "shard_0" / "0.npz"
    assert b"{'descr': '<V2', 'fortran_order': False, " in file.read_bytes()
    assert {array.dtype for array in np.load(file).values()} == {np.dtype("V2")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ({"rotary_base": 5e3}, "rotary_base=5000"),
        ({"heads": 4}, "8 shards do not divide the model's heads=4"),
        ({"padded_vocab_size": 68}, "padded_vocab_size=68"),
    ],
)
def test_what_it_cannot_hold_is_refused(change, said, tmp_path):
    with pytest.raises(UserError, match=said):
        write(made(replace(CONFIG, **change)), tmp_path / "out", "mesh-transformer", 8)
    assert not list(tmp_path.iterdir())


class TestConfig:
    """Heads, rotary dims and positions are in no tensor: a config must tell."""

    @pytest.fixture
    def bare(self, tmp_path):
        folder = written(tmp_path / "run" / "step_7")
        return folder, (folder / "config.json").rename(tmp_path / "config.json")

    def test_it_lies_beside_or_above_alone_or_under_a_key(self, bare):
        folder, config = bare
        fields = json.loads(config.read_text())
        for place in (folder, folder.parent):
            for content in (fields, {"model": fields, "tpu_size": 8}):
                (place / "config.json").write_text(json.dumps(content))
                assert open_source(folder).config == CONFIG
                (place / "config.json").unlink()

    def test_it_is_given(self, bare, gptj, tmp_path):
        folder, theirs = bare
        ours = tmp_path / "ours.json"
        replace(CONFIG, embedding_bias=False).save(ours)
        assert package.load(folder, config=CONFIG).config == CONFIG
        for path in (ours, theirs):
            assert config_named(str(path)).layers == 2
            assert gptj("inspect", folder, "--config", path).code == 0
        with pytest.raises(UserError, match="make layers=2, the config says 28: a shard"):
            package.load(folder, config=PRESETS["gpt-j-6b"])

    def test_without_one(self, bare, refused, tmp_path):
        said = (
            f"{bare[0]} does not say how many heads",
            "as config.json, or name it to `gptj convert` as --config",
        )
        refused("convert", bare[0], tmp_path / "deep" / "out", said=said)

    @pytest.mark.parametrize("text", [b"\xff\xfe", b"[" * 100_000, b'"n_heads"', b"{}"])
    def test_one_given_that_is_none(self, bare, refused, text, tmp_path):
        (tmp_path / "bad.json").write_bytes(text)
        refused("inspect", bare[0], "--config", tmp_path / "bad.json", said=("bad.json",))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"norm": "rmsnorm"}, "norm='rmsnorm' is not supported, only 'layernorm'"),
            ({"pe": "t5"}, "pe='t5' is not supported, only 'rotary'"),
            ({"layers": 3}, "make layers=2, the config says 3"),
            ({"layers": "two"}, "config.json: layers='two' must be a whole number"),
            ({"n_heads": 5}, "heads=5"),
            ({"n_vocab": None}, "vocab_size=None"),
            ({"model": 3}, "config.json is not a config of the original's"),
            ({"d_model": 64}, "make d_model=32, the config says 64"),
        ],
    )
    def test_one_that_does_not_fit(self, changes, said, tmp_path):
        folder = written(tmp_path / "shards")
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**fields, **changes}))
        with pytest.raises(UserError) as caught:
            package.load(folder)
        assert said in str(caught.value)

    @pytest.mark.parametrize("lost", FIELDS)
    def test_one_that_lacks_a_field(self, lost):
        fields = {theirs: 2 for theirs in FIELDS if theirs != lost}
        with pytest.raises(UserError, match=rf"^c\.json .* lacks {lost}\b"):
            read_config(json.dumps(fields), "c.json")


def regroup(shard, arrays, save=np.savez):
    """Write a shard's leaves anew."""
    for i, group in enumerate(np.array_split(np.arange(len(arrays)), 16)):
        save(shard / f"{i}.npz", *(arrays[at] for at in group))


def changed(place, value):
    """Damage: the leaf at `place` becomes `value`, of it, in every shard."""

    def damage(folder):
        for number, arrays in enumerate(raw(folder)):
            arrays[place] = value(arrays[place])
            regroup(folder / f"shard_{number}", arrays)

    return damage


def bomb(shape):
    """Damage: the last file's array claims `shape`, and has no bytes."""

    def damage(folder):
        path = folder / "shard_1" / "15.npz"
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as out:
            header = {"descr": "<i4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)

    return damage


def header(text):
    """Damage: the last file's array has this header."""

    def damage(folder):
        content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
        with zipfile.ZipFile(folder / "shard_1" / "15.npz", "w") as archive:
            archive.writestr("arr_0.npy", content)

    return damage


def cut(keep):
    def damage(folder):
        path = folder / "shard_1" / "3.npz"
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def flipped(folder):
    """Damage: one bit of a weight, in the middle of the last shard's largest file."""
    path = max((folder / "shard_1").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def mixed(**other):
    """Damage: the second shard is another model's."""

    def damage(folder):
        shutil.rmtree(folder / "shard_1")
        theirs = written(folder.parent / "theirs", made(**other))
        (theirs / "shard_1").rename(folder / "shard_1")
        shutil.rmtree(theirs)

    return damage


def lost(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def compressed(folder):
    regroup(folder / "shard_0", raw(folder)[0], np.savez_compressed)


def extra(folder):
    np.savez(folder / "shard_0" / "15.npz", np.int32(7), np.zeros(3, np.float32))


def named(folder):
    np.savez(folder / "shard_0" / "15.npz", step=np.int32(7))


def fewer(folder):
    for number, arrays in enumerate(raw(folder)):
        regroup(folder / f"shard_{number}", arrays[:-2] + arrays[-1:])


FILE = "shard_1/15.npz: arr_0.npy"
DAMAGES = {
    "last shard": (lost("shard_1"), ("its 1 shards make", "a shard is missing")),
    "first shard": (lost("shard_0"), ("1 shards", "not shard_0")),
    "file": (lost("shard_1/9.npz"), ("shard_1/9.npz is missing",)),
    **{f"cut at {at}": (cut(at), ("shard_1/3.npz is damaged",)) for at in (0, 9, 200, -30, -1)},
    "a bit": (
        flipped,
        ("shard_1/", ".npz is damaged", "the checksum of 'arr_", "download or copy"),
    ),
    "other shape": (
        mixed(config=replace(CONFIG, d_ff=64)),
        ("shard_0 and shard_1 are of different models",),
    ),
    "other step": (mixed(step=8), ("different checkpoints, step is [7, 8]",)),
    "other weights": (mixed(seed=1), ("differs between the shards", "of different models")),
    "other type": (mixed(dtype="bfloat16"), ("embedding in different types",)),
    "compressed": (compressed, ("shard_0/0.npz holds 'arr_0.npy' compressed",)),
    "bomb": (bomb((1 << 38,)), (f"{FILE} of shape (274877906944,) needs {1 << 40} bytes",)),
    "wrapping": (bomb((1 << 32, 1 << 32)), (f"{FILE} of shape", f"needs {1 << 66} bytes")),
    "beyond": (bomb((1 << 70,)), (f"{FILE} of shape", f"needs {1 << 72} bytes")),
    "negative": (bomb((-1, 0)), (f"{FILE} is damaged", "(-1, 0)")),
    "nested": (header("-" * 4000 + "1"), (f"{FILE} is damaged",)),
    "no header": (header(""), (f"{FILE} is damaged",)),
    "object": (changed(1, lambda x: x.astype(object)), ("shard_0/0.npz: arr_1.npy", "object")),
    "columns": (changed(1, np.asfortranarray), ("shard_0/0.npz: arr_1.npy", "column order")),
    "whole": (changed(1, lambda x: x.astype(np.int32)), ("embedding is of type int32",)),
    "scalar": (changed(1, lambda x: x.sum()), ("embedding", "shape ()")),
    "scalar inside": (changed(7, lambda x: x.sum()), ("blocks.0.ffn_in", "shape ()")),
    "wrong": (changed(2, lambda x: x[1:]), ("blocks.0.query", "(31, 16)", "(32, 16)")),
    "counter": (changed(-1, lambda x: x[None]), ("step is not a counter",)),
    "extra": (extra, ("shard_0", "not of one checkpoint")),
    "named": (named, ("shard_0/15.npz holds 'step.npy'",)),
    "fewer": (fewer, ("has 26 leaves a shard", "no GPT-J has")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_and_nothing_written(damage, refused, tmp_path):
    folder = written(tmp_path / "shards")
    breaks, said = DAMAGES[damage]
    breaks(folder)
    tracemalloc.start()
    with pytest.raises(UserError):
        package.load(folder)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    refused("convert", folder, tmp_path / "deep" / "out", said=(str(folder), *said))
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_every_name_of_ours_has_one_of_theirs():
    assert set(ordered(2)) == set(names.tensors(CONFIG))
