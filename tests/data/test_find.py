"""Finding inputs: what is read, in which order and by which name, wherever it lies."""

import os
from pathlib import Path

import fsspec
import pytest

from gptj.data.find import _names, find_sources, kind_of
from gptj.errors import UserError
from gptj.files import File


def save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(*inputs: Path) -> list[str]:
    return [source.name for source in find_sources(inputs).sources]


@pytest.fixture
def remote():
    """A store of objects, in memory, with a URL."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


class TestFinding:
    def test_a_folder_is_searched_in_sorted_order(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/b/c.py", "a.jsonl.zst"):
            save(tmp_path / name, b"x")
        assert names(tmp_path) == ["a.jsonl.zst", "a/b/c.py", "a/z.md", "b.txt"]

    def test_hidden_files_are_ignored_and_others_counted(self, tmp_path):
        for name in ("a.txt", ".hidden.txt", ".git/b.txt", "photo.jpg", "data.bin"):
            save(tmp_path / name, b"x")
        save(tmp_path / "__init__.py", b"")
        found = find_sources([tmp_path])
        assert [source.name for source in found.sources] == ["a.txt"]
        assert found.skipped == 3

    def test_a_hidden_parent_hides_nothing(self, tmp_path):
        save(tmp_path / ".cache" / "a.txt", b"x")
        assert names(tmp_path / ".cache") == ["a.txt"]

    def test_named_files_keep_the_order_given(self, tmp_path):
        b, a = save(tmp_path / "b.txt", b"x"), save(tmp_path / "a.txt", b"x")
        assert names(b, a) == ["b.txt", "a.txt"]

    def test_names_are_unique_and_the_same_wherever_the_data_lies(self, tmp_path):
        for place in ("here", "there/deep"):
            root = tmp_path / place
            inputs = save(root / "en/a.txt", b"x").parent, save(root / "fr/a.txt", b"x")
            assert names(*inputs) == ["en/a.txt", "fr/a.txt"]

    def test_two_of_one_name_are_prepared_apart(self):
        places = ["https://host/a/b.txt", "https://host/a//b.txt", "https://host/c"]
        files = [File(place, 1) for place in places[:2]]
        with pytest.raises(UserError, match=f"{places[1]} and {places[0]} have one name: prepare"):
            list(_names(files, places))
        assert list(_names(files[:1], places)) == ["a/b.txt"]

    @pytest.mark.parametrize("bases", [["/x", "s3://x"], ["gs://x", "s3://x"]])
    def test_where_inputs_share_no_place_each_is_its_own_name(self, bases):
        places = [f"{base}/a.txt" for base in bases]
        assert list(_names([File(place, 1) for place in places], bases)) == places

    def test_relative_paths_give_the_same_names(self, tmp_path, monkeypatch):
        save(tmp_path / "books/a.txt", b"x")
        monkeypatch.chdir(tmp_path)
        assert names(Path("books")) == names(tmp_path / "books") == ["a.txt"]
        assert names(Path("books/a.txt")) == ["a.txt"]

    def test_a_pattern_is_met_in_sorted_order(self, tmp_path):
        for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a/b/d.md"):
            save(tmp_path / name, b"x")
        assert names(tmp_path / "**/*.txt") == ["a/b/c.txt", "a/z.txt", "b.txt"]
        assert names(tmp_path / "a/[z]*") == ["z.txt"]
        assert names(tmp_path / "**") == ["a/b/c.txt", "a/b/d.md", "a/z.txt", "b.txt"]
        assert names(tmp_path / "a*") == ["b/c.txt", "b/d.md", "z.txt"]

    def test_a_file_whose_name_looks_like_a_pattern_is_itself(self, tmp_path):
        assert names(save(tmp_path / "what[1].txt", b"x")) == ["what[1].txt"]

    def test_behind_a_url_the_names_are_the_same(self, tmp_path, remote):
        for name in ("b.txt", "a/z.md", ".hidden.txt", "a/photo.jpg"):
            save(tmp_path / name, b"x")
            remote.pipe(f"/data/{name}", b"x")
        here, there = find_sources([tmp_path]), find_sources(["memory://data"])
        assert [each.name for each in here.sources] == [each.name for each in there.sources]
        assert here.skipped == there.skipped == 1
        assert names("memory://data/*.txt") == names("memory://data/b.txt") == ["b.txt"]
        with pytest.raises(UserError, match=r"no input memory://data/none"):
            find_sources(["memory://data/none"])

    def test_a_web_server_lists_names_alone_and_may_know_no_ranges(self, tmp_path, website):
        for name in ("b.txt", "a/z.md", ".hidden.txt", "a/photo.jpg"):
            save(tmp_path / name, b"some bytes")
        found = find_sources([f"{website(tmp_path)}/"])
        assert [each.name for each in found.sources] == ["a/z.md", "b.txt"]
        file = found.sources[1].file
        assert (file.size, file.read().tobytes()) == (10, b"some bytes")
        with pytest.raises(UserError, match=r"b\.txt is sent whole or not at all: copy it to this"):
            file.read(2, 4)

    def test_links_are_not_followed_and_counted(self, tmp_path):
        (tmp_path / "links").mkdir()
        (tmp_path / "links/link.txt").symlink_to(save(tmp_path / "in/a.txt", b"x"))
        (tmp_path / "links/folder").symlink_to(tmp_path / "in")
        (tmp_path / "links/nowhere").symlink_to(tmp_path / "absent")
        found = find_sources([tmp_path])
        assert [source.name for source in found.sources] == ["in/a.txt"]
        assert found.skipped == 3
        with pytest.raises(UserError, match=r"no text file in the folder .*links but links, which"):
            find_sources([tmp_path / "links"])

    def test_what_is_excluded_is_so_of_patterns_too(self, tmp_path):
        for name in ("books/a.txt", "books/drafts/b.txt", "books/c.bak.txt"):
            save(tmp_path / name, b"x")

        def found(given: str, *exclude: str) -> list[str]:
            return [each.name for each in find_sources([tmp_path / given], exclude).sources]

        for given in ("books", "books/**", "books/**/*.txt", "b*", "books/*"):
            assert found(given, "drafts", "*.bak*") == ["a.txt"]
        assert found("books/drafts/*.txt", "drafts") == ["b.txt"]  # which is spelt out
        assert found("books/drafts/b.txt", "*.txt") == ["b.txt"]
        with pytest.raises(UserError, match=r"no file that --exclude leaves matches .*\*\.txt"):
            found("books/*.txt", "*.txt")

    def test_what_datasets_keeps_by_is_not_data(self, tmp_path):
        for name in ("data-00000-of-00001.arrow", "cache-1f2e.arrow", "state.json"):
            save(tmp_path / name, b"x")
        assert names(tmp_path) == ["data-00000-of-00001.arrow"]

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("a.txt", ".txt"), ("A.JSONL.GZ", ".jsonl"), ("b.tgz", ".tar"), ("c.tar.xz", ".tar"),
         ("d.zst", ""), ("e", ""), ("f.tar.gz/g.md.zst", ".md")],
    )  # fmt: skip
    def test_the_kind_is_what_is_inside(self, name, kind):
        assert kind_of(name) == kind


class TestMistakes:
    def test_no_input(self):
        with pytest.raises(UserError, match="no input given"):
            find_sources([])

    def test_a_missing_path(self, tmp_path):
        with pytest.raises(UserError, match=r"no input .*absent\.txt: give"):
            find_sources([tmp_path / "absent.txt"])

    def test_a_path_in_a_folder_that_may_not_be_looked_into(self, tmp_path, monkeypatch):
        def closed(path, **_):
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "stat", closed)
        with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\): allow"):
            find_sources([f"{tmp_path}/a.txt"])

    def test_what_is_no_file_and_a_name_that_is_no_text(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match=r"pipe is no file, .*: write it to one"):
            find_sources([tmp_path / "pipe"])
        save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), b"x")
        with pytest.raises(UserError, match=r"caf\\udce9\.txt' has a name that is not UTF-8: ren"):
            find_sources([tmp_path])

    @pytest.mark.parametrize("name", ["a.txt.bz2", "texts.ZIP"])
    def test_what_is_packed_otherwise(self, name, tmp_path):
        path = save(tmp_path / name, b"x")
        with pytest.raises(
            UserError, match=r"is packed as \.(bz2|zip), which is not read: pack it"
        ):
            find_sources([path])
        save(tmp_path / "b.txt", b"x")
        assert find_sources([tmp_path]).skipped == 1

    def test_tokens_without_their_index(self, tmp_path):
        data, index = save(tmp_path / "m.bin", b"ab"), save(tmp_path / "m.idx", b"index")
        save(tmp_path / "other.bin", b"ab")
        with pytest.raises(UserError, match=r"m\.bin holds tokens, .*: name .*m\.idx instead"):
            find_sources([data])
        found = find_sources([tmp_path])
        assert [each.file.path for each in found.sources] == [str(index)]
        assert found.skipped == 1
        assert names(tmp_path / "other.bin") == ["other.bin"]  # named outright, and no index of it

    def test_a_folder_without_text(self, tmp_path):
        save(tmp_path / "photos/a.jpg", b"x")
        with pytest.raises(UserError, match=r"no text file in the folder .*photos: give"):
            find_sources([tmp_path / "photos"])

    def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
        for name in ("a.txt", "closed/b.txt", ".hidden/c.txt", "x/y/closed/d.txt"):
            save(tmp_path / name, b"x")
        scan = os.scandir

        def scanned(path):
            if path.endswith(("closed", ".hidden")):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", scanned)
        with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\): allow"):
            find_sources([tmp_path])
        [found] = find_sources([tmp_path], ["closed"]).sources
        assert found.name == "a.txt"
        both = os.R_OK | os.X_OK  # to list names, and to reach what they name
        monkeypatch.setattr(
            os, "access", lambda path, mode: "closed" not in path or mode & both != both
        )
        monkeypatch.chdir(tmp_path)
        for pattern in (
            "**/*.txt", "*/*.txt", "**", "*", "c*/b.txt", "closed/*.txt", "x/**/*.txt", "x/**"
        ):  # fmt: skip
            for given in (tmp_path / pattern, pattern):
                with pytest.raises(UserError, match=r"closed/? cannot be read \(Permission denied"):
                    find_sources([given])
        [found] = find_sources([tmp_path / "**/*.txt"], ["closed"]).sources
        assert found.name == "a.txt"

    def test_a_file_given_twice(self, tmp_path):
        path = save(tmp_path / "a.txt", b"x")
        with pytest.raises(UserError, match=r"a\.txt is among the inputs twice: name"):
            find_sources([path, tmp_path])
        (tmp_path / "link.txt").symlink_to(path)
        with pytest.raises(UserError, match=r"link\.txt is .* twice, once as .*a\.txt: name it"):
            find_sources([tmp_path / "*.txt"])

    def test_a_pattern_that_nothing_matches(self, tmp_path):
        with pytest.raises(UserError, match=r"no file matches .*\*\.txt"):
            find_sources([tmp_path / "*.txt"])

    def test_a_kind_of_storage_that_is_not_installed(self):
        with pytest.raises(UserError, match="cannot be opened"):
            find_sources(["nowhere://bucket/a.txt"])
