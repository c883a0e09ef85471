"""Examples of what to answer: which tokens are learnt, and rows of whole ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from gptj.data import packing
from gptj.data.batches import EvalBatches, TrainBatches
from gptj.data.clean import CleanConfig
from gptj.data.describe import random_documents
from gptj.data.examples import ExampleConfig
from gptj.data.mixture import MixConfig, Mixture, mix
from gptj.data.packing import BEGINS
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.store import TokenStore, ids_of
from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer
from gptj.transcript import encode, plain, read_template

QA = [{"q": f"{n} + {n}", "a": str(2 * n), "meta": {"kind": "sum"}} for n in range(40)]
ASKED = ExampleConfig("completions", prompt="Q: {q}\nA:", completion=" {a}")
CHAT = ExampleConfig("chats")


def written(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def prepared(tmp_path: Path, records, examples: ExampleConfig, **options) -> Mixture:
    path = records if isinstance(records, Path) else written(tmp_path / "in.jsonl", records)
    usual = {"tokenizer": "bytes", "held_out": 0, "out": tmp_path / "out"}
    config = PrepareConfig((str(path),), examples=examples, **{**usual, **options})
    prepare(config)
    return Mixture.open(config.out)


def told(store: TokenStore) -> list[str]:
    """The examples, what is learnt between marks; in the order of the file."""
    return [text for _, _, text in random_documents(store, store.manifest.documents, 0)]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [
    said("user", END_OF_TEXT),
    said("assistant", f"b {END_OF_TEXT}"),
    said("user", "c"),
    said("assistant", "d é"),
    said("user", "e"),
    said("assistant", "f"),
]


def ended(path: Path, how: str = "eos_token") -> Path:
    """A template whose answers end with the end of text."""
    end = {"eos_token": "+ eos_token", "spelt": f"+ '{END_OF_TEXT}'"}.get(how, "")
    late = "{{ eos_token if loop.index0 and m.role == 'user' }}" if not end else ""
    path.write_text(
        "<s>{{ bos_token }}{% for m in messages %}" + late + "{% if m.role == 'user' %}"
        "{{ ('' if loop.first else '\n') + 'user: ' + m.content }}{% else %}"
        "{{ '\nbot: ' + m.content " + end + " }}{% endif %}{% endfor %}"
        "{{ '\nbot: ' if add_generation_prompt }}"
    )
    return path


class TestWhatIsLearnt:
    def test_of_a_prompt_and_its_completion(self, tmp_path):
        (part,) = prepared(tmp_path, QA, ASKED).parts
        assert told(part.store) == [f"Q: {n} + {n}\nA:⟦ {2 * n}⟧" for n in range(40)]
        assert part.store.text(3) == "Q: 3 + 3\nA: 6"
        assert part.store.tokens[:][-1] == part.store.tokenizer.eos_id

    def test_fields_within_records_numbers_and_braces(self, tmp_path):
        config = ExampleConfig("completions", prompt="{{{meta.kind}}} {n}:", completion="{a}")
        data = prepared(tmp_path, [{**QA[0], "n": 7}], config)
        assert told(data.parts[0].store) == ["{sum} 7:⟦0⟧"]

    def test_of_a_chat_what_the_assistant_says(self, tmp_path):
        talk = [said("user", "a"), said("assistant", "b"), said("user", "c")]
        more = [*talk, said("assistant", "d\n"), said("user", "bye")]
        (part,) = prepared(tmp_path, [{"messages": talk}, {"messages": more}], CHAT).parts
        assert told(part.store) == [
            "User:\na\n\nAssistant:\n⟦b⟧",
            "User:\na\n\nAssistant:\n⟦b\n\nUser:⟧\nc\n\nAssistant:\n⟦d⟧",
        ]

    def test_what_comes_before_is_what_the_model_is_given(self, tmp_path):
        """Also by a tokenizer whose tokens at a message's end depend on what follows it."""
        turns = (said("user", "a."), said("assistant", "b."), said("user", "c"))
        talk = [*turns, said("assistant", "d")]
        tokenizer = Tokenizer.train([plain(talk, False) * 20], 300)
        tokenizer.save(tmp_path / "tokenizer.json")
        place = str(tmp_path / "tokenizer.json")
        (part,) = prepared(tmp_path, [{"messages": talk}], CHAT, tokenizer=place).parts
        before = tokenizer.encode(plain(talk[:3], True))
        assert ids_of(part.store.tokens[:])[: len(before)].tolist() == before
        end, name = map(tokenizer.encode, ("b.\n\n", "User:"))
        assert [*end, *name] != tokenizer.encode("b.\n\nUser:")
        assert (part.store.tokens[len(before) :] >= 0).all()

    def test_by_a_template(self, tmp_path):
        template = tmp_path / "chat.jinja"
        template.write_text(
            "{% for each in messages %}<{{ each.role }}>{{ each.content }}</>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        config = ExampleConfig("chats", chat_template=template)
        records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
        data = prepared(tmp_path, records, config)
        assert told(data.parts[0].store) == ["<user>a</><assistant>⟦b</>⟧"]

    def test_of_each_answer_its_text_and_the_end_that_the_template_puts_there(self, tmp_path):
        """What a message says of the end is text, and so is all else that a template writes."""
        config = ExampleConfig("chats", chat_template=ended(tmp_path / "chat.jinja"))
        (part,) = prepared(tmp_path, [{"messages": TALK}], config).parts
        eos, mark = [part.store.tokenizer.eos_id], END_OF_TEXT.encode()
        pieces = [
            (b"<s>user: " + mark + b"\nbot: ", False),
            (b"b " + mark, True),
            (eos, True),
            (b"\nuser: c\nbot: ", False),
            ("d é".encode(), True),
            (eos, True),
            (b"\nuser: e\nbot: ", False),
            (b"f", True),
            (eos, True),
        ]
        wanted = [each if learnt else ~each for piece, learnt in pieces for each in piece]
        assert part.store.tokens[:].tolist() == wanted

    @pytest.mark.parametrize("how", ["eos_token", "spelt", "before the next", "plain"])
    def test_a_served_chat_is_given_what_was_trained_on(self, tmp_path, how):
        """At each of its answers, by a tokenizer with merges."""
        path = None if how == "plain" else ended(tmp_path / "chat.jinja", how)
        render = plain if path is None else read_template(path)
        tokenizer = Tokenizer.train([plain(TALK, False) * 20, "user: \nbot: " * 20], 300)
        tokenizer.save(tmp_path / "tokenizer.json")
        place, config = str(tmp_path / "tokenizer.json"), ExampleConfig("chats", chat_template=path)
        (part,) = prepared(tmp_path, [{"messages": TALK}], config, tokenizer=place).parts
        tokens = part.store.tokens[:]
        for number, each in enumerate(TALK):
            if each["role"] == "assistant":
                given = encode(render(TALK[:number], True), tokenizer)
                assert ids_of(tokens)[: len(given)].tolist() == given
                assert tokens[len(given) - 1] < 0 <= tokens[len(given)]
        ends = tokens[ids_of(tokens) == tokenizer.eos_id]
        assert ends.tolist() == [tokenizer.eos_id] * (1 if how == "plain" else 3)

    def test_of_preferences_by_a_template_that_ends_them(self, tmp_path):
        path = ended(tmp_path / "chat.jinja")
        config = ExampleConfig("preferences", chat_template=path)
        record = {"chosen": TALK, "rejected": [*TALK[:-1], said("assistant", "no")]}
        (part,) = prepared(tmp_path, [record], config).parts
        before = encode(read_template(path)(TALK[:-1], True), part.store.tokenizer)
        read, end = [~each for each in before], [part.store.tokenizer.eos_id]
        assert part.store.tokens[:].tolist() == [*read, *b"f", *end, *read, *b"no", *end]

    def test_of_preferences_both(self, tmp_path):
        records = [{"prompt": "p", "chosen": "yes", "rejected": "no"}]
        (part,) = prepared(tmp_path, records, ExampleConfig("preferences")).parts
        eos, ids = part.store.tokenizer.eos_id, part.store.tokens[:]
        assert ids_of(ids).tolist() == [*b"pyes", eos, *b"pno", eos]
        assert (ids < 0).tolist() == [True, *[False] * 4, True, *[False] * 3]

    def test_of_preferences_in_messages_the_last_ones(self, tmp_path):
        asked, yes, no = said("user", "p"), said("assistant", "yes"), said("assistant", "no\n")
        forms = [
            {"prompt": "p", "chosen": [asked, yes], "rejected": [asked, no]},
            {"chosen": [asked, yes], "rejected": [asked, no]},
            {"prompt": [asked], "chosen": [yes], "rejected": [no]},
            {"prompt": [asked], "chosen": [asked, yes], "rejected": [asked, no]},
            {"prompt": "p", "chosen": [yes], "rejected": [no]},
        ]
        before = "User:\np\n\nAssistant:\n"
        texts = {"prompt": before, "chosen": "yes", "rejected": "no"}
        config, more = ExampleConfig("preferences"), [yes, said("user", "q")]
        (part,) = prepared(tmp_path, [*forms, texts], config).parts
        assert len({text for _, _, text in random_documents(part.store, 6, 0)}) == 1
        longer = [{"chosen": [asked, *more, yes], "rejected": [asked, *more, no]}]
        (part,) = prepared(tmp_path, longer, config, force=True).parts
        tokens = part.store.tokens[:]
        (first, *_), eos = np.split(tokens, np.flatnonzero(tokens == 256) + 1), [256]
        answer = plain([asked, *more], True).encode()
        assert first.tolist() == [*(~each for each in answer), *b"yes", *eos]

    def test_of_preferences_in_messages_by_a_template_and_from_a_table(self, tmp_path):
        template = tmp_path / "chat.jinja"
        template.write_text("{% for each in messages %}<{{ each.content }}>{% endfor %}")
        asked, yes, no = said("user", "p"), said("assistant", "yes"), said("assistant", "no")
        path = tmp_path / "in.parquet"
        parquet.write_table(pa.Table.from_pylist([{"a": [asked, yes], "b": [asked, no]}]), path)
        config = ExampleConfig(
            "preferences", "{q}", chosen="{a}", rejected="{b}", chat_template=template
        )
        (part,) = prepared(tmp_path, path, config).parts
        assert ids_of(part.store.tokens[:]).tolist() == [*b"<p><yes>", 256, *b"<p><no>", 256]

    def test_the_same_from_a_table(self, tmp_path):
        parquet.write_table(pa.Table.from_pylist(QA), tmp_path / "in.parquet")
        table = prepared(tmp_path, tmp_path / "in.parquet", ASKED, out=tmp_path / "table")
        lines = prepared(tmp_path, QA, ASKED)
        assert table.fingerprint == lines.fingerprint

    def test_chats_from_a_table(self, tmp_path):
        talks = [{"talk": TALK, "n": 1}, {"talk": TALK[:2], "n": 2}]
        config = dataclasses.replace(CHAT, messages="talk")
        parquet.write_table(pa.Table.from_pylist(talks), tmp_path / "in.parquet")
        table = prepared(tmp_path, tmp_path / "in.parquet", config, out=tmp_path / "table")
        assert table.fingerprint == prepared(tmp_path, talks, config).fingerprint


class TestRows:
    @pytest.fixture
    def data(self, tmp_path) -> Mixture:
        return prepared(tmp_path, QA, ASKED)

    @pytest.mark.parametrize("seq", [14, 31, 64, 4000])
    def test_hold_every_example_whole_and_once(self, data, seq):
        (part,) = data.parts
        batches = TrainBatches(data, seq, 1)
        eos = part.store.tokenizer.eos_id
        rows = batches.rows(np.arange(batches.n_rows))
        found = "".join(
            part.store.tokenizer.decode([each for each in row if each != ~eos]) for row in ids(rows)
        )
        kept = [text for text in map(part.store.text, range(40)) if len(text) + 1 <= seq + 1]
        assert found.count("Q:") == len(kept) == 40 - batches.left_out
        assert sorted(found.split("Q:")[1:]) == sorted(text.removeprefix("Q:") for text in kept)

    def test_too_short_for_all_are_refused(self, data):
        with pytest.raises(UserError, match=r"shorter than every example .* has 14 tokens: raise"):
            TrainBatches(data, 12, 1)

    def test_evaluation_counts_each_learnt_token_once(self, data):
        (part,) = data.parts
        every = list(EvalBatches(part.store, 31, 3))
        learnt = int(np.sum(part.store.tokens[:] >= 0))
        assert sum(int(weights.sum()) for _, weights in every) == learnt
        assert all((tokens >= 0).all() and tokens.shape == (3, 32) for tokens, _ in every)
        halves = np.concatenate(
            [EvalBatches(part.store, 31, 3).rows(0, slice(0, 1)), every[0][0][1:]]
        )
        np.testing.assert_array_equal(halves, every[0][0])


class TestPairs:
    """Two answers to one prompt, each with its end-of-text in a half of a row of its own."""

    TEXTS = (("pyes", "pno"), ("qa", "quite long"), ("rather", "ra"), ("s ", "st"))

    @pytest.fixture
    def store(self, tmp_path):
        records = [{"prompt": a[0], "chosen": a[1:], "rejected": b[1:]} for a, b in self.TEXTS]
        return prepared(tmp_path, records, ExampleConfig("preferences")).parts[0].store

    @pytest.mark.parametrize("seq", [2, 4, 6, 9, 10, 20])
    @pytest.mark.parametrize("read", [1, 3, 1 << 24])
    def test_a_row_holds_both_and_what_is_too_long_is_left_out(self, store, seq, read, monkeypatch):
        def half(text):
            own = [~ord(text[0]), *text[1:].encode(), 256]
            return own + [~256] * (seq + 1 - len(own))

        monkeypatch.setattr(packing, "READ", read)
        fitting = [half(a) + half(b) for a, b in self.TEXTS if max(len(a), len(b)) <= seq]
        found = packing.pair(store, seq)
        assert (len(found), found.left_out) == (len(fitting), 4 - len(fitting))
        rows = found.read(np.arange(len(fitting) + 1)).tolist()
        assert rows == [*fitting, [~256] * (2 * seq + 2)]
        for number, row in enumerate(fitting):
            own = found.tokens(number)
            assert store.tokens[own.start : own.stop].tolist() == [x for x in row if x != ~256]

    def test_none_that_fits_is_refused(self, store):
        with pytest.raises(UserError, match=r"every pair .* has 3 tokens in an answer: raise seq"):
            packing.pair(store, 1)


def ids(rows):
    """What stands in rows, padding as it is stored."""
    padding = ~(256 | BEGINS)
    return [
        [~256 if each == padding else (~each if each < 0 else each) & ~BEGINS for each in row]
        for row in rows.tolist()
    ]


def test_a_row_says_where_examples_begin_and_nothing_else(tmp_path):
    pytest.importorskip("jinja2")
    template = ended(tmp_path / "chat.jinja")
    talks = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK}]
    data = prepared(tmp_path, talks, ExampleConfig("chats", chat_template=template))
    (part,) = data.parts
    store, width = part.store, len(part.store) + 9
    (row,) = TrainBatches(data, width - 1, 1).batch(0)
    unsigned = ids_of(row)
    found = np.flatnonzero(unsigned & BEGINS)
    assert found.tolist() == [*store.starts[:], *range(len(store), width)]
    assert (unsigned & ~BEGINS)[: len(store)].tolist() == ids_of(store.tokens[:]).tolist()
    assert np.sum(unsigned & ~BEGINS == 256) > 9 + 3  # others end a turn


def test_a_few_are_held_out_whole(tmp_path):
    data = prepared(tmp_path, QA[:5], ASKED, held_out=0.2)
    assert data.held_out is not None
    assert data.held_out.manifest.documents == 1
    assert sorted(told(data.parts[0].store) + told(data.held_out)) == sorted(
        f"Q: {n} + {n}\nA:⟦ {2 * n}⟧" for n in range(5)
    )


def test_more_are_appended_and_texts_are_not(tmp_path):
    prepared(tmp_path, QA[:20], ASKED)
    more = written(tmp_path / "more.jsonl", QA[20:])
    data = prepared(tmp_path, more, ASKED, append=True, tokenizer=None)
    assert data.parts[0].store.manifest.documents == 40
    again = written(tmp_path / "again.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="holds completions: give --examples completions"):
        prepared(tmp_path, again, ExampleConfig(), append=True, tokenizer=None)


def test_texts_and_examples_do_not_mix(tmp_path):
    prepared(tmp_path, QA, ASKED, out=tmp_path / "qa")
    texts = written(tmp_path / "texts.jsonl", [{"text": f"text {n}"} for n in range(9)])
    prepared(tmp_path, texts, ExampleConfig(), out=tmp_path / "texts")
    with pytest.raises(UserError, match=r"holds completions and .* texts: mix what is of one"):
        mix(MixConfig((f"{tmp_path / 'qa'}", f"{tmp_path / 'texts'}"), tmp_path / "both"))


PAIRS, ASK, YES = ExampleConfig("preferences"), said("user", "p"), said("assistant", "yes")


def two(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("record", "config", "message"),
    [
        ({"q": "a"}, ASKED, r"in.jsonl:1 has no text in a field 'a' \(it holds 'q'\): .* --compl"),
        ({"q": "a", "a": None}, ASKED, "no text in a field 'a'"),
        (
            {"q": "a", "a": ""},
            ExampleConfig("completions", "{q}", "{a}"),
            "empty completion: le",
        ),
        ({"q": "", "a": "b"}, ExampleConfig("completions", "{q}", "{a}"), "empty prompt: there is"),
        ({"messages": []}, CHAT, "no message of the assistant's"),
        ({"talk": []}, CHAT, "no list of messages in a field 'messages' .*: name .* --messages"),
        ({"messages": [said("robot", "a")]}, CHAT, "message 1 of role 'robot': use one of system"),
        ({"messages": [said("assistant", "")]}, CHAT, "empty message 1 of the assistant's"),
        ({"messages": [said(["user"], "a")]}, CHAT, r"message 1 of role \['user'\]: use one of"),
        ({"messages": [said("user", "a"), said("assistant", "\n")]}, CHAT, "2 is an empty answer"),
        ({"messages": [said("user", 3)]}, CHAT, "message 1 whose content is no text"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            ExampleConfig("preferences"),
            "one text as chosen and rejected",
        ),
        (two([ASK, YES], [ASK, YES]), PAIRS, "one text is both chosen and rejected"),
        (two([ASK, YES], [said("user", "q"), YES]), PAIRS, "part before their last messages"),
        (two([YES, ASK], [YES, ASK]), PAIRS, "ends with no message of the assistant's"),
        (two([], []), PAIRS, "ends with no message of the assistant's"),
        (two([ASK, YES], "no"), PAIRS, "no list of messages in a field 'rejected'.*--rejected"),
        (two([YES], [said("assistant", "no")]), PAIRS, "no text in a field 'prompt'.*--prompt"),
        (
            {"prompt": "p", **two("yes", "no")},
            ExampleConfig("preferences", chat_template=Path("/dev/null")),
            "holds no messages, and --chat-template is of those: leave it out",
        ),
        (two([said("robot", "a")], [YES]), PAIRS, "message 1 of role 'robot'"),
    ],
)
def test_records_that_show_nothing_are_named(tmp_path, record, config, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, [record], config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": ExampleConfig("completions", prompt="{q")}, "is no template"),
        ({"examples": ExampleConfig("completions", prompt="{q:3}")}, "says how fields look"),
        ({"examples": ExampleConfig("completions", prompt="q")}, "names no field"),
        ({"examples": ASKED, "tokenizer": "train:300"}, "needs a tokenizer that is there already"),
    ],
)
def test_what_makes_no_examples_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, QA, **options)


def test_options_that_nobody_would_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="--prompt is for --examples completions or preferences"):
        ExampleConfig(prompt="{q}")
    with pytest.raises(UserError, match="--completion is for --examples completions: give that"):
        ExampleConfig("chats", completion="{a}")
    with pytest.raises(UserError, match="--text-field is for texts, not for --examples chats"):
        prepared(tmp_path, QA, CHAT, text_field="q")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UserError, match=r"a\.txt holds no records: give examples as JSON lines"):
        prepared(tmp_path, tmp_path / "a.txt", ASKED)


def test_a_template_that_fails_says_so(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ 1 // 0 }}")
    records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
    with pytest.raises(UserError, match=r"in\.jsonl:1: the chat template refuses them: .*zero"):
        prepared(tmp_path, records, ExampleConfig("chats", chat_template=template))


def test_a_template_that_rewrites_the_past_is_refused(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages | length }}{{ messages[-1].content }}")
    records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
    with pytest.raises(UserError, match=r"in\.jsonl:1: the chat template writes earlier messages"):
        prepared(tmp_path, records, ExampleConfig("chats", chat_template=template))


def test_so_is_one_that_writes_an_answer_otherwise_later(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content | upper if m.role == 'assistant' and not loop.last "
        "else m.content }}{% endfor %}"
    )
    records = [{"messages": TALK[2:]}]
    with pytest.raises(UserError, match=r"in\.jsonl:1: the chat template writes earlier messages"):
        prepared(tmp_path, records, ExampleConfig("chats", chat_template=template))


def test_a_tokenizer_that_writes_texts_otherwise_finds_only_the_last_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "spelling", property(lambda self: [b""] * self.vocab_size))
    with pytest.raises(UserError, match=r"writes texts otherwise than they were.*of one answer"):
        prepared(tmp_path, [{"messages": TALK}], CHAT)
    assert prepared(tmp_path, [{"messages": TALK[4:]}], CHAT).parts


def test_of_an_example_that_is_left_out_the_beginning_is_shown(tmp_path):
    records = [*QA[:30], QA[7]]
    clean = CleanConfig(copies="exact", min_unique_tokens=7)
    path = str(written(tmp_path / "in.jsonl", [*records, {"q": "aaa", "a": "a"}]))
    config = PrepareConfig((path,), tmp_path / "out", "bytes", clean=clean, examples=ASKED)
    copy, few = prepare(config).dropped
    assert copy.examples == ("in.jsonl, document 31, as in in.jsonl, document 8: Q: 7 + 7 A: 14",)
    assert few.examples == ("in.jsonl, document 32: Q: aaa A: a",)
