"""What a model on disk is said to be, and whether two are the same: figures that must add up."""

import re
import shutil
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj as package
from gptj import ModelConfig
from gptj.convert.convert import stored_in, write
from gptj.convert.inspect import describe, diff, fingerprint
from gptj.convert.open import open_source
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, from_params
from gptj.convert.tensor import Tensor

CONFIG = ModelConfig(2, 16, 2, 4, 64, 258, 258, context=16)
KINDS = ("gptj", "huggingface", "mesh-transformer")
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


def made(dtype="float32", seed=0, tokenizer=None, **changes):
    config = replace(CONFIG, **changes)
    noise = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(noise.normal(size=x.shape), dtype)  # noqa: E731
    params = jax.tree.map(draw, package.init(jax.random.key(0), config))
    return from_params(config, params, tokenizer)


def stored(array):
    return Tensor(array.shape, array.dtype, lambda: array)


def edited(source, **changes):
    """The source with elements of its tensors changed: name -> (index, value)."""
    weights = dict(source.weights)
    for name, (at, value) in changes.items():
        array = weights[name].read().copy()
        array[at] = value
        weights[name] = stored(array)
    return replace(source, weights=weights)


def written(folder, kind="gptj", source=None):
    write(source or made(), folder, kind, 2)
    return folder


def table(lines):
    """The lines of a description by what they begin with."""
    rows = (re.match(r"  (\d+ layers|\S+) +(.*)", line) for line in lines)
    return {row[1]: row[2] for row in rows if row}


def numbers(row):
    found = re.fullmatch(r"([\d,]+) numbers  (.*)  ([\d,]+) bytes", row)
    return int(found[1].replace(",", "")), found[2], int(found[3].replace(",", ""))


class TestInspect:
    @pytest.mark.parametrize("dtype", SIZES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_counts_add_up(self, kind, dtype, gptj, tmp_path):
        said = gptj("inspect", written(tmp_path / "model", kind, made(dtype)))
        assert (said.code, said.err) == (0, "")
        config = replace(CONFIG, embedding_bias=kind == "mesh-transformer")
        rows = table(said.out.splitlines())
        for field, value in asdict(config).items():
            assert rows[field].replace(",", "") == str(value).lower()
        parts = [numbers(rows[part]) for part in ("embedding", "2 layers", "output")]
        whole = numbers(rows["all"])
        assert whole[0] == sum(part[0] for part in parts) == package.count_parameters(config)
        assert whole[2] == sum(part[2] for part in parts) == whole[0] * SIZES[dtype]
        assert {part[1] for part in (*parts, whole)} == {dtype}
        assert (rows["optimizer"], rows["tokenizer"], rows["NaN"]) == ("none", "none", "none")

    def test_a_run_has_a_step_and_a_tokenizer(self, tiny_run, gptj):
        rows = table(gptj("inspect", tiny_run).out.splitlines())
        tokenizer = package.load(tiny_run).tokenizer
        assert rows["step"] == "12"
        assert "optimizer" not in rows  # it has one, which is not read
        assert rows["tokenizer"] == f"257 tokens, sha256 {tokenizer.sha256}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_step_and_the_optimizer_where_the_kind_holds_them(self, kind, gptj, tmp_path):
        source, count = made("bfloat16"), stored(np.array(9, np.int32))
        wide = stored_in(source, np.dtype("float32")).weights
        moments = {prefix + name: tensor for prefix in (MU, NU) for name, tensor in wide.items()}
        optimizer = {**moments, COUNT: count, SCHEDULE_COUNT: count}
        folder = tmp_path / "model"
        written(folder, kind, replace(source, step=1234, optimizer=optimizer))
        rows = table(gptj("inspect", folder).out.splitlines())
        if kind == "huggingface":
            assert (rows["step"], rows["optimizer"]) == ("unknown", "none")
            return
        assert rows["step"] == "1,234"
        count, types, size = numbers(rows["optimizer"])
        assert count == 2 * numbers(rows["all"])[0] + 2
        assert (types, size) == ("float32, int32", 4 * count)

    def test_the_hash_is_of_the_weights_whatever_the_kind(self, gptj, tmp_path):
        def hashed(*words):
            return table(gptj("inspect", *words).out.splitlines()).get("sha256")

        source = made()
        folders = {kind: written(tmp_path / kind, kind, source) for kind in KINDS}
        same = hashed(folders["gptj"])
        assert same == hashed(folders["huggingface"])
        assert fingerprint(source)[0] in same
        # The original's always has a bias of the embedding: here of zeros, the one difference.
        shards = open_source(folders["mesh-transformer"])
        without = {name: shards.weights[name] for name in source.weights}
        assert fingerprint(replace(shards, weights=without)) == fingerprint(source)
        others = [
            edited(source, norm_scale=(3, 2.0)),
            stored_in(source, np.dtype("float16")),
            replace(source, weights={**source.weights, "output": source.weights["embedding"]}),
        ]
        assert len({same, *(fingerprint(other)[0] for other in others)}) == 4
        assert hashed(folders["gptj"], "--no-hash") is None

    @pytest.mark.parametrize("dtype", SIZES)
    def test_nans_are_counted(self, dtype, gptj, tmp_path):
        nan = np.array([np.nan, -np.nan, np.nan])
        damaged = edited(
            made(dtype),
            output_bias=(slice(3), nan),
            norm_scale=(2, np.nan),
            norm_offset=(1, np.inf),
        )
        said = gptj("inspect", written(tmp_path / "model", source=damaged)).out
        assert table(said.splitlines())["NaN"] == "4"

    def test_without_the_hash_no_weight_is_read(self):
        def fail():
            raise AssertionError

        unread = {n: replace(t, read=fail) for n, t in made().weights.items()}
        said = table(describe(replace(made(), weights=unread), hashes=False))
        assert {"d_model", "all", "step", "tokenizer"} <= set(said)
        assert not {"NaN", "sha256"} & set(said)


class TestDiff:
    def test_the_same_bits(self, gptj, tmp_path):
        a, b = written(tmp_path / "a"), written(tmp_path / "b", "huggingface")
        assert gptj("diff", a, b) == (0, "the same weights, bit for bit\n", "")
        assert gptj("diff", b, a) == gptj("diff", a, a)

    def test_a_checkpoint_without_a_config_is_told_its_shape(self, gptj, refused, tmp_path):
        a = written(tmp_path / "a", "mesh-transformer")
        b = shutil.copytree(a, tmp_path / "b")
        (shape,) = b.glob("**/config.json")
        shape = shape.rename(tmp_path / "shape.json")
        refused("diff", a, b, said=("config",))
        same = (0, "the same weights, bit for bit\n", "")
        assert gptj("diff", a, b, "--config-b", shape) == same
        assert gptj("diff", b, a, "--config-a", shape) == same

    @pytest.mark.parametrize("others", ["float32", "float16"])
    def test_the_same_numbers_in_other_types(self, others, gptj, tmp_path):
        few = made("float32")
        exact = {n: stored(np.sign(t.read()) + 2) for n, t in few.weights.items()}
        few = stored_in(replace(few, weights=exact), np.dtype(jnp.bfloat16))
        a = written(tmp_path / "a", source=few)
        b = written(tmp_path / "b", source=stored_in(few, np.dtype(others)))
        for pair in ((a, b), (b, a)):
            code, out, _ = gptj("diff", *pair)
            assert (code, out[:44]) == (1, "the same numbers, stored in different types,")

    def test_a_zero_of_another_sign_is_the_same_number(self):
        a = edited(made(), norm_scale=(0, 0.0))
        found = diff(a, edited(a, norm_scale=(0, -0.0)))
        assert (found.same_bits, found.tensors, found.largest) == (False, 0, 0)

    def test_how_much_and_where_they_differ(self, gptj, tmp_path):
        a = edited(made(), output_bias=(0, 1.0), norm_scale=(0, 1.0))
        b = edited(a, output_bias=(0, 1.5), norm_scale=(0, 0.75))
        found = diff(a, b)
        assert (found.largest, found.where, found.tensors) == (0.5, "output_bias", 2)
        norm = np.sqrt(sum(np.square(t.read(), dtype=float).sum() for t in a.weights.values()))
        assert found.relative == pytest.approx(np.hypot(0.5, 0.25) / norm)
        words = written(tmp_path / "a", source=a), written(tmp_path / "b", source=b)
        sentence = (
            "2 tensors differ: by 0.5 at most, in output_bias; by "
            f"{found.relative:.3g} of the weights' norm in all\n"
        )
        assert gptj("diff", *words) == (1, sentence, "")

    def test_of_equal_differences_the_first_is_named(self):
        a = edited(made(), norm_scale=(0, 1.0), norm_offset=(0, 1.0))
        b = edited(a, norm_scale=(0, 1.5), norm_offset=(0, 1.5))
        assert diff(a, b).where == next(n for n in a.weights if n.startswith("norm_"))

    def test_of_a_model_of_zeros_any_difference_is_infinite(self):
        zeros = {n: stored(np.zeros(t.shape, t.dtype)) for n, t in made().weights.items()}
        a = replace(made(), weights=zeros)
        assert diff(a, a).relative == 0
        assert diff(a, edited(a, output_bias=(0, 1.0))).relative == np.inf
        assert diff(edited(a, output_bias=(0, 2.0)), a).relative == 1

    def test_rounding_is_measured(self):
        found = diff(made(), stored_in(made(), np.dtype(jnp.bfloat16)))
        assert 0 < found.relative < 2**-8
        assert found.tensors == len(made().weights)

    @pytest.mark.parametrize("dtype", SIZES)
    def test_a_nan_or_an_infinity_in_both_is_no_difference(self, dtype):
        a = edited(made(dtype), norm_scale=(0, np.nan), norm_offset=(0, np.inf))
        assert diff(a, a).same_bits
        for name, value in (("norm_scale", 1), ("norm_offset", -np.inf), ("norm_offset", 1)):
            found = diff(a, edited(a, **{name: (0, value)}))
            assert (found.where, found.tensors) == (name, 1)
            assert not np.isfinite(found.largest)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"d_ff": 32}, "blocks.0.ffn_in is (16, 64) in {a} and (16, 32) in {b}"),
            ({"layers": 1}, "blocks.1.attention_out is (2, 8, 16) in {a} and missing in {b}"),
            ({"heads": 4}, "blocks.0.attention_out is (2, 8, 16) in {a} and (4, 4, 16) in {b}"),
        ],
    )
    def test_other_shapes(self, change, said, gptj, tmp_path):
        a, b = written(tmp_path / "a"), written(tmp_path / "b", source=made(**change))
        sentence = f"they are of different shapes: {said.format(a=a, b=b)}\n"
        assert gptj("diff", a, b) == (1, sentence, "")

    @pytest.mark.parametrize("dtype", SIZES)
    def test_a_folded_bias_of_the_embedding(self, dtype, gptj, tmp_path):
        source = made(dtype, embedding_bias=True)
        a = written(tmp_path / "a", source=source)
        b = written(tmp_path / "b", "huggingface", source)
        sentence = "the same numbers, once the bias of one's embedding is added into it\n"
        for pair in ((a, b), (b, a)):
            assert gptj("diff", *pair) == (1, sentence, "")
        c = written(tmp_path / "c", source=edited(source, embedding_bias=(0, 99.0)))
        found = diff(open_source(c), open_source(b))
        assert (found.where, found.tensors) == ("embedding", 1)

    @pytest.mark.parametrize("dtype", SIZES)
    def test_a_bias_of_zeros_is_none(self, dtype, gptj, tmp_path):
        source = edited(made(dtype), embedding=(0, -0.0))
        a = written(tmp_path / "a", source=source)
        b = written(tmp_path / "b", "mesh-transformer", source)
        for pair in ((a, b), (b, a)):
            assert gptj("diff", *pair) == (0, "the same weights, bit for bit\n", "")

    def test_what_is_no_model(self, refused, tmp_path):
        a = written(tmp_path / "a")
        for pair in ((a, tmp_path / "b"), (tmp_path / "b", a)):
            refused("diff", *pair, said=(f"no model at {tmp_path / 'b'}",))
