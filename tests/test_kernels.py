"""The native programs: near a float64 sum, and each row the same bits in any company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels, model
from gptj.attention import rotary
from gptj.config import ModelConfig
from gptj.kernels import build
from gptj.quantised import Int4, Int8, dequantised, int8_rows, quantise

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")

FEW_BITS = ["int8", "int4"]
KINDS = ["float32", "bfloat16", *FEW_BITS]


def drawn(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def parts(w):
    """A matrix as the programs take it."""
    if isinstance(w, Int4):
        return w.pairs, w.scale, w.low
    return (w.values, w.scale) if isinstance(w, Int8) else (w,)


@jax.jit
def product(x, w):
    return kernels.products(x, [parts(w)])[0]


attention = jax.jit(kernels.attention)


def matrix(shape, kind):
    """A matrix as it is stored, and the numbers that it stands for."""
    if kind in FEW_BITS:
        stored = quantise(drawn(shape, seed=1), 1, kind)
        return stored, np.asarray(dequantised(stored), np.float64)
    stored = drawn(shape, kind, 1)
    return stored, np.asarray(stored).astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(2, 1), (6, 5), (64, 48), (130, 1000), (258, 519), (384, 77), (768, 2048)]
)
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_the_sum(kind, shape, rows, dtype):
    x, (stored, numbers) = drawn((rows, shape[0]), dtype), matrix(shape, kind)
    wide = np.asarray(x).astype(np.float64)
    bound = np.abs(wide) @ np.abs(numbers) * 1e-6 + 1e-6
    if kind == "int4":  # each group's sum is of its low ends and of what is above them
        bound = np.abs(wide).sum(-1, keepdims=True) * np.abs(numbers).max() * 2e-6 + 1e-6
    assert (np.abs(np.asarray(product(x, stored)) - wide @ numbers) <= bound).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_product_of_odd_dims_is_the_sum(rows):
    x, w = drawn((rows, 3)), drawn((3, 5), seed=1)
    np.testing.assert_allclose(product(x, w), np.asarray(x) @ np.asarray(w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_a_product_is_the_same_bits_in_any_company(kind, dtype):
    x, (w, _) = drawn((64, 320), dtype), matrix((320, 1111), kind)
    whole = np.asarray(product(x, w))
    for rows in (1, 2, 3, 5, 8, 63):
        np.testing.assert_array_equal(product(x[:rows], w), whole[:rows])
    np.testing.assert_array_equal(product(x[::-1], w), whole[::-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 9])
def test_matrices_multiplied_together_are_as_alone(kind, dtype, rows):
    x = drawn((rows, 256), dtype)
    matrices = [matrix((256, columns), kind)[0] for columns in (300, 64, 1, 1111)]
    found = jax.jit(lambda x, ws: kernels.products(x, [parts(w) for w in ws]))(x, matrices)
    for made, w in zip(found, matrices, strict=True):
        np.testing.assert_array_equal(made, product(x, w))


@jax.jit
def rounded(x, w):
    with kernels.rounding():
        return kernels.products(x, [parts(w)])[0]


@pytest.mark.parametrize("shape", [(2, 1), (6, 5), (130, 70), (256, 64), (300, 519), (770, 200)])
@pytest.mark.parametrize("rows", [1, 3, 130])
@pytest.mark.parametrize("spikes", [0, 1, 3])
@pytest.mark.parametrize("kind", FEW_BITS)
def test_of_rounded_rows_little_of_the_norm_is_lost(kind, shape, rows, spikes):
    """However far some numbers of a row stand out from the others."""
    x, (stored, numbers) = np.array(drawn((rows, shape[0]))), matrix(shape, kind)
    x[:, :: max(1, shape[0] // 3)] *= 100.0**spikes
    x = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(x).astype(np.float64)
    lost = np.abs(np.asarray(rounded(x, stored)) - wide @ numbers)
    bound = 0.016 * np.linalg.norm(wide, axis=-1)[:, None] * np.linalg.norm(numbers, axis=0)
    assert (lost <= bound + 1e-6).all()
    assert np.linalg.norm(lost) <= 0.016 * np.linalg.norm(np.abs(wide) @ np.abs(numbers))


@pytest.mark.parametrize("kind", FEW_BITS)
def test_a_rounded_row_is_the_same_bits_in_any_company(kind):
    x, (w, _) = np.array(drawn((130, 384))), matrix((384, 1111), kind)
    x[::3, 5] *= 50  # some are rounded twice
    x = jnp.asarray(x, jnp.bfloat16)
    whole = np.asarray(rounded(x, w))
    for rows in (1, 2, 3, 5, 8, 64, 129):
        np.testing.assert_array_equal(rounded(x[:rows], w), whole[:rows])
    np.testing.assert_array_equal(rounded(x[::-1], w), whole[::-1])


INT8_PIECES = [(1, 1), (9, 70), (300, 16_500), (2_310, 200), (6_500, 96)]
INT4_PIECES = [(16, 40), (48, 33), (96, 70), (384, 16_500), (2_304, 200), (6_656, 96)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("int8", shape) for shape in INT8_PIECES] + [("int4", shape) for shape in INT4_PIECES],
)
def test_a_rounded_row_alone_meets_pieces_of_the_matrix_to_the_same_bits(kind, shape):
    """However many pieces there are: of several panels, chunks, and parts of a chunk."""
    x, (w, _) = np.array(drawn((3, shape[0]))), matrix(shape, kind)
    x[1, :: max(1, shape[0] // 2)] *= 100  # rounded twice
    x = jnp.asarray(x, jnp.bfloat16)
    together = np.asarray(rounded(x, w))
    for row in range(3):
        np.testing.assert_array_equal(rounded(x[row : row + 1], w), together[row : row + 1])


@pytest.mark.parametrize("kind", FEW_BITS)
def test_a_row_alone_has_the_same_bits_whoever_adds_its_pieces(kind):
    """Threads add what others have summed, in whichever order they come to it."""
    x, (w, _) = drawn((1, 4_096), jnp.bfloat16), matrix((4_096, 256), kind)
    first = np.asarray(rounded(x, w))
    assert all((np.asarray(rounded(x, w)) == first).all() for _ in range(500))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [5, 250])
@pytest.mark.parametrize("kind", FEW_BITS)
def test_a_rounded_row_with_what_is_no_number_has_no_sum(kind, number, place):
    x, (w, _) = np.array(drawn((6, 512))), matrix((512, 70), kind)
    others = np.delete(np.asarray(rounded(jnp.asarray(x, jnp.bfloat16), w)), 2, axis=0)
    x[2, place] = number
    found = np.asarray(rounded(jnp.asarray(x, jnp.bfloat16), w))
    assert not np.isfinite(found[2]).any()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), others)


def test_what_is_lost_of_a_rounded_row_is_measured():
    """The worst row there is: all but one number halfway between two bytes."""
    x = jnp.full((1, 256), 18.5, jnp.bfloat16).at[0, 0].set(127)
    eye = quantise(jnp.eye(256), 1, "int8")
    numbers = np.asarray(dequantised(eye), np.float64)
    wide = np.asarray(x).astype(np.float64)
    lost = np.linalg.norm(np.asarray(rounded(x, eye)) - wide @ numbers)
    assert lost <= 0.015 * np.linalg.norm(wide)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_only_rows_that_meet_few_bits_are_rounded(kind):
    x, (w, _) = drawn((20, 256), jnp.bfloat16), matrix((256, 70), kind)
    np.testing.assert_array_equal(rounded(x, w), product(x, w))
    for few in FEW_BITS:
        wide, (w, _) = drawn((20, 256)), matrix((256, 70), few)
        np.testing.assert_array_equal(rounded(wide, w), product(wide, w))


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_of_groups_that_cannot_be_rounded_nothing_is_lost(rows):
    """They are too long, or of no whole vectors."""
    x = drawn((rows, 520), jnp.bfloat16)
    for inner in (520, 24):
        w, _ = matrix((inner, 70), "int4")
        np.testing.assert_array_equal(rounded(x[:, :inner], w), product(x[:, :inner], w))


def test_matrices_multiplied_together_by_rounded_rows_are_as_alone():
    x = drawn((9, 256), jnp.bfloat16)
    for kind in FEW_BITS:
        some = [matrix((256, columns), kind)[0] for columns in (300, 64, 1)]
        with kernels.rounding():
            found = kernels.products(x, [parts(w) for w in some])
        for made, w in zip(found, some, strict=True):
            np.testing.assert_array_equal(made, rounded(x, w))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [3, 16, 519])
def test_gelu_is_that_of_the_sum(dtype, columns):
    far = np.array([0, 90, -90, 1e4, -1e4, 3e38, -3e38])
    x = 3 * np.random.default_rng(0).normal(size=(5, columns))
    x.flat[:: max(1, x.size // 7)] = far[: len(x.flat[:: max(1, x.size // 7)])]
    x, bias = jnp.asarray(x, dtype), drawn((columns,), seed=1)
    wide = np.asarray(x).astype(np.float64) + np.asarray(bias).astype(np.float64)
    expected = wide / (1 + np.exp(np.minimum(-1.5957691216 * (wide + 0.044715 * wide**3), 700)))
    found = np.asarray(jax.jit(kernels.gelu)(x, bias)).astype(np.float64)
    near = 2**-8 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(found, expected, rtol=near, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(kernels.gelu)(x[2:3], bias), found[2:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_put_where_they_belong(dtype):
    cache, tokens = drawn((3, 2, 32, 8), dtype), drawn((1, 7, 2, 8), dtype, seed=1)
    if dtype == "bfloat16":  # kept as its bits
        cache = jax.lax.bitcast_convert_type(cache, jnp.uint16)
    for slot, at in ((0, 0), (1, 9), (2, 25)):
        found = jax.jit(kernels.put)(cache, tokens, jnp.int32(slot), jnp.int32(at))
        expected = np.array(cache)
        piece = np.asarray(tokens).view(expected.dtype)[0].transpose(1, 0, 2)
        expected[slot, :, at : at + 7] = piece
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("d_head", "dims"), [(16, 16), (16, 0), (40, 16), (256, 64)])
@pytest.mark.parametrize("tokens", [1, 8, 21])
def test_pairs_are_turned_and_other_dims_are_left_as_they_are(dtype, d_head, dims, tokens):
    x = drawn((tokens, 3, d_head), dtype)
    angles = np.asarray(drawn((tokens, dims // 2), seed=1), np.float64)
    sin, cos = (np.float32(f(angles)) for f in (np.sin, np.cos))
    found = np.asarray(jax.jit(kernels.rotary)(x, sin, cos))
    wide = np.asarray(x).astype(np.float64)
    pairs = (wide[..., 0:dims:2] + 1j * wide[..., 1:dims:2]) * np.exp(1j * angles)[:, None]
    expected = np.stack([pairs.real, pairs.imag], -1).reshape(tokens, 3, dims)
    # two products, their sum, and its rounding; at most half a place each
    bound = 1e-6 + np.finfo(np.float32).eps * 4 + (2**-8 * np.abs(expected)) * (dtype != "float32")
    assert (np.abs(found[..., :dims].astype(np.float64) - expected) <= bound).all()
    np.testing.assert_array_equal(found[..., dims:], x[..., dims:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dims", [0, 16])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_model_turns_pairs_as_without_them(dtype, dims, rows):
    """In bfloat16 they do not round sines and cosines first: the two differ by as much."""
    x, positions = drawn((2, 9, 3, 32), dtype), jnp.arange(9 * rows).reshape(rows, 9)

    @jax.jit
    def natively(x, positions):
        with kernels.wanted():
            return rotary(x, positions, dims, 1e4)

    assert ("gptj_rotary" in natively.lower(x, positions).as_text()) == bool(dims)
    found, expected = (
        np.asarray(turn(x, positions), np.float32)
        for turn in (natively, lambda *given: rotary(*given, dims, 1e4))
    )
    rounding = 1e-6 if dtype == "float32" else 2**-7 * abs(x).max().astype(jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)


def reference(query, keys, values, last_seen):
    query, keys, values = (np.asarray(x).astype(np.float64) for x in (query, keys, values))
    out = np.zeros(query.shape)
    for at in np.ndindex(last_seen.shape):
        k, v = (x[at[0], :, : last_seen[at] + 1] for x in (keys, values))
        scores = np.einsum("hd,hkd->hk", query[at], k) / np.sqrt(query.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[at] = np.einsum("hk,hkd->hd", p / p.sum(-1, keepdims=True), v)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("d_head", [16, 64, 256])
@pytest.mark.parametrize("queries", [1, 3, kernels.MOST_QUERIES, 35])
def test_attention_is_the_softmax_over_what_is_seen(dtype, d_head, queries):
    last_seen = np.array([0, 1, 15, 16, 100, 476], np.int32)[:, None] + np.arange(queries)
    last_seen = last_seen.astype(np.int32)
    rows, unseen = len(last_seen), np.arange(512)[:, None] > last_seen[:, -1, None, None, None]
    query = 3 * drawn((rows, queries, 3, d_head))
    keys, values = (drawn((rows, 3, 512, d_head), seed=seed) for seed in (1, 2))
    if dtype == "int8":
        keys, values = int8_rows(keys), int8_rows(values)
        scales = [jnp.where(unseen, jnp.nan, x.scale) for x in (keys, values)]
        expected = reference(query, keys.read(), values.read(), last_seen)
        keys, values = keys.values, values.values
    else:
        keys, values, scales = keys.astype(dtype), values.astype(dtype), None
        expected = reference(query, keys, values, last_seen)
        values = jnp.where(unseen, jnp.nan, values)  # what is not seen is not read
    found = attention(query, keys, values, last_seen, scales)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=4e-6)
    most = kernels.MOST_QUERIES
    few = 1 if queries <= most else most + 1  # with more their sums go another way
    for row in range(rows):
        for at in range(0, queries - few + 1, few):
            mine, one = slice(row, row + 1), slice(at, at + few)
            own = scales and [scale[mine] for scale in scales]
            alone = attention(query[mine, one], keys[mine], values[mine], last_seen[mine, one], own)
            np.testing.assert_array_equal(alone, found[mine, one])
            where = keys, values, last_seen[mine, one], scales, jnp.array([row])
            np.testing.assert_array_equal(attention(query[mine, one], *where), alone)


@pytest.mark.parametrize("count", [1, 3, 256, 500])
@pytest.mark.parametrize("kind", ["normal", "equals", "far", "minus infinity"])
def test_the_largest_fall_and_of_equals_the_first_comes_first(count, kind):
    x = np.random.default_rng(0).normal(size=(5, 500)).astype(np.float32)
    if kind == "equals":
        x = np.round(x)
    if kind == "far":
        x = x * 1e-3 - 50
    if kind == "minus infinity":
        x[:, 100:] = -np.inf
    values, columns = jax.jit(kernels.top_k, static_argnums=1)(x, count)
    expected = np.argsort(-x, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, -1))


def test_a_program_traced_with_them_is_not_taken_for_one_that_has_a_gradient():
    config = ModelConfig(1, 32, 2, 8, 64, 64, 64, 16)
    params = model.init(jax.random.key(0), config)
    rows = jnp.ones((2, 9), jnp.int32)

    @jax.jit
    def natively(params):
        with kernels.wanted():
            return model.loss(params, rows, config)

    found, (expected, gradient) = (
        natively(params),
        jax.value_and_grad(model.loss)(params, rows, config),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_scores_far_apart_overflow_nothing():
    query, keys = jnp.full((1, 1, 1, 16), 1e3), jnp.full((1, 1, 32, 16), 1e3)
    keys = keys.at[0, 0, 5].multiply(-1)
    found = attention(query, keys, keys, np.array([[31]], np.int32))
    np.testing.assert_allclose(found, 1e3, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_table_are_its_rows(dtype):
    table, numbers = drawn((11, 24), dtype), jnp.array([3, 0, 10, 3, 99, -1])
    found = jax.jit(kernels.rows)(table, numbers)
    assert found.dtype == table.dtype
    np.testing.assert_array_equal(found, table[jnp.array([3, 0, 10, 3, 10, 0])])


def test_an_embedding_is_looked_up_and_nothing_else_of_it_is_read():
    config = ModelConfig(1, 32, 2, 8, 64, 64, 64, 16)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), model.init(jax.random.key(0), config))
    tokens = jnp.array([[5, 6, 7], [7, 6, 63]])

    def looked_up(params, tokens):
        with kernels.wanted():
            return model.embed(params, tokens, jnp.bfloat16)

    plain = model.embed(params, tokens, jnp.bfloat16)
    program = jax.jit(looked_up).lower(params, tokens).compile()
    np.testing.assert_array_equal(program(params, tokens), plain)
    assert "f32[64,32]" not in program.as_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name : flags\nflags\t\t: fpu avx2\n\nflags\t\t: other\n", {"fpu", "avx2"}),
        *(("Features : fp asimd\n", set()), (None, set())),
    ],
)
def test_a_processor_s_features_are_read_where_linux_tells_them(text, found, monkeypatch, tmp_path):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(build, "Path", lambda _: tmp_path / "cpuinfo")
    assert build.features() == found
