"""What a server is told, each bound where it lies."""

import math
from pathlib import Path

import pytest

from gptj.errors import UserError
from gptj.serve.config import KEYS_VARIABLE, RayConfig, ServeConfig
from gptj.serve.keys import read_keys


class TestServers:
    COUNTS = (
        *("key_concurrency", "key_tokens_per_minute", "max_body_bytes", "max_prompt_tokens"),
        *("max_completions", "queue_tokens"),
    )

    @pytest.mark.parametrize("name", COUNTS)
    def test_a_count_is_at_least_1(self, name):
        assert getattr(ServeConfig(**{name: 1}), name) == 1
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1$"):
            ServeConfig(**{name: 0})

    @pytest.mark.parametrize("port", [0, 65535])
    def test_a_port_of_16_bits(self, port):
        assert ServeConfig(port=port).port == port

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_another_port(self, port):
        with pytest.raises(UserError, match=f"^port={port} must be between 0 and 65535$"):
            ServeConfig(port=port)

    def test_times(self):
        assert ServeConfig(client_seconds=0.1, drain_seconds=0.0).drain_seconds == 0
        for name, value in (("client_seconds", 0.0), ("client_seconds", math.nan)):
            with pytest.raises(UserError, match=f"^{name}={value} must be above 0$"):
                ServeConfig(**{name: value})
        for value in (-0.1, math.nan):
            with pytest.raises(UserError, match=f"^drain_seconds={value} must be at least 0$"):
                ServeConfig(drain_seconds=value)

    def test_what_ends_a_chat_is_text(self):
        assert ServeConfig(chat_stop=()).chat_stop == ()
        with pytest.raises(UserError, match="chat_stop must be strings, none of them empty"):
            ServeConfig(chat_stop=("a", ""))

    @pytest.mark.parametrize(
        "origin", ["https://a.example", "http://localhost:3000", "chrome-extension://abc"]
    )
    def test_an_origin(self, origin):
        assert ServeConfig(cors=(origin,)).cors == (origin,)

    @pytest.mark.parametrize(
        "origin", ["*", "a.example", "https://", "https://*.example", "https://a/b", "HTTPS://a"]
    )
    def test_what_is_none(self, origin):
        with pytest.raises(UserError) as failure:
            ServeConfig(cors=("https://a.example", origin))
        assert f"cors={origin} must be the origin of web pages that may ask" in str(failure.value)


class TestReplicas:
    def test_as_they_are_said(self):
        said = "replicas=3,cpus=0.5,gpus=1,address=host:6379"
        assert RayConfig.parse(said) == RayConfig(3, 0.5, 1.0, "host:6379")
        assert RayConfig.parse("gpus=2") == RayConfig(1, 1.0, 2.0, None)

    @pytest.mark.parametrize("word", ["", "3", "replicas", "replicas=x", "replicas=1.5", "cores=2"])
    def test_what_they_are_not(self, word):
        with pytest.raises(UserError, match=f"ray='gpus=1,{word}' has '{word}' where replicas=N"):
            RayConfig.parse(f"gpus=1,{word}")

    @pytest.mark.parametrize(
        ("said", "sentence"),
        [
            ("replicas=0", "replicas=0 must be at least 1"),
            ("cpus=-1", "cpus=-1.0 must be at least 0"),
            ("gpus=nan", "gpus=nan must be at least 0"),
        ],
    )
    def test_too_few(self, said, sentence):
        with pytest.raises(UserError, match=f"^{sentence}$"):
            RayConfig.parse(said)
        assert RayConfig.parse("cpus=0,gpus=0").cpus == 0


class TestKeys:
    def names(self, keys, *secrets):
        found = (keys.find(f"Bearer {secret}") for secret in secrets)
        return [key and key.name for key in found]

    def test_of_the_environment_and_of_a_file_are_together(self, tmp_path):
        (tmp_path / "keys").write_text("# ours\n\nbob b  # the second\n")
        config = ServeConfig(keys=tmp_path / "keys")
        keys = read_keys(config, {KEYS_VARIABLE: "ann a\neve e concurrency=2"})
        assert len(keys) == 3
        assert self.names(keys, "a", "b", "e", "x", "") == ["ann", "bob", "eve", None, None]

    @pytest.mark.parametrize(
        ("header", "name"),
        [
            ("Bearer a", "ann"),
            ("bearer  a ", "ann"),
            ("Basic a", None),
            ("a", None),
            ("Bearer A", None),
            ("", None),
            (None, None),
        ],
    )
    def test_come_in_a_header_of_one_form(self, header, name):
        found = read_keys(ServeConfig(), {KEYS_VARIABLE: "ann a"}).find(header)
        assert (found and found.name) == name

    def test_without_any_everyone_is_the_same_one(self):
        keys = read_keys(ServeConfig(), {})
        assert len(keys) == 0
        assert keys.find(None) is keys.find("Bearer x")

    @pytest.mark.parametrize("text", ["", "# none\n"])
    def test_where_some_are_promised_there_are_some(self, tmp_path, text):
        (tmp_path / "keys").write_text(text)
        said = rf"keys={tmp_path / 'keys'} holds no key: add a line NAME KEY"
        with pytest.raises(UserError, match=said):
            read_keys(ServeConfig(keys=tmp_path / "keys"), {})
        with pytest.raises(UserError, match=f"keys={KEYS_VARIABLE} holds no key"):
            read_keys(ServeConfig(), {KEYS_VARIABLE: text})

    def test_a_file_that_is_not_there_or_no_text(self, tmp_path):
        (tmp_path / "bytes").write_bytes(b"\xff")
        for path in (Path("no/such"), tmp_path / "bytes"):
            with pytest.raises(UserError, match=f"keys={path} cannot be read: "):
                read_keys(ServeConfig(keys=path), {})

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("ann", "line 2 of the API keys must be NAME KEY, and if wanted concurrency=4"),
            ("name=ann a", "line 2 of the API keys must be NAME KEY"),
            ("bob z", "line 2 of the API keys has the name 'bob' a second time"),
            ("ann a concurrency=0", "has 'concurrency' where concurrency=N or tokens_per_minute=N"),
            ("ann a concurrency", "has 'concurrency' where"),
            ("ann a concurrency=\u0661", "has 'concurrency' where"),
            ("ann a secret=1", "has 'secret' where"),
        ],
    )
    def test_a_line_that_is_none_is_named_by_its_number(self, line, said):
        with pytest.raises(UserError) as failure:
            read_keys(ServeConfig(), {KEYS_VARIABLE: f"bob b\n{line}"})
        assert said in str(failure.value)
