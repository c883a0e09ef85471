"""What makes a folder a checkpoint, and how it is told that it is one no more."""

import hashlib
import json
import re

import pytest

from gptj.checkpoint import manifest as manifests
from gptj.checkpoint.manifest import CheckpointError
from gptj.errors import UserError

CONTENT = {"a": b"", "ocdbt.process_0/d/x": b"one", "ocdbt.process_1/d/y": b"two", "z": b"other"}


def put(folder, content):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def saved(tmp_path):
    """A folder of four files, written down."""
    path = put(tmp_path / "checkpoints" / "00000007", CONTENT)
    manifests.write(path, {"note": "x"})
    return path


class TestWritten:
    def test_it_lists_every_file_in_order_with_its_size_and_hash(self, saved):
        found = json.loads((saved / "manifest.json").read_text())
        assert found["format"] == 1
        assert list(found["files"].items()) == [
            (name, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            for name, data in sorted(CONTENT.items())
        ]
        assert manifests.metadata(saved) == {"note": "x"}
        assert manifests.read(saved) == found

    def test_what_a_process_noted_of_its_files_is_not_read_again(self, tmp_path):
        path = put(tmp_path, CONTENT)
        for process in (0, 1):
            manifests.note_written(path, process)
        noted = [f"hashes.process_{n}.json" for n in (0, 1)]
        assert [list(json.loads((path / name).read_text())) for name in noted] == [
            ["ocdbt.process_0/d/x"], ["ocdbt.process_1/d/y"]
        ]  # fmt: skip
        (path / "ocdbt.process_0/d/x").write_bytes(b"changed since")
        (path / "z").write_bytes(b"noted by nobody")
        manifests.write(path, {})
        files = manifests.read(path)["files"]
        assert sorted(files) == sorted(CONTENT)
        assert files["ocdbt.process_0/d/x"]["sha256"] == hashlib.sha256(b"one").hexdigest()
        assert files["z"]["bytes"] == len(b"noted by nobody")
        assert not [name for name in noted if (path / name).exists()]

    def test_what_orbax_writes_after_it_is_left_out(self, tmp_path):
        late = {"_CHECKPOINT_METADATA": b"1", "commit_success.txt": b"2"}
        manifests.write(put(tmp_path, CONTENT | late), {})
        assert sorted(manifests.read(tmp_path)["files"]) == sorted(CONTENT)
        manifests.verify(tmp_path)

    @pytest.mark.parametrize("is_remote", [True, False])
    def test_it_is_on_the_disk_before_it_counts(self, tmp_path, monkeypatch, is_remote):
        """A bucket's files are, once they are closed."""
        put(tmp_path, CONTENT)
        asked = []
        monkeypatch.setattr(manifests.storage, "is_remote", lambda _: is_remote)
        monkeypatch.setattr(manifests.storage, "refresh", lambda _: None)
        monkeypatch.setattr(manifests.storage, "size", lambda file: file.stat().st_size)
        monkeypatch.setattr(
            manifests.os, "fsync", lambda _: asked.append((tmp_path / "manifest.json").read_text())
        )
        manifests.write(tmp_path, {})
        whole = (tmp_path / "manifest.json").read_text()
        assert asked == ([] if is_remote else [whole])

    def test_a_process_that_wrote_nothing_notes_that(self, tmp_path):
        manifests.note_written(tmp_path, 3)
        assert json.loads((tmp_path / "hashes.process_3.json").read_text()) == {}


class TestVerified:
    def test_a_whole_one_has_no_problem(self, saved):
        manifests.verify(saved)
        (found,) = manifests.verified(saved.parent.parent)
        assert found == manifests.Verified(saved, 7, sum(map(len, CONTENT.values())), None)

    def test_it_is_called_as_it_was_asked_for(self, saved, monkeypatch):
        monkeypatch.chdir(saved.parent)
        (found,) = manifests.verified("00000007")
        assert found.path == manifests.Path("00000007")

    @pytest.mark.parametrize("name", [name for name, data in CONTENT.items() if data])
    def test_each_kind_of_damage_is_told_with_its_file_and_its_remedy(self, saved, name):
        data = CONTENT[name]
        remedy = "Delete that folder and run again to go on from the checkpoint before it"
        for changed, said in (
            (data + b"!", f"{name} has {len(data) + 1} of {len(data)} bytes"),
            (data[:-1], f"{name} has {len(data) - 1} of {len(data)} bytes"),
            (data[:-1] + b"!", f"{name} is not what was written"),
            (None, f"{name} is missing"),
        ):
            if changed is None:
                (saved / name).unlink()
            else:
                (saved / name).write_bytes(changed)
            (found,) = manifests.verified(saved)
            assert found.problem == f"checkpoint {saved} is damaged: {said}. {remedy}"
            with pytest.raises(CheckpointError) as refused:
                manifests.verify(saved)
            assert str(refused.value) == found.problem

    def test_of_several_files_the_first_that_changed_is_named(self, saved):
        manifest, names = manifests.read(saved), sorted(CONTENT)
        assert manifests.changed(saved, manifest, names) is None
        for name in reversed(names[1:]):
            (saved / name).write_bytes(CONTENT[name].upper())
            assert manifests.changed(saved, manifest, iter(names)) == name
        assert manifests.changed(saved, manifest, names[:1]) is None
        (saved / "z").unlink()
        assert manifests.changed(saved, manifest, ["z"]) == "z"

    def test_the_size_is_told_even_where_a_file_is_missing(self, saved):
        (saved / "z").unlink()
        (found,) = manifests.verified(saved)
        assert found.bytes == sum(map(len, CONTENT.values()))

    def test_a_name_that_is_no_number_is_no_step(self, saved):
        renamed = saved.rename(saved.with_name("kept"))
        (found,) = manifests.verified(str(renamed))
        assert (found.step, found.problem) == (None, None)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"format": 1, "files": [1], "metadata": {}}', "AttributeError"),
        ('{"format": 1, "files": {"a": {"bytes": 1}}, "metadata": {}}', "KeyError"),
        ('{"format": 1, "files": {"a": {"sha256": ""}}, "metadata": {}}', "KeyError"),
        ('{"format": 1, "files": {}}', "KeyError"),
        ('{"format": 1, "files": {}, "metadata": 3}', "AttributeError"),
        ('{"files": {}, "metadata": {}}', "KeyError"),
    ],
)
def test_a_damaged_manifest_says_so_and_what_to_delete(saved, content, kind):
    (saved / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError) as refused:
        manifests.metadata(saved)
    said = str(refused.value)
    assert said.startswith(f"{saved}/manifest.json is damaged ({kind}: ")
    assert said.endswith(f"Delete {saved} and run again to go on from the checkpoint before it")


@pytest.mark.parametrize("change", [{}, {"files": {}, "metadata": {}}, {"arrays": []}], ids=str)
def test_a_manifest_of_another_format_is_left_to_whoever_wrote_it(saved, change):
    path = saved / "manifest.json"
    path.write_text(json.dumps(change | {"format": 2}))
    said = f"{path} has format 2, this reads 1: use the version of gptj that wrote it"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        manifests.metadata(saved)


class TestWhichAreComplete:
    def test_those_with_a_manifest_and_a_number_the_oldest_first(self, tmp_path):
        for name in ("00000010", "00000009", "100000000", "7.tmp", "notes"):
            put(tmp_path / name, {"manifest.json": b"{}"})
        (tmp_path / "00000011").mkdir()
        found = manifests.complete(tmp_path)
        assert [manifests.step_of(path) for path in found] == [9, 10, 100_000_000]
        assert manifests.complete(tmp_path / "none") == []

    @pytest.mark.parametrize("step", [0, 7, 12_345_678, 123_456_789])
    def test_a_step_has_a_path_that_says_it(self, tmp_path, step):
        path = manifests.path_of(tmp_path, step)
        assert manifests.step_of(path) == step
        assert len(path.name) == max(8, len(str(step)))

    @pytest.mark.parametrize("is_remote", [True, False])
    def test_in_a_bucket_orbax_has_to_say_so_too(self, saved, monkeypatch, is_remote):
        monkeypatch.setattr(manifests.storage, "is_remote", lambda _: is_remote)
        assert manifests.is_complete(saved) is not is_remote
        (saved / "commit_success.txt").touch()
        assert manifests.is_complete(saved)


class TestWhereTheyAre:
    def test_a_place_without_any_says_what_to_give(self, tmp_path):
        with pytest.raises(
            UserError, match=r"no checkpoint at .*none: give a run's folder, or one"
        ):
            list(manifests.verified(tmp_path / "none"))
        (tmp_path / "notes").mkdir()
        (tmp_path / "7.tmp").mkdir()
        with pytest.raises(UserError, match=r"holds no checkpoint: give a run that has saved one,"):
            list(manifests.verified(tmp_path))

    def test_one_without_a_manifest_is_shown_if_its_name_is_a_number(self, saved):
        (saved / "manifest.json").unlink()
        for place in (saved, saved.parent, saved.parent.parent):
            (found,) = manifests.verified(place)
            assert (found.step, found.bytes) == (7, 0)
            assert found.problem == (
                f"{saved} is not a complete checkpoint: it has no manifest.json. Choose another"
            )

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '"text"', '{"folder": 3}'])
    def test_a_damaged_word_about_it_says_how_to_mend_it(self, tmp_path, content):
        (tmp_path / "checkpoints.json").write_text(content)
        with pytest.raises(UserError, match=r"write it again as \{\"folder\": \"gs://") as refused:
            manifests.of_run(tmp_path)
        assert str(tmp_path / "checkpoints.json") in str(refused.value)

    def test_a_bucket_that_cannot_be_reached_is_its_own_mistake(self, tmp_path):
        (tmp_path / "checkpoints.json").write_text('{"folder": "s3://bucket/run"}')
        with pytest.raises(UserError, match="checkpoints cannot lie at s3://bucket/run: Orbax"):
            manifests.of_run(tmp_path)
