"""The run folder: what survives a kill between any two steps, what is refused, what replaces what."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from pack.nodes.video import run_folder, seen
from pack.nodes.video.encode import VideoFacts
from pack.nodes.video.lock import LOCK_FILE
from pack.nodes.video.manifest import MANIFEST, recover
from pack.nodes.video.places import run_path, run_root
from pack.nodes.video.run_folder import RunFolder
from pack.nodes.video.seen import SeenFiles

FACTS = VideoFacts(24, Fraction(8), 128, 80)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test may catch it and carry on."""


def writer(text: str, facts: VideoFacts | None = None):
    def write(path: Path) -> VideoFacts | None:
        path.write_text(text)
        return facts

    return write


def save(run: RunFolder, index: int, fingerprint: str, content: str | None = None):
    content = content or fingerprint
    take = run.begin(index, fingerprint, f"digest of {content}", "vae")
    for kind in ("latents", "memory"):
        if kind not in take.files:
            take = run.put(take, kind, writer(f"{kind} of {content}"))
    if take.status != "done":
        take = run.put(take, "video", writer(f"video of {content}", FACTS))
        run.finish(take)
    return take


def next_session(run: RunFolder) -> RunFolder:
    """The folder as a ComfyUI that was just started sees it: it trusts no file that it has not read."""
    return RunFolder(run.path, SeenFiles())


def test_finished_clip_is_found_with_its_facts(tmp_path):
    run = RunFolder(tmp_path / "film")
    save(run, 0, "a")
    record = next_session(run).finished(0, "a")
    assert (record.index, record.frames, record.fps, record.width, record.height) == (0, 24, 8.0, 128, 80)
    assert (record.latents_file, record.video_file) == ("clip_000.latents.safetensors", "clip_000.mkv")
    assert (Path(record.folder) / record.video_file).read_text() == "video of a"
    assert run.finished(0, "b") is None and run.finished(1, "a") is None
    assert sorted(os.listdir(run.path)) == [
        "clip_000.json", "clip_000.latents.safetensors", "clip_000.memory.safetensors", "clip_000.mkv", MANIFEST,
        LOCK_FILE]


def test_manifest_tells_a_person_what_there_is(tmp_path):
    run = RunFolder(tmp_path / "film")
    take = run.begin(3, "print", "digest", "vae", "der Held läuft")
    run.put(take, "latents", writer("x"))
    text = (run.path / MANIFEST).read_text(encoding="utf-8")
    clip = json.loads(text)["clips"][0]
    assert "der Held läuft" in text
    assert (clip["index"], clip["status"], clip["fingerprint"]) == (3, "latents", "print")
    assert clip["files"]["latents"]["bytes"] == 1 and len(clip["files"]["latents"]["sha256"]) == 64


def test_status_follows_the_order_of_the_save(tmp_path):
    run = RunFolder(tmp_path)
    take = run.begin(0, "a", "d")
    seen = [run.takes()[0].status]
    for kind, facts in (("latents", None), ("memory", None), ("video", FACTS)):
        take = run.put(take, kind, writer("x", facts))
        seen.append(run.takes()[0].status)
    run.finish(take)
    assert [*seen, run.takes()[0].status] == ["started", "latents", "memory", "memory", "done"]
    assert run.is_sampled(0, "a")


def count_replaces(monkeypatch, action) -> int:
    calls, real = [], os.replace
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "replace", lambda a, b: (calls.append(b), real(a, b)))
        action()
    return len(calls)


@pytest.mark.parametrize("after", [False, True])
def test_kill_between_any_two_steps_costs_only_the_clip_in_flight(tmp_path, monkeypatch, after):
    steps = count_replaces(monkeypatch, lambda: save(RunFolder(tmp_path / "count"), 1, "b"))
    assert steps == 13  # three files; for begin, each file and finish a card and the manifest
    real = os.replace
    for deadly in range(steps):
        run = RunFolder(tmp_path / f"kill_{deadly}")
        save(run, 0, "a")
        calls = []

        def replace(source, target, deadly=deadly, calls=calls):
            calls.append(target)
            if len(calls) - 1 == deadly and not after:
                raise Killed
            real(source, target)
            if len(calls) - 1 == deadly:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(run_folder.os, "replace", replace)
            save(run, 1, "b")
        again = RunFolder(run.path)
        assert next_session(again).finished(0, "a")
        for take in again.takes():
            assert all((run.path / stored.name).stat().st_size == stored.bytes for stored in take.files.values())
        save(again, 1, "b")
        assert next_session(again).finished(1, "b")
        assert not list(run.path.glob("*.tmp"))


def test_reroll_keeps_the_old_take_until_the_new_one_is_done(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "old")
    take = run.begin(0, "new", "digest of new", "vae")
    take = run.put(take, "latents", writer("latents of new"))
    assert next_session(run).finished(0, "old") and run.finished(0, "new") is None
    assert run.newest(0).fingerprint == "new"
    take = run.put(take, "video", writer("video of new", FACTS))
    assert next_session(run).finished(0, "old")
    run.finish(take)
    assert run.finished(0, "old") is None and run.finished(0, "new").video_file == "clip_000.take2.mkv"
    assert sorted(os.listdir(tmp_path)) == [
        "clip_000.take2.json", "clip_000.take2.latents.safetensors", "clip_000.take2.mkv", MANIFEST, LOCK_FILE]


def test_abandoned_reroll_is_given_up_when_another_starts(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "old")
    run.put(run.begin(0, "half", "half", "vae"), "latents", writer("half"))
    save(run, 0, "third")
    assert [take.fingerprint for take in run.takes()] == ["third"]
    assert not list(tmp_path.glob("clip_000.take2*"))


def test_kill_in_the_middle_of_a_write_harms_no_file(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    take = run.begin(1, "b", "d", "v")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.write_text

    def half(path: Path, text: str, **options: object) -> None:
        real(path, text[: len(text) // 2], **options)
        raise Killed

    for act in (lambda: run.put(take, "latents", writer("latents")), lambda: run.finish(replace(take, files={}))):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "write_text", half)
            patch.setattr(Path, "unlink", lambda *_args, **_options: None)  # kill -9 cleans nothing up
            act()
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".tmp"}
        assert left == before
    save(RunFolder(tmp_path), 1, "b")
    assert not list(tmp_path.glob("*.tmp"))


def test_cancelled_write_leaves_no_half_file_and_resumes(tmp_path):
    run = RunFolder(tmp_path)
    take = run.put(run.begin(0, "a", "d", "v"), "latents", writer("latents"))

    def cancelled(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.put(take, "video", cancelled)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.mkv"))
    again = run.begin(0, "a", "d", "v")
    assert again.take == 1 and set(again.files) == {"latents"}


def test_same_latents_under_another_fingerprint_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "a", content="same")
    take = run.begin(0, "b", "digest of same", "vae")
    assert take.status == "done" and run.finished(0, "b") and run.finished(0, "a") is None


@pytest.mark.parametrize("content", ["Video of a", "cut", None])
@pytest.mark.parametrize("kind", ["latents", "memory", "video"])
def test_damaged_file_is_noticed_and_made_again_alone(tmp_path, kind, content):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    stored = run.takes()[0].files
    path = tmp_path / stored[kind].name
    path.unlink() if content is None else path.write_text(content.ljust(stored[kind].bytes) if content != "cut" else "")
    said = (f"{path.name} {'was gone' if content is None else 'had changed on the disk'}, so the "
            + ("frames were decoded again from the latents." if kind == "video" else "clip was rendered again."))
    for session in (run, next_session(run)):
        assert session.finished(0, "a") is None
        assert session.is_sampled(0, "a") == (kind == "video")
        assert session.harm(0, "a") == said
        with pytest.raises(RuntimeError, match="must be as it was saved, but got .*Render the clip again"):
            session.file(session.takes()[0], kind)
    take = run.begin(0, "a", "digest of a", "vae")
    assert take.take == 1 and set(take.files) == {"latents", "memory", "video"} - {kind}
    save(run, 0, "a")
    assert next_session(run).finished(0, "a").video_file == "clip_000.mkv" and not run.harm(0, "a")


def test_a_flipped_bit_is_found_once_a_session(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    path, hashed = tmp_path / "clip_000.mkv", []
    real = seen.file_sha256
    monkeypatch.setattr(seen, "file_sha256", lambda path, *cancel: hashed.append(path.name) or real(path, *cancel))
    assert run.finished(0, "a") and not hashed  # hashed while it was written
    session = next_session(run)
    assert session.finished(0, "a") and session.finished(0, "a") and len(hashed) == 3
    times = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that forgets tells nobody
    assert session.finished(0, "a") and next_session(run).finished(0, "a") is None
    os.utime(path)
    assert session.finished(0, "a") is None


def test_changes_behind_the_sessions_back_are_counted_once(tmp_path):
    run = RunFolder(tmp_path, SeenFiles())
    assert run.seen.changes(run.path) == 0
    save(run, 0, "a")
    save(run, 0, "b")  # sweeps the files of a, which is its own doing
    assert run.seen.changes(run.path) == 0
    (tmp_path / "clip_000.take2.mkv").unlink()
    assert [run.seen.changes(run.path), run.seen.changes(run.path)] == [1, 1]
    save(run, 0, "b")
    run.drop_videos([run.finished(0, "b")])
    assert run.seen.changes(run.path) == 1


def test_frames_that_are_missed_make_the_next_prompt_look(tmp_path):
    run = RunFolder(tmp_path, SeenFiles())
    save(run, 0, "a")
    record = run.finished(0, "a")
    assert run.current(record) == record
    run.drop_videos([record])
    with pytest.raises(RuntimeError, match="needs the frames of clip 0, but got none .* Queue again"):
        run.current(record)
    assert run.seen.changes(run.path) == 1
    save(run, 0, "a")
    assert run.current(record) == record


def test_status_of_a_damaged_clip_protects_the_rest_of_it(tmp_path):
    """A re-roll that is given up must not take the latents and the memory of a clip whose frames were lost."""
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    (tmp_path / "clip_000.mkv").unlink()
    run.begin(0, "a", "digest of a", "vae")
    run.put(run.begin(0, "b", "b", "vae"), "latents", writer("half"))
    run.begin(0, "c", "c", "vae")
    assert run.is_sampled(0, "a")


def test_a_clip_that_is_kept_gets_another_fingerprint_only(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 1, "old")
    before = run.finished(1, "old")
    run.rename(1, "old", "new")
    assert run.finished(1, "new") == before and run.finished(1, "old") is None
    assert run.fingerprints(1) == ["new"] and run.fingerprints(0) == []


def test_finished_takes_come_first(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "done")
    run.put(run.begin(0, "newer", "b", "vae"), "latents", writer("half"))
    assert run.fingerprints(0) == ["done", "newer"]


@pytest.mark.parametrize("text", [
    "not json", "[]", '{"format": "other", "version": 1, "clips": []}', '{"clips": []}',
    '{"format": "videomemory-run", "version": 99, "clips": []}',
    '{"format": "videomemory-run", "version": 1, "clips": [{"index": 0}]}',
    '{"format": "videomemory-run", "version": 1, "clips": [{"index": 0, "take": 1, "status": "done", "fingerprint": "",'
    ' "digest": "", "created": "", "note": "", "files": {"video": {"name": "../x", "bytes": 1, "sha256": ""}}}]}',
])
def test_foreign_manifest_is_refused_and_untouched(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    run = RunFolder(tmp_path)
    for act in (run.takes, lambda: save(run, 0, "a"), lambda: run.finished(0, "a")):
        with pytest.raises(ValueError, match=r"needs a manifest of this pack, but got .* Nothing in the folder was"):
            act()
    assert (tmp_path / MANIFEST).read_text() == text
    assert {path.name for path in tmp_path.iterdir()} <= {MANIFEST, LOCK_FILE}


@pytest.mark.parametrize("manifest", [None, "", "not json", "\0" * 400, '{"format": "videomem'])
def test_lost_manifest_is_made_anew_from_the_cards(tmp_path, manifest):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    save(run, 1, "b")
    run.put(run.begin(1, "c", "c", "vae"), "latents", writer("half"))
    takes = run.takes()
    (tmp_path / MANIFEST).unlink() if manifest is None else (tmp_path / MANIFEST).write_text(manifest)
    assert "was lost; it was made anew from the cards of 2 clips" in recover(tmp_path)
    assert run.takes() == takes and recover(tmp_path) == ""
    assert next_session(run).finished(0, "a") and next_session(run).finished(1, "b")


def test_an_illegible_card_costs_its_take_alone(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    save(run, 1, "b")
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "clip_000.json").write_text("{")
    recover(tmp_path)
    assert [take.fingerprint for take in run.takes()] == ["b"]


def test_without_cards_there_is_nothing_to_recover(tmp_path):
    assert recover(tmp_path / "new") == "" and not (tmp_path / "new").exists()
    (tmp_path / MANIFEST).write_text("not json")
    assert recover(tmp_path) == "" and (tmp_path / MANIFEST).read_text() == "not json"


def test_manifest_of_version_1_is_read(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 0, "a")
    document = json.loads((tmp_path / MANIFEST).read_text())
    document["version"] = 1
    del document["clips"][0]["seconds"]
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    assert run.finished(0, "a") and run.takes()[0].seconds == 0


def test_seconds_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    take = run.put(run.begin(0, "a", "d"), "latents", writer("x"))
    run.finish(run.put(take, "video", writer("v", FACTS)), 12.5)
    assert run.takes()[0].seconds == 12.5
    run.finish(run.takes()[0])
    assert run.takes()[0].seconds == 12.5


def test_run_folders_lie_where_the_user_says(tmp_path):
    assert run_root("/out", []) == Path("/out/videomemory")
    assert run_root("/out", [str(tmp_path), "/other"]) == tmp_path
    with pytest.raises(RuntimeError, match="extra_model_paths.yaml says .* but got no folder .*Connect its drive"):
        run_root("/out", [str(tmp_path / "unplugged")])


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "/abs", "C:\\x", "", "  ", "..", ".", "CON", "con.txt", "LPT1",
                                  "nul ", "x" * 81])
def test_dangerous_run_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="A run needs a name for its folder, but got"):
        run_path(tmp_path, name)


@pytest.mark.parametrize(("name", "folder"), [
    ("my_short", "my_short"), (" Held 1 ", "Held 1"), ('a:b*c?"<>|', "a_b_c_____"), ("dots...", "dots"),
    ("console", "console"), ("Größe", "Größe"), ("v1.2", "v1.2"), ("tab\tname", "tab_name")])
def test_other_names_become_plain_folders(tmp_path, name, folder):
    assert run_path(tmp_path, name) == tmp_path / folder


def test_missing_kind_of_file_is_named(tmp_path):
    run = RunFolder(tmp_path)
    take = run.put(run.begin(2, "a", "d"), "latents", writer("x"))
    with pytest.raises(ValueError, match="Clip 2 .* was asked for its memory, but got a clip that has only latents"):
        run.file(take, "memory")
