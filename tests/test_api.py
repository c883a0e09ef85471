"""A model as one object: saved and loaded bit for bit, and the same numbers as the functions."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj as package
from gptj import Model, SamplingParams, UserError, api, load, make_mesh
from gptj.attention import KEYS
from gptj.checkpoint import CheckpointError
from gptj.model import forward


@pytest.fixture(scope="module")
def model(tiny_run) -> Model:
    return load(tiny_run)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "deep" / "model"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 257, (3, 10))


def assert_equal(params, others) -> None:
    def same(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(same, params, others)


def test_the_public_names_are_there():
    assert all(hasattr(package, name) for name in package.__all__)
    assert sorted(package.__all__, key=lambda name: (not name.isupper(), name.islower(), name)) == (
        package.__all__
    )


def test_the_example_in_the_package_runs(tiny_run, capsys):
    lines = package.__doc__.splitlines()
    example = "\n".join(line.strip() for line in lines if line.startswith("    "))
    assert "gptj.load" in example
    exec(example.replace("runs/demo", str(tiny_run)), {"gptj": package})
    assert capsys.readouterr().out.strip()


class TestSaveAndLoad:
    def test_a_round_trip_is_bit_exact(self, model, saved):
        again = load(saved)
        assert_equal(again.params, model.params)
        assert again.config == model.config
        assert again.tokenizer.sha256 == model.tokenizer.sha256

    def test_the_folder_holds_what_it_says(self, saved):
        names = {path.name for path in saved.iterdir()}
        assert names == {"model.json", "tokenizer.json", "weights.safetensors"}

    def test_the_path_may_be_a_string(self, model, saved, tmp_path):
        load(str(saved)).save(str(tmp_path / "again"))
        assert_equal(load(tmp_path / "again").params, model.params)

    def test_an_empty_folder_may_be_there(self, model, tmp_path):
        model.save(tmp_path)
        assert load(tmp_path).config == model.config

    def test_bfloat16_is_the_rounded_weights_and_stays_so(self, model, saved, tmp_path):
        half = load(saved, dtype="bfloat16")
        assert half.dtype == jnp.bfloat16
        assert_equal(half.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))
        half.save(tmp_path / "half")
        assert_equal(load(tmp_path / "half").params, half.params)
        assert load(tmp_path / "half", dtype=jnp.float32).dtype == jnp.float32

    def test_bfloat16_works(self, saved, model, rows):
        half = load(saved, dtype=jnp.bfloat16)
        logits = half.logits(rows)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, model.logits(rows), atol=0.1)
        assert len(half.generate("the ", max_tokens=4)) == 1

    def test_onto_a_mesh(self, saved, model):
        with jax.set_mesh(make_mesh(fsdp=2, tensor=2)):
            spread = load(saved)
            embedding = spread.params.embedding
            assert len(embedding.sharding.device_set) == 4
            assert embedding.addressable_shards[0].data.size < embedding.size
        assert_equal(spread.params, model.params)

    @pytest.mark.parametrize("dtype", ["float16", "int8", "no such thing"])
    def test_another_dtype_is_refused(self, saved, dtype):
        with pytest.raises(UserError, match=f"dtype={dtype} is not float32 or bfloat16"):
            load(saved, dtype=dtype)

    def test_a_folder_that_is_not_empty_is_refused(self, model, saved, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="is not an empty folder: choose another name"):
            model.save(tmp_path)
        with pytest.raises(UserError, match="is not an empty folder: choose another name"):
            model.save(tmp_path / "notes.txt")
        with pytest.raises(UserError, match="is not an empty folder: choose another name"):
            model.save(saved)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("size", [100, 1000, 20_000])
    def test_a_full_disk_leaves_nothing(self, model, full_disk, tmp_path, size):
        with (
            full_disk(size),
            pytest.raises(CheckpointError, match=r"could not be written.*File too large"),
        ):
            model.save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []
        model.save(tmp_path / "model")

    def test_a_place_below_a_file(self, model, tmp_path):
        (tmp_path / "file").write_text("a file")
        with pytest.raises(CheckpointError, match="could not be written"):
            model.save(tmp_path / "file" / "model")

    def test_a_mesh_that_does_not_fit(self, saved):
        with (
            jax.set_mesh(make_mesh(tensor=8)),
            pytest.raises(UserError, match="tensor=8 does not divide the model's heads=4"),
        ):
            load(saved)

    def test_a_tokenizer_with_more_tokens_than_the_model(self, own_run):
        path = own_run / "model.json"
        smaller = path.read_text().replace("257", "256").replace("384", "256")
        path.write_text(smaller)
        with pytest.raises(UserError, match="257 tokens, more than the 256"):
            load(own_run)


class TestLogits:
    def test_they_are_those_of_forward_without_the_padding(self, model, rows):
        logits = model.logits(rows)
        assert (logits.shape, logits.dtype) == ((3, 10, 257), jnp.float32)
        jitted = jax.jit(forward, static_argnums=2)
        expected = jitted(model.params, jnp.asarray(rows, jnp.int32), model.config)
        np.testing.assert_array_equal(logits, expected[..., :257])

    @pytest.mark.parametrize("shape", [(2, 1, 1), (1, 4, 2)])
    def test_on_a_mesh_that_does_not_divide_the_rows(self, saved, model, rows, shape):
        with jax.set_mesh(make_mesh(*shape)):
            logits = load(saved).logits(rows)
        assert logits.shape == (3, 10, 257)
        np.testing.assert_allclose(logits, model.logits(rows), atol=1e-5)

    def test_rows_that_a_mesh_divides_stay_divided(self, saved, model, rows):
        with jax.set_mesh(make_mesh(data=2)):
            logits = load(saved).logits(rows[:2])
        assert logits.addressable_shards[0].data.shape == (1, 10, 257)
        np.testing.assert_allclose(logits, model.logits(rows[:2]), atol=1e-5)

    def test_tokens_may_be_jax_arrays_and_as_long_as_the_context(self, model):
        assert model.logits(jnp.zeros((1, 64), jnp.int32)).shape == (1, 64, 257)

    def test_no_rows_no_logits(self, model):
        assert model.logits(np.zeros((0, 5), int)).shape == (0, 5, 257)

    @pytest.mark.parametrize(
        ("tokens", "said"),
        [
            (np.zeros((1, 65), int), "rows of 65 tokens are longer than the model's context of 64"),
            (np.full((1, 3), 257), "tokens range from 257 to 257, the model knows 0 to 256"),
            (np.full((1, 3), -1), "tokens range from -1 to -1, the model knows 0 to 256"),
            (np.zeros(3, int), r"shape \(3,\)"),
            (np.zeros((1, 3)), "type float64"),
            (np.zeros((1, 3), bool), "type bool"),
            (np.zeros((1, 0), int), r"shape \(1, 0\)"),
            ("text", "must be whole numbers in rows"),
        ],
    )
    def test_what_is_no_row_of_tokens(self, model, tokens, said):
        with pytest.raises(UserError, match=said):
            model.logits(tokens)


class TestGenerate:
    def test_one_prompt_or_several(self, model):
        options = {"max_tokens": 6, "temperature": 0}
        alone = model.generate("the ", **options)
        assert model.generate(["the ", "a cat"], **options)[0] == alone[0]

    def test_pieces_come_as_they_are_written(self, model):
        pieces = [[], []]
        texts = model.generate(
            ["the ", "a "], on_text=lambda row, piece: pieces[row].append(piece), max_tokens=9
        )
        assert ["".join(row) for row in pieces] == texts
        assert max(map(len, pieces)) > 1

    def test_the_fields_are_those_of_sampling_params(self, model):
        as_given = SamplingParams(temperature=0.5, top_p=0.9, top_k=9, max_tokens=5, seed=3)
        fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 9, "max_tokens": 5, "seed": 3}
        text = model.generate("the ", **fields)[0]
        assert as_given == SamplingParams(**fields)
        assert text == model.generate("the ", **fields)[0]
        assert len(model.tokenizer.encode(text)) <= 5 * 3  # U+FFFD has three bytes

    def test_an_unknown_field_names_those_there_are(self, model):
        with pytest.raises(UserError, match="no sampling field heat, topp: there are temperature"):
            model.generate("x", topp=0.9, heat=1)

    @pytest.mark.parametrize("field", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}])
    def test_a_field_out_of_range(self, model, field):
        with pytest.raises(UserError, match=f"{next(iter(field))}=.* must be"):
            model.generate("x", **field)


class TestScore:
    def test_it_is_the_log_softmax_of_the_logits(self, model):
        text = "the cat sat"
        ids = model.tokenizer.encode(text)
        before = [model.tokenizer.eos_id, *ids[:-1]]
        log_probs = jax.nn.log_softmax(model.logits([before])[0])
        (scores,) = model.score(text)
        np.testing.assert_allclose(scores, log_probs[np.arange(len(ids)), ids], atol=1e-5)

    def test_what_it_was_trained_on_is_likelier_than_noise(self, model):
        likely, noise = model.score(["the cat sat on the mat", "q#Zw%xK&vJ@yX!zQ^WpLB$"])
        assert likely.mean() > noise.mean()

    def test_a_text_longer_than_the_context(self, model):
        with pytest.raises(UserError, match="65 tokens"):
            model.score("x" * 65)


class TestEngines:
    """How large an engine a model makes of itself, and when it goes on with the one it has."""

    SHAPE = package.ModelConfig(1, 8, 2, 2, 12, 257, 264, 1000)

    @pytest.fixture
    def small(self, monkeypatch):
        """A model whose engines only say how they were made."""
        made = []

        class Engine:
            def __init__(self, params, config, tokenizer, options, draft):
                self.options, self.positions = options.rounded(1), options.positions
                made.append((options.slots, options.positions, draft))

            def run(self, requests, on_delta, what):
                self.asked = requests
                text = SimpleNamespace(text="x", prompt_logprobs=None)
                return [[text] * each.sampling.n for each in requests]

        monkeypatch.setattr(api, "Engine", Engine)
        return Model(self.SHAPE, "weights", package.Tokenizer.bytes()), made

    @pytest.mark.parametrize(
        ("prompts", "sampling", "slots", "positions"),
        [
            ("a", {"max_tokens": 3}, 1, KEYS),
            ("a" * (KEYS - 3), {"max_tokens": 3}, 1, KEYS),
            ("a" * (KEYS - 2), {"max_tokens": 3}, 1, 2 * KEYS),
            ("a", {"max_tokens": 10**6}, 1, 1000),
            ("a", {"max_tokens": 3, "overflow": "slide"}, 1, 1000),
            (["a", "b"], {"max_tokens": 3}, 8, KEYS),
            ("a", {"max_tokens": 3, "n": 2}, 8, KEYS),
            ("a", {"max_tokens": 3, "best_of": 2}, 8, KEYS),
        ],
    )
    def test_they_have_room_for_what_is_asked(self, small, prompts, sampling, slots, positions):
        model, made = small
        model.generate(prompts, **sampling)
        assert made == [(slots, positions, None)]

    def test_one_is_kept_while_it_has_room(self, small):
        model, made = small
        for size, engines in ((KEYS + 50, 1), (5, 1), (KEYS + 99, 1), (2 * KEYS + 1, 2), (5, 2)):
            model.generate("a" * size, max_tokens=2)
            assert len(made) == engines
        model.generate("a", max_tokens=2, kv_cache="int8")
        model.generate(["a", "b"], max_tokens=2)
        assert len(made) == 4

    def test_of_another_guesser_it_makes_another(self, small):
        model, made = small
        guessers = [Model(self.SHAPE, name, model.tokenizer) for name in ("one", "two")]
        for draft in (*guessers, guessers[1]):
            model.generate("a", max_tokens=2, speculate=2, draft=draft)
        assert [draft.params for *_, draft in made] == ["one", "two"]

    def test_nothing_is_made_for_nothing(self, small):
        model, made = small
        assert model.generate([]) == model.score([]) == []
        assert made == []

    def test_each_prompt_has_a_seed_of_its_own_and_the_first_is_the_one_given(self, small):
        model, _ = small
        model.generate(["a", "b", "c"], seed=5)
        first, *others = [each.sampling.seed for each in model._engines[0].engine.asked]
        assert first == 5
        assert len({first, *others}) == 3

    def test_a_text_is_scored_from_the_end_of_the_one_before(self, small):
        model, _ = small
        model.score("ab")
        (request,) = model._engines[0].engine.asked
        assert request.prompt == [256, 97, 98]
        assert (request.sampling.max_tokens, request.sampling.prompt_logprobs) == (0, 0)

    @pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
    def test_texts_have_no_logprobs(self, small, name):
        with pytest.raises(UserError, match=r"for logprobs use score, or a gptj\.Engine"):
            small[0].generate("a", **{name: 1})

    def test_without_a_tokenizer_there_is_no_text(self, small):
        mute = Model(self.SHAPE, "weights", None)
        for ask in (mute.generate, mute.score, mute.search):
            with pytest.raises(
                UserError, match=r"came without a tokenizer: load it with tokenizer"
            ):
                ask("a")

    def test_a_search_knows_its_fields(self, small):
        with pytest.raises(UserError, match="no search field beam, width: there are beams, "):
            small[0].search("a", width=3, beam=1)

    def test_a_run_under_way_writes_so_much_the_same_each_time(self, small, monkeypatch):
        model, _ = small
        asked = []
        monkeypatch.setattr(Model, "generate", lambda *what, **how: asked.append((what[1:], how)))
        for _ in range(2):
            api._write_on("weights", self.SHAPE, model.tokenizer, ["a", "b"])
        assert asked == [((["a", "b"],), {"max_tokens": 64, "temperature": 0.8})] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int3"}, "quantize='int3' is not one of int8, int4, nf4"),
        ({"dtype": "float16"}, "dtype=float16 is not float32 or bfloat16"),
    ],
)
def test_how_a_model_is_kept_is_checked_before_it_is_looked_for(options, said):
    with pytest.raises(UserError, match=said):
        load("nowhere", **options)
