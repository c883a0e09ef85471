"""PEFT's adapters in and out: the same logits on both sides, and mistakes said."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptj import adapters
from gptj.adapters import LoRAConfig
from gptj.api import Model, load
from gptj.config import ModelConfig
from gptj.convert import peft as ours
from gptj.convert.adapted import Adapter
from gptj.convert.convert import ConvertConfig, convert
from gptj.errors import UserError
from gptj.model import init
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 64, 4, 16, 128, 257, 384, 64)
TOKENS = np.random.default_rng(0).integers(0, 257, (2, 20))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model, as transformers reads it."""
    folder = tmp_path_factory.mktemp("peft")
    Model(CONFIG, init(jax.random.key(0), CONFIG), Tokenizer.bytes()).save(folder / "own")
    convert(ConvertConfig(str(folder / "own"), folder / "hf", to="huggingface"))
    return folder / "hf"


def drawn(lora: LoRAConfig) -> Adapter:
    """Adapters that change something."""
    draw, table = np.random.default_rng(3), adapters.table(CONFIG, lora)
    found = jax.tree.map(lambda w: draw.normal(size=w.shape, scale=0.2).astype("f4"), table)
    return Adapter("here", lora, lambda f, n: (found[f].down[n], found[f].up[n]), "a base")


def written(folder, lora: LoRAConfig, base) -> None:
    folder.mkdir()
    ours.write(drawn(lora), CONFIG, str(base), folder)


def changed(folder, **values) -> None:
    path = folder / ours.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


LORAS = [
    LoRAConfig(rank=4),
    LoRAConfig(rank=8, alpha=4.0, targets=("q", "v"), rank_stabilised=True),
    LoRAConfig(rank=2, targets=("out", "ffn_out"), dropout=0.1),
]


def test_what_is_written_is_to_be_used_and_not_trained(tmp_path):
    written(tmp_path / "adapter", LORAS[0], "a base")
    said = json.loads((tmp_path / "adapter" / ours.CONFIG).read_text())
    assert (said["inference_mode"], said["fan_in_fan_out"]) == (True, False)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("lora", LORAS, ids=lambda lora: f"{lora.rank}")
class TestBothWays:
    def test_what_we_write_peft_reads(self, lora, base, tmp_path):
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
        torch = pytest.importorskip("torch")
        written(tmp_path / "adapter", lora, base)
        whole = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        beside = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()
        with torch.no_grad():
            theirs = beside(torch.asarray(TOKENS)).logits.numpy()
        found = load(tmp_path / "adapter", dtype="float32").logits(jnp.asarray(TOKENS))
        np.testing.assert_allclose(found[..., :257], theirs[..., :257], atol=2e-4)

    def test_what_peft_writes_we_read(self, lora, base, tmp_path):
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
        torch = pytest.importorskip("torch")
        names = {mine: theirs for theirs, mine in ours.MODULES.items()}
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=[names[target] for target in lora.targets],
            use_rslora=lora.rank_stabilised,
            lora_dropout=lora.dropout,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        whole = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        beside = peft.get_peft_model(whole, config).eval()
        beside.save_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            theirs = beside(torch.asarray(TOKENS)).logits.numpy()
        found = load(tmp_path / "adapter", dtype="float32").logits(jnp.asarray(TOKENS))
        np.testing.assert_allclose(found[..., :257], theirs[..., :257], atol=2e-4)
        plain = load(base, dtype="float32").logits(jnp.asarray(TOKENS))
        assert not np.allclose(found, plain, atol=1e-3)

    def test_written_and_read_it_is_the_same(self, lora, base, tmp_path):
        written(tmp_path / "adapter", lora, base)
        out = tmp_path / "again"
        convert(ConvertConfig(str(tmp_path / "adapter"), out, to="peft"))
        for name in (ours.CONFIG, ours.WEIGHTS):
            assert (out / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
        tokenizer = Tokenizer.load(out / "tokenizer.json")
        assert tokenizer.sha256 == Tokenizer.bytes().sha256  # the base's


class TestMistakes:
    @pytest.fixture
    def adapter(self, base, tmp_path):
        written(tmp_path / "adapter", LORAS[0], base)
        return tmp_path / "adapter"

    @pytest.mark.parametrize(
        ("values", "complaint"),
        [
            ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only 'LORA'"),
            ({"use_dora": True}, "use_dora=True is not supported"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not supported"),
            (
                {"target_modules": ["c_attn"]},
                r"target_modules=\['c_attn'\] must be a list of q_proj",
            ),
            ({"target_modules": [["q_proj"]]}, r"target_modules=\[\['q_proj'\]\] must be a list"),
            ({"target_modules": ["q_proj", ["k_proj"]]}, "must be a list"),
            ({"target_modules": []}, r"target_modules=\[\] must be a list"),
            ({"r": "four"}, "is not PEFT's config of LoRA"),
            ({"base_model_name_or_path": None}, "do not say which model .* --base MODEL"),
            (
                {"base_model_name_or_path": "/gone"},
                "no model at /gone.* belong to it: name it with",
            ),
            ({"r": 8}, r"matrices of \(64, 4\) and \(4, 64\), the model's are of \(64, 8\)"),
        ],
    )
    def test_what_is_not_plain_lora_of_this_model_is_refused(self, values, complaint, adapter):
        changed(adapter, **values)
        with pytest.raises(UserError, match=complaint):
            load(adapter)

    def test_the_base_may_be_named(self, base, adapter):
        whole = load(adapter).logits(jnp.asarray(TOKENS))
        changed(adapter, base_model_name_or_path=None)
        np.testing.assert_array_equal(
            load(adapter, base=str(base)).logits(jnp.asarray(TOKENS)), whole
        )

    def test_a_missing_matrix_is_named(self, adapter):
        changed(adapter, target_modules=["q_proj"])
        with pytest.raises(
            UserError, match=r"holds .*attn\.k_proj\.lora_A.weight, which is no adapter"
        ):
            load(adapter)

    def test_one_that_is_not_there_too(self, adapter):
        kept = load_file(adapter / ours.WEIGHTS)
        name = next(name for name in kept if "layers.1" in name or ".h.1." in name)
        del kept[name]
        save_file(kept, adapter / ours.WEIGHTS)
        with pytest.raises(UserError, match=rf"{ours.WEIGHTS} lacks {re.escape(name)}"):
            load(adapter)

    @pytest.mark.parametrize("content", ["[1", "[1]", '"words"', "[" * 100_000])
    def test_a_config_that_is_none(self, content, adapter):
        (adapter / ours.CONFIG).write_text(content)
        with pytest.raises(UserError, match=f"{ours.CONFIG} is not a JSON object"):
            load(adapter)

    @pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"slim": True}])
    def test_what_is_for_whole_models(self, given, adapter, tmp_path):
        (name,) = given
        asked = ConvertConfig(str(adapter), tmp_path / "out", to="peft", **given)
        with pytest.raises(UserError, match=f"{name} is not for adapters, which are float32"):
            convert(asked)
        assert not (tmp_path / "out").exists()

    def test_a_model_has_no_adapters_to_write(self, base, tmp_path):
        given = ConvertConfig(str(base), tmp_path / "out", to="peft")
        with pytest.raises(UserError, match="is a whole model, and to=peft writes adapters"):
            convert(given)

    def test_a_base_for_a_whole_model_is_refused(self, base, tmp_path):
        with pytest.raises(UserError, match="is a model of its own and no adapters"):
            convert(ConvertConfig(str(base), tmp_path / "out", base=str(base)))
