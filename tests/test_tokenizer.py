"""Tokenizers: text survives the round trip, streams agree with whole texts, mistakes teach."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptj import tokenizer as module
from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer

GPT2 = Path(__file__).parents[1] / "../shared/data/gpt2_bpe"
needs_gpt2 = pytest.mark.skipif(not GPT2.exists(), reason=f"GPT-2's BPE is not at {GPT2}")

SENTENCES = [
    "the quick brown fox jumps over the lazy dog, the fox's dog.",
    "It's 1984!  They're   reading\n\nthe  news\tof the day\n",
    "naïve café 東京 🙂 the other 🙂 day",
]
BYTES = Tokenizer.bytes()
TRAINED = Tokenizer.train(SENTENCES * 3, 320)


def sentencepiece() -> tokenizers.Tokenizer:
    """A small tokenizer in Llama's manner: words begin with ▁, unknown characters are bytes."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    definition = json.loads(made.to_str())
    definition["added_tokens"] = definition["added_tokens"][:2]  # a byte is not a special token
    made = tokenizers.Tokenizer.from_str(json.dumps(definition))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


PIECES = sentencepiece()
KINDS = {
    "bytes": BYTES,
    "trained": TRAINED,
    "sentencepiece": Tokenizer(json.loads(PIECES.to_str())),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))
# Text of the kind that trips tokenizers: contractions, runs of space, controls, many scripts.
texts = st.text() | st.lists(
    st.sampled_from(["a", "'s", "'", " ", "\n", "\t", "\r", "\x1c", "\u3000", "9", ".", "é", "🙂"])
).map("".join)


def json_of(tokenizer: Tokenizer, **changes: object) -> dict[str, object]:
    return {**json.loads(tokenizer.to_json()), **changes}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


class TestIds:
    def test_a_byte_is_its_own_id(self):
        assert BYTES.encode("Aé") == [0x41, 0xC3, 0xA9]
        assert (BYTES.vocab_size, BYTES.eos_id) == (257, 256)

    @needs_gpt2
    def test_gpt2_original_files_give_gpt2_ids(self):
        gpt2 = Tokenizer.load(GPT2)
        assert gpt2.encode("Hello world") == [15496, 995]
        assert gpt2.encode(" don't\n\n1999") == [836, 470, 198, 198, 18946]
        assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)

    @needs_gpt2
    def test_both_pairs_of_file_names_and_tokenizer_json_are_one_tokenizer(self, tmp_path):
        (tmp_path / "vocab.json").write_bytes((GPT2 / "encoder.json").read_bytes())
        (tmp_path / "merges.txt").write_bytes((GPT2 / "vocab.bpe").read_bytes())
        original = Tokenizer.load(GPT2)
        assert Tokenizer.load(tmp_path).sha256 == original.sha256
        original.save(tmp_path / "tokenizer.json")
        assert Tokenizer.load(str(tmp_path)).sha256 == original.sha256

    @kinds
    def test_batches_are_encoded_like_single_texts(self, kind):
        tokenizer = KINDS[kind]
        assert tokenizer.encode_batch(SENTENCES) == [tokenizer.encode(s) for s in SENTENCES]
        assert tokenizer.encode_batch([]) == []

    @kinds
    def test_half_a_surrogate_pair_is_refused(self, kind):
        with pytest.raises(UserError, match="surrogate"):
            KINDS[kind].encode("a\ud83d")


class TestEndOfText:
    def test_it_is_plain_text_unless_asked_for(self):
        text = f"the{END_OF_TEXT}day"
        plain = TRAINED.encode(text)
        assert TRAINED.eos_id not in plain
        assert TRAINED.decode(plain) == text
        the, day = TRAINED.encode("the"), TRAINED.encode("day")
        assert TRAINED.encode(text, special=True) == [*the, TRAINED.eos_id, *day]

    def test_asking_in_one_thread_does_not_leak_into_another(self):
        expected = {flag: TRAINED.encode(END_OF_TEXT, flag) for flag in (False, True)}
        flags = [False, True] * 500
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda flag: TRAINED.encode(END_OF_TEXT, flag), flags))
        assert found == [expected[flag] for flag in flags]

    def test_another_name_for_it_is_found(self):
        assert KINDS["sentencepiece"].eos_id == PIECES.token_to_id("</s>")

    def test_a_tokenizer_without_one_is_refused(self, tmp_path):
        definition = json_of(BYTES, added_tokens=[])
        del definition["model"]["vocab"][END_OF_TEXT]
        with pytest.raises(UserError, match=r"plain\.json has no end-of-text.*endoftext"):
            Tokenizer.load(write(tmp_path / "plain.json", definition))


class TestRoundTrip:
    @pytest.mark.parametrize("tokenizer", [BYTES, TRAINED], ids=["bytes", "trained"])
    @given(text=texts)
    @settings(deadline=None)
    def test_decoding_gives_the_text_back(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @needs_gpt2
    def test_decoding_gives_the_text_back_with_gpt2(self):
        gpt2 = Tokenizer.load(GPT2)
        for text in SENTENCES:
            assert gpt2.decode(gpt2.encode(text)) == text

    @given(ids=st.lists(st.integers(0, TRAINED.vocab_size - 1)))
    @settings(deadline=None)
    def test_decoding_is_the_librarys(self, ids):
        library = tokenizers.Tokenizer.from_str(TRAINED.to_json())
        assert TRAINED.decode(ids) == library.decode(ids)

    @pytest.mark.parametrize("text", [*SENTENCES, " the day", "\u00a0 x", ""])
    def test_sentencepiece_decoding_is_the_librarys(self, text):
        ids = KINDS["sentencepiece"].encode(text)
        assert ids == PIECES.encode(text, add_special_tokens=False).ids
        assert KINDS["sentencepiece"].decode(ids) == PIECES.decode(ids)

    @kinds
    def test_special_and_padding_ids_have_no_text(self, kind):
        tokenizer = KINDS[kind]
        ids = tokenizer.encode("the day")
        noise = [tokenizer.eos_id, tokenizer.vocab_size, 50399, 2**40, -1]
        assert tokenizer.decode([*noise, *ids, *noise]) == "the day"

    def test_an_added_token_is_written_as_it_is(self):
        spaces = {**json_of(BYTES)["added_tokens"][0], "id": 257, "content": "  ", "special": False}
        added = Tokenizer(json_of(BYTES, added_tokens=[*json_of(BYTES)["added_tokens"], spaces]))
        assert added.encode("a  b") == [97, 257, 98]
        assert added.decode([97, 257, 98]) == "a  b"


class TestStream:
    @kinds
    @given(ids=st.lists(st.integers(-1, 410)), extra=st.lists(st.integers(0x70, 0xFF)))
    @settings(deadline=None)
    def test_what_is_streamed_is_what_is_decoded(self, kind, ids, extra):
        tokenizer = KINDS[kind]
        stream = tokenizer.stream()
        ids = ids + extra  # many bytes that begin, continue or break a character
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)

    @pytest.mark.parametrize("tokenizer", [BYTES, TRAINED], ids=["bytes", "trained"])
    @given(text=st.text().filter(lambda text: "\ufffd" not in text))
    @settings(deadline=None)
    def test_no_character_is_ever_split(self, tokenizer, text):
        stream = tokenizer.stream()
        parts = [stream.push(token) for token in tokenizer.encode(text)]
        assert not any("\ufffd" in part for part in parts)
        assert stream.finish() == ""

    def test_a_character_appears_with_its_last_byte(self):
        stream = BYTES.stream()
        assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]

    def test_an_unfinished_character_appears_at_the_end(self):
        stream = BYTES.stream()
        assert stream.push(0xF0) == ""
        assert stream.finish() == "\ufffd"

    def test_nonsense_without_end_is_streamed_at_once(self):
        # A window re-decoded until it is valid would be quadratic here, and show nothing.
        stream = BYTES.stream()
        assert all(stream.push(0x80) == "\ufffd" for _ in range(100_000))

    def test_a_leading_space_is_dropped_once(self):
        tokenizer = KINDS["sentencepiece"]
        stream = tokenizer.stream()
        shown = "".join(map(stream.push, [tokenizer.eos_id, *tokenizer.encode("the  day")]))
        assert shown == "the  day"


class TestTraining:
    def test_the_same_texts_give_the_same_tokenizer(self):
        assert Tokenizer.train(iter(SENTENCES * 3), 320).sha256 == TRAINED.sha256

    def test_the_vocabulary_is_as_large_as_asked_and_ends_with_end_of_text(self):
        assert TRAINED.vocab_size == 320
        assert TRAINED.eos_id == 319

    def test_frequent_words_become_tokens(self):
        assert len(TRAINED.encode(" the")) == 1

    def test_little_text_gives_a_smaller_vocabulary(self):
        assert 257 < Tokenizer.train(["the the"], 1000).vocab_size < 270
        assert Tokenizer.train([], 257).vocab_size == 257

    def test_a_vocabulary_without_room_for_every_byte_is_refused(self):
        with pytest.raises(UserError, match=r"vocabulary of 256 .* at least 257"):
            Tokenizer.train(SENTENCES, 256)

    def test_learning_from_pieces_is_learning_from_the_whole(self, monkeypatch):
        text = "".join(SENTENCES)
        whole = Tokenizer.train([text], 300)
        monkeypatch.setattr(module, "_PIECE_CHARACTERS", 5)
        assert Tokenizer.train([text], 300).sha256 == whole.sha256


class TestPieces:
    @given(text=texts, size=st.integers(1, 6))
    @settings(deadline=None, max_examples=300)
    def test_piecewise_ids_are_the_ids_of_the_whole(self, text, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_PIECE_CHARACTERS", size)
            pieces = list(TRAINED.pieces(text))
        assert "".join(pieces) == text
        assert list(chain.from_iterable(TRAINED.encode_batch(pieces))) == TRAINED.encode(text)

    def test_a_long_text_has_several_and_each_is_short(self):
        pieces = list(TRAINED.pieces("word " * 100_000))
        assert len(pieces) > 5
        assert max(map(len, pieces)) < 70_000

    @pytest.mark.parametrize(
        "changes",
        [
            {"normalizer": {"type": "NFC"}},
            {"pre_tokenizer": None},
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                }
            },
            {
                "added_tokens": [
                    *json_of(TRAINED)["added_tokens"],
                    {
                        **json_of(TRAINED)["added_tokens"][0],
                        "id": 320,
                        "content": "b c",
                        "special": False,
                    },
                ]
            },
        ],
        ids=["normalizer", "no words", "prefix space", "token with a space"],
    )
    def test_where_no_cut_is_sure_there_is_one_piece(self, changes):
        text = "word " * 100_000
        assert list(Tokenizer(json_of(TRAINED, **changes)).pieces(text)) == [text]


class TestLoading:
    @pytest.mark.parametrize("spec", ["bytes", "file", "folder"])
    def test_each_kind_of_name_is_understood(self, spec, tmp_path):
        BYTES.save(tmp_path / "tokenizer.json")
        names = {"bytes": "bytes", "file": tmp_path / "tokenizer.json", "folder": str(tmp_path)}
        assert Tokenizer.load(names[spec]).sha256 == BYTES.sha256

    def test_truncation_and_padding_in_the_file_are_not_obeyed(self, tmp_path):
        library = tokenizers.Tokenizer.from_str(BYTES.to_json())
        library.enable_truncation(3)
        library.enable_padding(length=8)
        library.save(str(tmp_path / "tokenizer.json"))
        assert Tokenizer.load(tmp_path).encode_batch(["a", "abcdef"]) == [[97], [*range(97, 103)]]

    def test_a_hub_id_is_downloaded(self, monkeypatch, tmp_path):
        BYTES.save(tmp_path / "tokenizer.json")
        asked = []

        def download(hub_id, allow_patterns):
            asked.append((hub_id, allow_patterns))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert Tokenizer.load("EleutherAI/gpt-j-6b").sha256 == BYTES.sha256
        assert asked == [("EleutherAI/gpt-j-6b", ["tokenizer.json", "vocab.json", "merges.txt"])]

    def test_an_unreachable_hub_is_one_sentence(self, monkeypatch):
        def download(hub_id, allow_patterns):
            raise ConnectionError("no route\nand a long explanation")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(UserError, match=r"'org/name' is neither .*no route.*give a path") as e:
            Tokenizer.load("org/name")
        assert "\n" not in str(e.value)

    @pytest.mark.parametrize("spec", ["no/such/path", "./gpt2", "train:4096", "x.json", Path("x")])
    def test_what_is_neither_a_path_nor_a_hub_id_is_refused(self, spec):
        with pytest.raises(UserError, match=f"no tokenizer {re.escape(repr(str(spec)))}: give"):
            Tokenizer.load(spec)

    def test_a_folder_without_a_tokenizer_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"no tokenizer in the folder .* needs tokenizer\.json"):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"{", r"bad\.json is not JSON"),
            (b"[]", r"bad\.json is not a JSON object"),
            (b"\xff\xfe", r"bad\.json cannot be read"),
            (b'{"model": 7}', r"bad\.json does not define a tokenizer"),
        ],
    )
    def test_a_broken_file_is_named(self, content, complaint, tmp_path):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            Tokenizer.load(tmp_path / "bad.json")

    @pytest.mark.parametrize(("name", "asks"), [("", "exists"), ("t.json", "read_text")])
    def test_what_may_not_be_read_is_named(self, name, asks, tmp_path, monkeypatch):
        path = write(tmp_path / "t.json", json_of(BYTES)).parent / name

        def fail(asked, **_):
            raise PermissionError(13, "Permission denied", str(asked))

        monkeypatch.setattr(Path, asks, fail)
        said = f"^{path} cannot be read \\(Permission denied\\): allow yourself to read it"
        with pytest.raises(UserError, match=said):
            Tokenizer.load(path)

    def test_an_unknown_way_to_spell_is_refused(self, tmp_path):
        definition = json_of(BYTES, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
        with pytest.raises(UserError, match=r"odd\.json is neither byte-level .*WordPiece"):
            Tokenizer.load(write(tmp_path / "odd.json", definition))


class TestDefinition:
    def test_saving_and_loading_keeps_the_hash(self, tmp_path):
        TRAINED.save(tmp_path / "tokenizer.json")
        loaded = Tokenizer.load(tmp_path)
        assert loaded.sha256 == TRAINED.sha256
        assert loaded.to_json() == TRAINED.to_json()

    def test_the_hash_ignores_layout_and_sees_meaning(self, tmp_path):
        pretty = tmp_path / "pretty.json"
        pretty.write_text(json.dumps(json_of(TRAINED), indent=4))
        assert Tokenizer.load(pretty).sha256 == TRAINED.sha256
        assert BYTES.sha256 != TRAINED.sha256

    def test_the_byte_tokenizer_stays_what_it_was(self):
        # Its hash is in every byte store's fingerprint, and so in the order of its training data.
        assert BYTES.sha256[:16] == "a47975a5013fdaa4"
