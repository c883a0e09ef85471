"""Where compiled programs are kept, and that machines that cannot share them do not."""

import jax
import pytest

from gptj import caches


@pytest.mark.parametrize("given", [None, "", "/elsewhere"])
def test_the_folder_is_the_systems_or_the_homes(monkeypatch, tmp_path, given):
    monkeypatch.setattr(caches.Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    root = caches.Path(given) if given else tmp_path / ".cache"
    assert caches.folder() == root / "gptj"


class TestTheProcessor:
    def of(self, monkeypatch, tmp_path, text, machine="x86_64"):
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        real = caches.Path
        monkeypatch.setattr(caches, "Path", lambda at: file if at == "/proc/cpuinfo" else real(at))
        monkeypatch.setattr(caches.platform, "machine", lambda: machine)
        return caches.processor()

    def test_is_told_by_its_features_and_nothing_that_changes(self, monkeypatch, tmp_path):
        def of(*arguments, **options):
            return self.of(monkeypatch, tmp_path, *arguments, **options)

        plain = of("processor: 0\nflags\t: avx2 fma\ncpu MHz: 2400\n")
        assert len(plain) == 16
        assert of("processor: 1\nflags\t: avx2 fma\ncpu MHz: 3100\n") == plain
        assert of("flags\t: avx2 fma\nflags\t: avx2 fma\n") == plain  # two of the same
        assert of("flags\t: avx2 fma avx512\n") != plain
        assert of("flags\t: avx2 fma\n", machine="aarch64") != plain
        assert of(None) == of("") != plain
        two = of("flags\t: a\nflags\t: b\n")
        assert of("flags\t: b\nflags\t: a\n") == two


@pytest.mark.parametrize("told", [None, "/told"])
def test_programs_are_kept_there_unless_jax_was_told_where(monkeypatch, tmp_path, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", told)
        caches.keep_programs()
        expected = told or str(tmp_path / "gptj" / f"programs-{caches.processor()}")
        assert jax.config.values["jax_compilation_cache_dir"] == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
