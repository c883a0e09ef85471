"""Files of tokens, written by other people's code: the same ids come back, damage is named."""

import struct
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.record_writer import RecordWriter

from gptj.data import tokenized, unpack
from gptj.data.examples import ExampleConfig, ExampleReader
from gptj.data.find import Source, find_sources
from gptj.data.read import Reader
from gptj.data.tokenized import check_listed, documents_of, token_runs
from gptj.errors import UserError
from gptj.files import file_at
from gptj.tokenizer import Tokenizer

EOS = 50256
DRAW = np.random.default_rng(0)
RECORDS = [DRAW.integers(0, EOS, 2049) for _ in range(3)]


def megatron(path: Path, sequences, kind: str, code: int, bounds=None) -> Path:
    arrays = [np.asarray(ids, kind) for ids in sequences]
    sizes = [len(each) for each in arrays]
    starts = np.cumsum([0, *(each.nbytes for each in arrays)])[:-1]
    path.with_suffix(".bin").write_bytes(b"".join(each.tobytes() for each in arrays))
    bounds = np.arange(len(arrays) + 1) if bounds is None else np.array(bounds)
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(arrays), len(bounds))
    index = (np.array(sizes, "<i4"), np.array(starts, "<i8"), bounds)
    path.write_bytes(head + b"".join(each.tobytes() for each in index))
    return path


def runs(path: Path) -> list[list[int]]:
    return [ids.tolist() for group in token_runs(file_at(str(path)), path.suffix) for ids in group]


class TestTheOriginals:
    @pytest.mark.parametrize("name", ["a.tfrecords", "pile_zstd_0.tfrecords"])
    def test_records_come_back_as_they_were(self, name, tfrecords, tmp_path):
        assert runs(tfrecords(tmp_path / name, RECORDS)) == [each.tolist() for each in RECORDS]

    @pytest.mark.parametrize("chunk", [1, 5, 16, 10**6])
    def test_records_are_read_to_the_byte_whatever_the_chunks(self, chunk, tmp_path, monkeypatch):
        monkeypatch.setattr(unpack, "CHUNK_BYTES", chunk)
        records = [b"", b"x", bytes(range(256)), b"\n", b"end"]
        writer = RecordWriter(str(tmp_path / "a.tfrecords"))
        for record in records:
            writer.write(record)
        writer.close()
        with (tmp_path / "a.tfrecords").open("rb") as opened:
            assert list(tokenized._records("a", unpack.parts(opened))) == records

    @given(ids=st.lists(st.integers(0, 2**40), max_size=50))
    @settings(deadline=None)
    def test_numbers_of_any_width(self, tfrecords, tmp_path_factory, ids):
        path = tfrecords(tmp_path_factory.mktemp("w") / "a.tfrecord", [ids or [0]])
        assert runs(path) == [ids or [0]]

    def test_an_index_names_files_in_their_order(self, tfrecords, tmp_path, monkeypatch):
        for number, ids in enumerate(RECORDS):
            tfrecords(tmp_path / f"{number}.tfrecords", [ids])
        index = tmp_path / "train.index"
        index.write_text(f"2.tfrecords\n{tmp_path / '0.tfrecords'}\n\n")
        assert runs(index) == [RECORDS[2].tolist(), RECORDS[0].tolist()]
        remote = fsspec.filesystem("memory")
        remote.pipe("/listed/1.tfrecords", (tmp_path / "1.tfrecords").read_bytes())
        remote.pipe("/listed/far.index", b"1.tfrecords\n" + f"{tmp_path}/0.tfrecords".encode())
        index.write_text("memory://listed/1.tfrecords")
        assert runs(index) == [RECORDS[1].tolist()]
        monkeypatch.chdir(tmp_path)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "near.index").write_text("2.tfrecords")  # from where it is read
        assert runs(tmp_path / "in" / "near.index") == [RECORDS[2].tolist()]
        far = token_runs(file_at("memory://listed/far.index"), ".index")
        assert [ids.tolist() for group in far for ids in group] == [
            RECORDS[1].tolist(),
            RECORDS[0].tolist(),
        ]
        index.write_text("9.tfrecords")
        with pytest.raises(UserError, match=r"train\.index names 9\.tfrecords, which is not there"):
            runs(index)

    @pytest.mark.parametrize("listed", ["a.tfrecords\nb.tfrecords", "b.tfrecords\nb.tfrecords"])
    def test_nothing_is_read_by_itself_and_by_an_index(self, listed, tfrecords, tmp_path):
        for name in "ab":
            tfrecords(tmp_path / f"{name}.tfrecords", RECORDS[:1])
        index = tmp_path / "train.index"
        index.write_text(listed)
        inputs = [index, tmp_path / "a.tfrecords"]
        with pytest.raises(UserError, match=r"train\.index names .*, .*: .* would be read twice"):
            check_listed(find_sources(inputs).sources)
        index.write_text("b.tfrecords")
        check_listed(find_sources(inputs).sources)
        with pytest.raises(UserError, match=r"b\.tfrecords, which is itself among the inputs"):
            check_listed(find_sources([tmp_path]).sources)

    def test_documents_go_on_from_record_to_record(self):
        stream = [np.array([1, 2]), np.array([3, 0, 4]), np.array([0, 0]), np.array([5])]
        assert [x.tolist() for x in documents_of(stream, 0)] == [[1, 2, 3], [4], [], [5]]
        assert [x.tolist() for x in documents_of([np.array([1, 0])], 0)] == [[1]]

    def test_another_feature_is_named(self, tfrecords, tmp_path):
        path = tfrecords(tmp_path / "a.tfrecords", RECORDS, name="input_ids")
        with pytest.raises(UserError, match=r"record 0, has no feature 'text'.*'input_ids'"):
            runs(path)
        path = tfrecords(tmp_path / "a.tfrecords", RECORDS, name="other", about="text")
        with pytest.raises(UserError, match=r"record 0, has no feature 'text' of integers"):
            runs(path)

    def test_other_fields_are_passed_over_whatever_they_hold(self):
        fields = {
            1: (b"\x08", b"\x96\x01"), 2: (b"\x11", b"8 bytes."), 3: (b"\x1d", b"four"),
            4: (b"\x22\x02", b"hi"), 31: (b"\xfa\x01\x00", b""), 5: (b"\x28", b"\x07"),
        }  # fmt: skip
        message = b"".join(key + held for key, held in fields.values())
        for field, (_, held) in fields.items():
            assert list(tokenized._held(message + message, field)) == [held, held]
        assert list(tokenized._held(message, 6)) == []
        assert list(tokenized._held(message + b"\x08\x96", 1))[1:] == [b"\x96"]  # it breaks off
        assert list(tokenized._held(b"\x0b" + message, 4)) == []  # a group, which has no length

    @pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 255, 256, 300, 16384])
    def test_a_field_may_have_any_size(self, size):
        """Which is a varint, as `field << 3 | 2` before it is."""
        at, key, rest = size, b"\x0a", b"\x10\x07"
        while at >= 128:
            key, at = key + bytes([at & 127 | 128]), at >> 7
        message = key + bytes([at]) + b"x" * size + rest
        assert list(tokenized._held(message, 1)) == [b"x" * size]
        assert list(tokenized._held(message, 2)) == [b"\x07"]

    def test_integers_need_not_be_packed(self):
        feature = b"\x1a\x07" + b"\x08\x05" + b"\x08\xac\x02" + b"\x08\x00"  # 5, 300 and 0
        entry = b"\x0a\x04text" + b"\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        example = b"\x0a" + bytes([len(features)]) + features
        assert tokenized._text_of("there", example).tolist() == [5, 300, 0]

    def test_an_empty_record_is_no_mistake(self, tfrecords, tmp_path):
        assert runs(tfrecords(tmp_path / "a.tfrecords", [[], [7]])) == [[], [7]]

    @pytest.mark.parametrize("name", ["a.tfrecords", "zstd.tfrecords"])
    def test_damage_is_named(self, name, tfrecords, tmp_path):
        path = tfrecords(tmp_path / name, RECORDS)
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for bad in (content[:-9], bytes(flipped), b"no records" * 9):
            path.write_bytes(bad)
            with pytest.raises(UserError, match=rf"{name} is (damaged|cut short|no |corrupt)"):
                runs(path)

    def test_the_record_that_is_damaged_is_told_by_its_number(self, tfrecords, tmp_path):
        content = tfrecords(tmp_path / "a.tfrecords", [[n] * 99 for n in range(4)]).read_bytes()
        size = len(content) // 4
        for at, said in ((3, "is no TFRecord file, or damaged"), (20, "is damaged")):
            for number in range(4):
                flipped = bytearray(content)
                flipped[number * size + at] ^= 4
                (tmp_path / "b.tfrecords").write_bytes(flipped)
                with pytest.raises(UserError, match=rf"b\.tfrecords {said} in record {number}: "):
                    runs(tmp_path / "b.tfrecords")
        for cut in (4, 11, 12, size - 1):
            (tmp_path / "b.tfrecords").write_bytes(content[: 2 * size + cut])
            with pytest.raises(UserError, match=r"b\.tfrecords is cut short in record 2: "):
                runs(tmp_path / "b.tfrecords")
        (tmp_path / "b.tfrecords").write_bytes(content[: 2 * size])
        assert runs(tmp_path / "b.tfrecords") == [[0] * 99, [1] * 99]


class TestMegatron:
    SEQUENCES = ([1, 2, 3], [], [65535, 0])

    WIDTHS: ClassVar = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}

    @pytest.mark.parametrize("kind", WIDTHS)
    def test_sequences_come_back_as_they_were(self, kind, tmp_path):
        largest = np.iinfo(kind).max
        sequences = [[1, 2, 3], [], [largest, 0]]
        path = megatron(tmp_path / "a.idx", sequences, kind, self.WIDTHS[kind])
        assert runs(path) == sequences

    def test_another_version_or_a_type_that_is_no_integer_is_refused(self, tmp_path):
        for code in (0, 6, 7, 9):
            path = megatron(tmp_path / "a.idx", self.SEQUENCES, "<u2", code)
            with pytest.raises(UserError, match=rf"a\.idx says that ids are of type {code}, which"):
                runs(path)
        content = bytearray(megatron(tmp_path / "a.idx", self.SEQUENCES, "<u2", 8).read_bytes())
        content[9] = 2
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.idx is no index of Megatron's \(version 1\)"):
            runs(path)

    @given(
        documents=st.lists(
            st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=3), max_size=9
        ),
        ended=st.booleans(),
        at_once=st.integers(1, 3),
    )
    @settings(deadline=None)
    def test_documents_are_those_of_the_index(self, tmp_path_factory, documents, ended, at_once):
        """Whether or not an end of text, here 0, stands at their ends as well."""
        said = [[*document, [0]] if ended else document for document in documents]
        bounds = np.cumsum([0, *map(len, said)])
        path = tmp_path_factory.mktemp("m") / "a.idx"
        megatron(path, [ids for document in said for ids in document], "<u2", 8, bounds)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptj.data.tokenized._AT_ONCE", at_once)
            reader = Reader(eos_id=0)._tokens(Source(file_at(str(path)), "a"))
            found = [each.ids.tolist() for each in reader]
        texts = ([id for ids in document for id in ids] for document in documents)
        assert found == list(filter(None, texts))

    def test_what_is_wrong_is_named(self, tmp_path):
        for bounds in ([0, 2, 1], [0, 4], [-1]):
            path = megatron(tmp_path / "a.idx", self.SEQUENCES, "<u2", 8, bounds)
            with pytest.raises(UserError, match=r"a\.idx has documents that do not end in order"):
                runs(path)
        path = megatron(tmp_path / "a.idx", self.SEQUENCES, "<u2", 8)
        whole = path.read_bytes()
        path.write_bytes(b"something else" * 9)
        with pytest.raises(UserError, match=r"a\.idx is no index of Megatron's"):
            runs(path)
        path.write_bytes(whole[:20])
        with pytest.raises(UserError, match=r"a\.idx is no index of Megatron's"):
            runs(path)
        path.write_bytes(whole[:40])
        with pytest.raises(UserError, match=r"a\.idx has 40 bytes .* cut short"):
            runs(path)
        path.write_bytes(whole)
        path.with_suffix(".bin").write_bytes(b"\1")
        with pytest.raises(UserError, match=r"a\.bin has 1 bytes .* cut short"):
            runs(path)
        path.with_suffix(".bin").unlink()
        with pytest.raises(UserError, match=r"a\.idx has no \.bin file beside it"):
            runs(path)


def test_tokens_need_to_be_told_what_they_mean(tfrecords, tmp_path):
    source = Source(file_at(str(tfrecords(tmp_path / "a.tfrecords", RECORDS))), "a")
    with pytest.raises(UserError, match=r"a\.tfrecords holds tokens .* --tokenizer"):
        list(Reader().documents(source))
    documents = list(Reader(eos_id=EOS).documents(source))
    held = np.concatenate([each.ids for each in documents])
    assert held.tolist() == np.concatenate(RECORDS).tolist()


def test_tokens_have_neither_fields_nor_records(tfrecords, tmp_path):
    source = Source(file_at(str(tfrecords(tmp_path / "a.tfrecords", RECORDS))), "a")
    chats = ExampleReader(ExampleConfig("chats"), Tokenizer.bytes())
    for options, said in (
        ({"group_field": "kind"}, "has no field 'kind' to divide it by"),
        ({"examples": chats}, "holds no records"),
    ):
        with pytest.raises(UserError, match=rf"a\.tfrecords {said}"):
            list(Reader(eos_id=EOS, **options).documents(source))
