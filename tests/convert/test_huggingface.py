"""Hugging Face's GPT-J through the real transformers: theirs loads here, ours loads there."""

import json
import random
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj
from gptj import UserError
from gptj.convert import huggingface, safetensors
from gptj.convert.convert import ConvertConfig, convert
from gptj.convert.inspect import diff
from gptj.convert.open import open_source

torch = pytest.importorskip("torch", reason="torch is not installed (`make test` installs it)")
transformers = pytest.importorskip("transformers")

INDEX = "model.safetensors.index.json"


def drawn(seed):
    """A random model of theirs with biases that matter, and how it is to be saved."""
    draw = random.Random(seed)
    heads, d_head = draw.choice([1, 2, 4]), draw.choice([8, 16, 32])
    config = transformers.GPTJConfig(
        vocab_size=draw.choice([64, 100, 257, 300]),
        n_positions=draw.choice([16, 33, 64]),
        n_embd=heads * d_head,
        n_layer=draw.choice([1, 2, 3, 11]),
        n_head=heads,
        rotary_dim=draw.choice([2, 4, d_head]),
        n_inner=draw.choice([None, 24, 96]),
        layer_norm_epsilon=draw.choice([1e-5, 1e-6]),
        tie_word_embeddings=draw.random() < 0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.GPTJForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
    return model.to(dtype), draw.choice(["one", "sharded", "bin", "sharded bin"])


def save(model, how, folder):
    """Save as transformers does, or did: `.bin` files are torch.save's of the same tensors."""
    size = "20KB" if "sharded" in how else "50GB"
    model.save_pretrained(folder, max_shard_size=size)
    if "bin" not in how:
        return
    state = model.state_dict()
    files = sorted(path for path in folder.glob("*.safetensors"))
    index = {}
    for number, path in enumerate(files):
        name = path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        held = {key: state[key] for key in list(state)[number :: len(files)]}
        torch.save(held, folder / name)
        index |= dict.fromkeys(held, name)
        path.unlink()
    if len(files) > 1:
        (folder / "model.safetensors.index.json").unlink()
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text)


def logits_there(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize("seed", range(20))
def test_theirs_loads_here_and_ours_there(seed, tmp_path):
    theirs, how = drawn(seed)
    save(theirs, how, tmp_path / "theirs")
    ours = gptj.load(tmp_path / "theirs", dtype=jnp.float32)
    config = theirs.config
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, config.n_positions))
    # Casting a model would round its rotary table as well: theirs too is loaded as float32.
    wide = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    expected = logits_there(wide, tokens)
    assert np.abs(np.asarray(ours.logits(tokens)) - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.5  # far from the tolerance: the comparison means something

    convert(ConvertConfig(str(tmp_path / "theirs"), tmp_path / "back", "huggingface"))
    back = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert np.abs(logits_there(back, tokens) - expected).max() < 1e-4
    assert diff(open_source(tmp_path / "theirs"), open_source(tmp_path / "back")).same_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_through_ours_and_back_every_bit_stays(dtype, tmp_path):
    theirs = drawn(1)[0].to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    convert(ConvertConfig(str(tmp_path / "theirs"), tmp_path / "ours"))
    convert(ConvertConfig(str(tmp_path / "ours"), tmp_path / "back", "huggingface"))
    back = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert back.dtype == dtype
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_transformers_loads_ours_without_a_warning(tiny_run, tmp_path, caplog):
    convert(ConvertConfig(str(tiny_run), tmp_path / "out", "huggingface"))
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        theirs, said = transformers.GPTJForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not caplog.records
    assert not any(said.values())
    ours = gptj.load(tiny_run)
    text = "the cat sat on a mat"
    assert tokenizer(text)["input_ids"] == ours.tokenizer.encode(text)
    assert tokenizer.decode(ours.tokenizer.encode(text)) == text
    tokens = np.array([ours.tokenizer.encode(text)])
    expected = logits_there(theirs.eval(), tokens)[..., : ours.config.vocab_size]
    np.testing.assert_allclose(ours.logits(tokens), expected, rtol=0, atol=1e-4)
    prompt = torch.from_numpy(tokens)
    written = theirs.generate(prompt, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
    assert ours.generate(text, max_tokens=8, temperature=0)[0] == tokenizer.decode(written)


def test_large_models_are_cut_into_files(tmp_path, monkeypatch):
    theirs = drawn(3)[0]
    theirs.save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    convert(ConvertConfig(str(tmp_path / "theirs"), tmp_path / "cut", "huggingface"))
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 2
    assert diff(open_source(tmp_path / "theirs"), open_source(tmp_path / "cut")).same_bits
    back = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "cut", dtype="auto")
    assert torch.equal(back.lm_head.weight, theirs.lm_head.weight)


def test_a_mesh_gets_the_same_weights(tmp_path):
    drawn(4)[0].save_pretrained(tmp_path / "theirs")
    one = gptj.load(tmp_path / "theirs")
    shape = (
        (2, 2, 2)
        if one.config.heads % 2 == 0 and not one.config.padded_vocab_size % 2
        else (4, 2, 1)
    )
    with jax.set_mesh(gptj.make_mesh(*shape)):
        many = gptj.load(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


def test_what_float16_cannot_hold_is_refused(tmp_path):
    theirs = drawn(5)[0].float()
    with torch.no_grad():
        theirs.lm_head.weight[0, 0] = 7e4
    theirs.save_pretrained(tmp_path / "theirs")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="output holds numbers beyond float16's largest"):
        convert(ConvertConfig(str(tmp_path / "theirs"), out, "huggingface", "float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "model"
    drawn(0)[0].float().save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit(folder, file="config.json", **changes):
    values = json.loads((folder / file).read_text())
    values |= {key: value for key, value in changes.items() if value is not ...}
    for key in [key for key, value in changes.items() if value is ...]:
        values.pop(key, None)
    (folder / file).write_text(json.dumps(values))


def refuses(folder, *said):
    with pytest.raises(UserError) as caught:
        gptj.load(folder)
    text = str(caught.value)
    missing = [word for word in said if word not in text]
    assert not missing, f"{missing} not in {text}"
    assert "\n" not in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neox"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("quantization_config", {"bits": 4}),
        ("sliding_window", 128),
        ("rotary_dim", None),
        ("n_embd", "many"),
        ("n_head", 0),
    ],
)
def test_what_gpt_j_does_not_have_is_named(copy, field, value):
    edit(copy, **{field: value})
    theirs = {"n_embd": "d_model", "n_head": "heads"}
    refuses(copy, f"{copy}/config.json", theirs.get(field, field))


@pytest.mark.parametrize("field", ["n_layer", "n_embd", "vocab_size"])
def test_a_config_without_a_field(copy, field):
    edit(copy, **{field: ...})
    refuses(copy, f"{copy}/config.json lacks {field}")


@pytest.mark.parametrize(("field", "value"), [("n_layer", 9), ("n_inner", 8), ("vocab_size", 99)])
def test_a_config_that_contradicts_the_tensors(copy, field, value):
    edit(copy, **{field: value})
    refuses(copy, str(copy), "config")


@pytest.fixture
def index(copy):
    """Which file each tensor is in, as the folder's index says."""
    return json.loads((copy / INDEX).read_text())["weight_map"]


def test_an_index_that_leaves_the_folder(copy, index):
    edit(copy, INDEX, weight_map={**index, "lm_head.bias": "../../secret.safetensors"})
    refuses(copy, "names a file outside itself, '../../secret.safetensors'")


def test_an_index_that_lies(copy, index):
    other = next(file for file in index.values() if file != index["lm_head.bias"])
    edit(copy, INDEX, weight_map={**index, "lm_head.bias": other})
    refuses(copy, "lm_head.bias")


@pytest.mark.parametrize("where", [..., None, ["model"], {"lm_head.bias": 1}])
def test_an_index_without_a_map(copy, where):
    edit(copy, INDEX, weight_map=where)
    refuses(copy, f"{INDEX} has no weight_map from tensors to files")


def test_an_index_that_names_what_no_file_has(copy, index):
    file = index["lm_head.bias"]
    edit(copy, INDEX, weight_map={**index, "strange.weight": file})
    refuses(copy, f"{INDEX} names strange.weight, which is not in {file}")


def test_a_tensor_that_stands_in_two_files(copy, index):
    first, second = sorted(set(index.values()))[:2]
    shutil.copy(copy / first, copy / second)
    owned = min(name for name, file in index.items() if file == first)
    refuses(copy, f"{owned} stands in {second} and in another file as well")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"{", "not JSON"), (b"[1]", "not a JSON object"), (b'{"\xff"', "not UTF-8 text")],
)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_what_is_not_json(copy, file, content, why):
    (copy / file).write_bytes(content)
    refuses(copy, f"{copy}/{file}", why)


def test_a_type_that_no_weight_has(tmp_path):
    drawn(0)[0].double().save_pretrained(tmp_path)
    refuses(tmp_path, "is of type float64, not float32, float16 or bfloat16")


def test_a_missing_file(copy):
    lost = sorted(copy.glob("*.safetensors"))[1]
    lost.unlink()
    refuses(copy, f"{lost} is missing")


def test_no_weights_at_all(copy):
    for file in [*copy.glob("*.safetensors"), *copy.glob("*.index.json")]:
        file.unlink()
    refuses(copy, f"{copy} has neither of model.safetensors and pytorch_model.bin", "whole folder")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short(copy, keep):
    file = sorted(copy.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:keep])
    refuses(copy, str(file))


def test_unknown_and_missing_tensors(copy):
    file = sorted(copy.glob("*.safetensors"))[0]
    data = file.read_bytes()
    name = next(iter(safetensors.tensors(open_file(file))))
    file.write_bytes(data.replace(name.encode(), name[:-1].encode() + b"X"))
    index = (copy / INDEX).read_text()
    (copy / INDEX).write_text(index.replace(f'"{name}"', f'"{name[:-1]}X"'))
    refuses(copy, f"unknown {name[:-1]}X", f"missing {name}")


def open_file(path):
    from gptj.files import Folder

    return Folder(path.parent).file(path.name)


def test_nans_are_counted_and_warned_of(tmp_path):
    theirs = drawn(6)[0]
    with torch.no_grad():
        theirs.transformer.ln_f.bias[:3] = float("nan")
        theirs.transformer.ln_f.bias[0] = float("-nan")
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match=r"3 weights are not numbers .* norm_offset"):
        gptj.load(tmp_path / "theirs")


def test_buffers_that_old_versions_saved_are_no_weights(tmp_path):
    theirs = drawn(7)[0]
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    state = theirs.state_dict()
    for layer in range(theirs.config.n_layer):
        mask = torch.tril(torch.ones(8, 8, dtype=torch.uint8))[None, None]
        state[f"transformer.h.{layer}.attn.bias"] = mask
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    assert gptj.load(tmp_path / "theirs").config.layers == theirs.config.n_layer


def test_without_a_tokenizer_text_is_refused_and_tokens_are_not(saved, tmp_path):
    ours = gptj.load(saved)
    assert ours.tokenizer is None
    with pytest.raises(UserError, match="came without a tokenizer: load it with tokenizer="):
        ours.generate("x")
    given = drawn(2)[0]
    given.save_pretrained(tmp_path / "theirs")
    if given.config.vocab_size >= 257:
        assert gptj.load(tmp_path / "theirs", tokenizer="bytes").generate("x", max_tokens=2)
