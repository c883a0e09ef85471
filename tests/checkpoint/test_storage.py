"""Folders and buckets: paths, sizes and what is below; a bucket is stood in for by a small fake."""

import types

import pytest

from gptj.checkpoint import storage
from gptj.errors import UserError


@pytest.mark.parametrize(
    ("place", "is_remote"), [("a/b", False), ("/a:b//c", False), ("gs://a", True), ("s3://a", True)]
)
def test_a_url_is_remote(place, is_remote):
    assert storage.is_remote(place) is is_remote


def test_a_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.at("run") == storage.at(tmp_path / "run") == tmp_path / "run"


@pytest.mark.parametrize("kind", ["s3", "https", "memory"])
def test_what_orbax_cannot_write_to_names_its_kind_and_the_remedy(kind):
    with pytest.raises(UserError) as refused:
        storage.at(f"{kind}://bucket/run")
    assert str(refused.value) == (
        f"checkpoints cannot lie at {kind}://bucket/run: Orbax writes to folders and gs:// but not "
        f"to {kind}://. Mount the bucket (mountpoint-s3, s3fs) and give its folder"
    )


def test_a_bucket_without_its_library_says_how_to_get_it(monkeypatch):
    class Unreachable:
        def __init__(self, text):
            assert text == "gs://bucket/run"

        def exists(self):
            raise ImportError("no gcsfs")

    monkeypatch.setattr(storage.epath, "Path", Unreachable)
    with pytest.raises(UserError, match=r"^gs://bucket/run cannot .* pip install gcsfs google-cl"):
        storage.at("gs://bucket/run")
    monkeypatch.setattr(Unreachable, "exists", lambda self: False)
    assert isinstance(storage.at("gs://bucket/run"), Unreachable)


def test_every_file_below_at_any_depth(tmp_path):
    assert storage.files(tmp_path) == storage.files(tmp_path / "none") == []
    names = ["a", "b/c", "b/d/e/f"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    (tmp_path / "empty").mkdir()
    found = storage.files(tmp_path)
    assert sorted(str(file.relative_to(tmp_path)) for file in found) == names
    assert sorted(storage.size(file) for file in found) == [1, 3, 7]
    assert storage.size(tmp_path / "none") is storage.size(tmp_path / "b") is None


class Bucket:
    """Has the methods of a path in a bucket that are used here, and says what was called."""

    def __init__(self):
        self.removed = []

    def __fspath__(self):
        return "gs://bucket/run"

    def is_file(self):
        return True

    def stat(self):
        return types.SimpleNamespace(length=11)

    def rmtree(self, *, missing_ok):
        self.removed.append(missing_ok)


def test_a_buckets_own_names_for_the_same(monkeypatch):
    bucket, forgotten = Bucket(), []
    assert storage.size(bucket) == 11
    storage.remove(bucket)
    assert bucket.removed == [True]  # what is gone already is no mistake
    system = types.SimpleNamespace(invalidate_cache=lambda: forgotten.append(True))
    monkeypatch.setattr(storage.backend.fsspec_backend, "fs", lambda path: system)
    storage.refresh(bucket)
    assert forgotten == [True]


def test_a_folder_is_removed_as_far_as_it_can_be(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for _ in range(2):
        storage.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    storage.refresh(tmp_path)  # nothing is remembered of it
