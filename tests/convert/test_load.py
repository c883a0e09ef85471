"""Loading in few bits: each matrix rounded as it is read, from every kind of source alike."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import Model, UserError, load, make_mesh
from gptj.config import ModelConfig
from gptj.convert import load as loading
from gptj.convert import names
from gptj.convert.convert import ConvertConfig, convert, write
from gptj.convert.load import ALIGNMENT, abstract_params, aligned, load_params, quantised
from gptj.convert.open import open_source
from gptj.convert.source import Source
from gptj.convert.tensor import Tensor
from gptj.model import init
from gptj.quantised import is_quantised

KINDS = ["int8", "int4", "nf4"]


@pytest.fixture(scope="module")
def saved(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    load(tiny_run).save(path)
    return path


@pytest.fixture(scope="module")
def hugging_face(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "model"
    convert(ConvertConfig(str(saved), path, to="huggingface"))
    return path


def assert_equal(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same(kind, saved, tiny_run, hugging_face):
    dense = load(saved)
    expected = quantised(dense.params, dense.config, jnp.float32, kind)
    for source in (saved, tiny_run, hugging_face):
        found = load(source, quantize=kind)
        assert found.dtype == jnp.float32
        assert_equal(found.params, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_in_the_dtype_and_the_matrices_are_rounded_once(kind, saved):
    half, whole = load(saved, dtype="bfloat16", quantize=kind), load(saved, quantize=kind)
    assert half.dtype == jnp.bfloat16
    assert half.params.embedding.dtype == half.params.norm_scale.dtype == jnp.bfloat16
    assert_equal(half.params.output, whole.params.output)
    assert_equal(half.params.blocks.ffn_out, whole.params.blocks.ffn_out)
    rows = np.random.default_rng(0).integers(0, 257, (2, 9))
    np.testing.assert_allclose(half.logits(rows), whole.logits(rows), atol=0.1)


def test_it_works_as_a_model_does(saved):
    model = load(saved, quantize="int8")
    (text,) = model.generate("the ", max_tokens=8, seed=1)
    assert isinstance(text, str)
    assert len(model.score("the cat")[0]) == 7
    assert model.search("the ", beams=2, max_tokens=3)


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"fsdp": 2, "tensor": 4}], ids=str)
@pytest.mark.parametrize("kind", [None, "int8"])
def test_what_it_will_be_is_known_before(kind, mesh, saved):
    with jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
        found = load(saved, dtype="bfloat16", quantize=kind)
        expected = abstract_params(found.config, jnp.bfloat16, kind)
        seen = jax.tree.map(lambda x: (x.shape, x.dtype), (found.params, expected))
        assert seen[0] == seen[1]
        if mesh:
            split = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), found.params)
            assert split == jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_it_cannot_be_saved(kind, saved, tmp_path):
    with pytest.raises(UserError, match="load it without quantize to save it"):
        load(saved, quantize=kind).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_another_kind_is_refused(saved):
    with pytest.raises(UserError, match="quantize='int2' is not one of int8, int4, nf4"):
        load(saved, quantize="int2")


def test_int4_for_a_model_of_odd_dims_is_refused(tmp_path):
    config = ModelConfig(1, 33, 3, 2, 64, 257, 384, 16)
    Model(config, init(jax.random.key(0), config), None).save(tmp_path / "odd")
    assert is_quantised(load(tmp_path / "odd", quantize="int8").params)
    with pytest.raises(UserError, match="33 are odd: use int8"):
        load(tmp_path / "odd", quantize="int4")


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"fsdp": 2, "tensor": 4}], ids=str)
@pytest.mark.parametrize("source", ["saved", "tiny_run", "hugging_face"])
def test_onto_a_mesh(mesh, source, request):
    source = request.getfixturevalue(source)
    expected = load(source, quantize="int8").params
    with jax.set_mesh(make_mesh(**mesh)):
        spread = load(source, quantize="int8").params
        assert len(spread.output.values.sharding.device_set) == np.prod(list(mesh.values()))
        assert spread.output.values.addressable_shards[0].data.size < spread.output.values.size
        with pytest.raises(UserError, match="use int8, or fewer parts"):
            load(source, quantize="int4")
    assert_equal(spread, expected)


def test_a_damaged_weight_is_said_and_shows(saved, tmp_path):
    model = load(saved)
    query = model.params.blocks.query.at[1, 3, 2, 1].set(jnp.nan)
    blocks = dataclasses.replace(model.params.blocks, query=query)
    params = dataclasses.replace(model.params, blocks=blocks)
    Model(model.config, params, model.tokenizer).save(tmp_path / "damaged")
    with pytest.warns(UserWarning, match=r"1 weights are not numbers.*blocks.1.query"):
        found = load(tmp_path / "damaged", quantize="int8")
    assert np.isnan(found.params.blocks.query.scale).sum() == 1
    with pytest.warns(UserWarning, match="1 weights are not numbers") as said:
        load_params(open_source(tmp_path / "damaged"), jnp.float32)
    assert said[0].filename == __file__  # whoever loads it


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}], ids=str)
@pytest.mark.parametrize("kind", [None, "int8"])
def test_what_is_no_number_is_counted_wherever_it_goes(kind, mesh, saved, tmp_path):
    """Of a layer or of none, in few bits or as it was, on a mesh or a device."""
    model = load(saved)
    ffn_in = model.params.blocks.ffn_in.at[1, 3, 5:7].set(jnp.nan)
    params = dataclasses.replace(
        model.params,
        blocks=dataclasses.replace(model.params.blocks, ffn_in=ffn_in),
        norm_scale=model.params.norm_scale.at[1].set(jnp.nan),
        output=model.params.output.at[2, 1].set(jnp.nan),
    )
    Model(model.config, params, model.tokenizer).save(tmp_path / "damaged")
    said = r"4 weights are not numbers \(NaN\), in 3 of its tensors, blocks.1.ffn_in the first"
    place = jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext()
    with place, pytest.warns(UserWarning, match=said):
        load(tmp_path / "damaged", quantize=kind)


@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (2, 3, 4), (1000, 33)])
def test_host_memory_begins_where_a_cpu_device_takes_it_over(shape):
    for dtype in (np.float32, jnp.bfloat16):
        found = aligned(shape, np.dtype(dtype))
        assert (found.shape, found.dtype) == (shape, dtype)
        assert found.flags.c_contiguous
        assert found.ctypes.data % ALIGNMENT == found.ctypes.data % 64 == 0


def test_on_a_cpu_weights_stay_where_they_are_read_to(saved, monkeypatch):
    made = []

    def noted(*args):
        made.append(aligned(*args))
        return made[-1]

    monkeypatch.setattr(loading, "aligned", noted)
    params = load_params(open_source(saved), jnp.float32)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    assert places == [host.ctypes.data for host in made]
    made.clear()
    params = load(saved, quantize="int8").params
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    assert {host.ctypes.data for host in made} <= places
    assert params.blocks.query.values.unsafe_buffer_pointer() in {h.ctypes.data for h in made}


def test_the_command_takes_it(gptj, saved):
    for kind in KINDS:
        code, out, _ = gptj("generate", saved, "--prompt", "the ", "--quantize", kind,
                            "--max-tokens", 4)  # fmt: skip
        assert code == 0
        assert out.startswith("the ")


PEAK = """
import json, resource, sys
import jax, numpy as np
import gptj
from gptj.quantised import quantise

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder, kind = sys.argv[1:]
shapes = [((512, 4, 128), 1), ((4, 128, 512), 2), ((512, 2048), 1), ((2048, 512), 1)]
for shape, inner in shapes:  # what compiling takes is not what loading takes
    jax.block_until_ready(quantise(np.zeros(shape, np.float32), inner, kind))
before = peak()
model = gptj.load(folder, quantize=kind)
jax.block_until_ready(model.params)
size = sum(x.nbytes for x in jax.tree.leaves(model.params))
print(json.dumps({"more": peak() - before, "size": size}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_model_is_never_in_memory(kind, tmp_path):
    config, layers = ModelConfig(16, 512, 4, 64, 2048, 257, 384, 64), 16
    layer = 4 * (4 * 512 * 512 + 2 * 512 * 2048)  # bytes, float32
    write_random(config, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "model"), kind],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["size"] < layers * layer / 3
    assert found["more"] < found["size"] + 2 * layer


def write_random(config, folder):
    def tensor(shape):
        draw = lambda: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
        return Tensor(shape, np.dtype("float32"), draw)

    table = {name: tensor(weight.shape) for name, weight in names.tensors(config).items()}
    write(Source("random", "memory", config, table), folder, "huggingface")
