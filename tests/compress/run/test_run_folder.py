"""Stages that are done are skipped; what changed, and what comes after it, is not."""

import json
import threading
import time
from pathlib import Path

import pytest

from edgelm.checkpoint.student import StageRecord
from edgelm.compress.run import hash_cache, run_folder
from edgelm.compress.run.run_folder import RunFolder, file_hashes, task_hashes
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256


class Run:
    """A run of three stages, each of which depends on its setting and on the stage before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worked: list[str] = []
        self.lines: list[str] = []

    def __call__(self, changed: str = "", die: str = "") -> RunFolder:
        run, key = RunFolder(self.folder, self.lines.append), ""
        for name in ("first", "second", "third"):

            def work(folder: Path, name: str = name) -> StageRecord:
                self.worked.append(name)
                count = folder / "count"
                count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
                if name == die:
                    raise KeyboardInterrupt
                return StageRecord(name, tokens=int(count.read_text()))

            _, key = run.stage(name, {"before": key, "setting": name == changed}, work)
        return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_unchanged_stages_are_skipped(run: Run) -> None:
    first = run()
    assert run.worked == ["first", "second", "third"]
    again = run()
    assert run.worked == ["first", "second", "third"], "nothing ran again"
    assert again.records == first.records
    assert [record.name for record in again.records] == ["first", "second", "third"]
    assert run.lines[-1] == "third: unchanged, skipped"


@pytest.mark.parametrize(
    ("changed", "runs"),
    [
        ("first", ["first", "second", "third"]),
        ("second", ["second", "third"]),
        ("third", ["third"]),
    ],
)
def test_a_change_runs_it_and_all_that_follows(run: Run, changed: str, runs: list[str]) -> None:
    run()
    run.worked.clear()
    done = run(changed)
    assert run.worked == runs
    assert [one.tokens for one in done.records] == [1, 1, 1], "in fresh folders"
    assert f"{changed}: inputs changed, rerunning" in run.lines
    run.worked.clear()
    run()
    assert run.worked == runs, "back again is a change too"


def test_a_killed_stage_goes_on_in_its_folder(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(die="second")
    done = run()
    assert run.worked == ["first", "second", "second", "third"]
    assert "second: resuming" in run.lines
    assert [one.tokens for one in done.records] == [1, 2, 1], "found what it had left"


def test_a_killed_stage_with_other_inputs_starts_anew(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(die="second")
    done = run("second")
    assert [one.tokens for one in done.records] == [1, 1, 1]


@pytest.mark.parametrize("torn", ["done.json", "inputs.json"])
def test_a_torn_file_is_as_good_as_none(run: Run, torn: str) -> None:
    run()
    run.worked.clear()
    path = run.folder / "third" / torn
    path.write_bytes(path.read_bytes()[:20])
    run()
    # Without its inputs a stage's results cannot be told from another's; done.json has the key.
    assert run.worked == (["third"] if torn == "done.json" else [])


def test_large_results_are_hashed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.parent.name)
        return file_sha256(path)

    monkeypatch.setattr(run_folder, "_LARGE", 0)
    monkeypatch.setattr(hash_cache, "file_sha256", counted)
    run()
    assert set(hashed) == {"first", "second", "third"}
    hashed.clear()
    run()
    assert hashed == [], "no file has changed"
    result = next(
        path
        for path in sorted((run.folder / "second").iterdir())
        if path.name not in ("done.json", "inputs.json")
    )
    result.write_bytes(b"damaged")
    run.worked.clear()
    run()
    assert run.worked[:1] == ["second"]


def test_seconds_add_up_in_the_record(run: Run) -> None:
    records = run().records
    content = json.loads((run.folder / "first" / "done.json").read_text())
    assert content["record"]["seconds"] == records[0].seconds >= 0
    assert content["key"] == json.loads((run.folder / "first" / "inputs.json").read_text())["key"]


@pytest.mark.parametrize("entry", ["thesis.txt", "chapter/one.txt"])
def test_a_foreign_folder_is_refused(tmp_path: Path, entry: str) -> None:
    path = tmp_path / entry
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(
        BadInput, match="exists and is not a run folder of edge-compress; choose another"
    ):
        RunFolder(tmp_path, print)
    with pytest.raises(BadInput, match="is not a run folder of edge-compress"):
        RunFolder(path, print)
    assert path.read_text() == "mine"


def test_killed_before_anything_was_written(run: Run) -> None:
    (run.folder / "first").mkdir(parents=True)
    run()
    assert run.worked == ["first", "second", "third"]


def test_killed_while_the_inputs_were_written(run: Run) -> None:
    (run.folder / "first").mkdir(parents=True)
    (run.folder / "first" / ".inputs.json.partial-edgelm-0123456789abcdef").write_text("{")
    run()
    assert run.worked == ["first", "second", "third"]
    assert {path.name for path in run.folder.iterdir() if path.is_dir()} == {*run.worked}
    assert not list(run.folder.rglob(".*partial*"))


def test_killed_while_the_result_was_written(run: Run) -> None:
    run()
    (run.folder / "second" / "done.json").rename(
        run.folder / "second" / ".done.json.partial-edgelm-0123456789abcdef"
    )
    run()
    assert run.worked == ["first", "second", "third", "second"]
    assert not list(run.folder.rglob(".*partial*"))
    run()
    assert run.worked == ["first", "second", "third", "second"]


@pytest.mark.parametrize("collective", [False, True], ids=["alone", "collective"])
def test_a_second_process_waits_and_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collective: bool
) -> None:
    """The main process is a thread that starts later; no group connects them."""
    ranks = threading.local()
    monkeypatch.setattr(
        "edgelm.compress.run.run_folder.is_main_process", lambda: getattr(ranks, "rank", 1) == 0
    )
    monkeypatch.setattr(run_folder, "gather_from_processes", lambda _: ["this start"])
    monkeypatch.setattr(run_folder, "world_size", lambda: 2)
    finished, worked = threading.Event(), list[int]()

    def stage(rank: int) -> tuple[Path, str]:
        ranks.rank = rank

        def work(folder: Path) -> StageRecord:
            worked.append(rank)
            if rank == 0:
                time.sleep(0.3)
                finished.set()
            return StageRecord("one", tokens=rank)

        run = RunFolder(tmp_path / "run", print)
        place = run.stage("one", {"setting": 1}, work, collective=collective)
        assert finished.is_set(), "nobody goes on before the first has finished"
        assert [record.tokens for record in run.records] == [0], "the first one's record"
        return place

    first = threading.Timer(0.3, stage, [0])
    first.start()
    followed = stage(1)
    first.join()
    assert sorted(worked) == ([0, 1] if collective else [0])
    assert stage(0) == stage(1) == followed
    assert sorted(worked) == ([0, 1] if collective else [0]), "and nobody does it again"


def test_hashes_of_files_folders_and_names(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "one.txt").write_text("a")
    names = (str(tmp_path / "texts"), str(tmp_path / "one.txt"), "wikitext:train")
    before = file_hashes(names)
    assert before["wikitext:train"] == "wikitext:train"
    same = before[str(tmp_path / "texts" / "a.txt")]
    assert same == before[str(tmp_path / "one.txt")]
    assert len(same) == 64
    (tmp_path / "texts" / "a.txt").write_text("b")
    (tmp_path / "texts" / "b.txt").write_text("b")
    after = file_hashes(names)
    assert len(after) == len(before) + 1
    assert after[str(tmp_path / "texts" / "a.txt")] != same


def test_no_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the current directory changes no key."""
    monkeypatch.chdir(tmp_path)
    tasks = ("", "lm-eval:arc_easy", "lm-eval:tasks/mine", "perplexity:valid.jsonl")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("a")
    (tmp_path / "valid.jsonl").write_text("a")
    before = task_hashes(tasks)
    assert file_hashes(("",)) == {}
    (tmp_path / "log.txt").write_text("more")
    (tmp_path / "arc_easy").write_text("a file of that name")
    assert task_hashes(tasks) == before
    (tmp_path / "tasks" / "mine.yaml").write_text("b")
    assert task_hashes(tasks) != before


def test_what_took_time_is_moved_aside(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(die="second")
    checkpoint = run.folder / "second" / "checkpoints" / "step-00000100" / "weights"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("hours")
    run("second")
    run()
    kept = [path.read_text() for path in (run.folder / "replaced").rglob("weights")]
    assert kept == ["hours"]
    assert len(list((run.folder / "replaced").glob("second-*"))) == 2
    assert any("second: the previous result was moved to" in line for line in run.lines)


@pytest.mark.parametrize("name", ["count", "done.json"])
def test_a_damaged_result_runs_again(run: Run, name: str) -> None:
    run()
    run.worked.clear()
    path = run.folder / "second" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run()
    assert run.worked == ["second"], "and what follows has the same inputs as before"
    run.worked.clear()
    run()
    assert run.worked == []


def test_logs_and_checkpoints_may_go(run: Run) -> None:
    run()
    run.worked.clear()
    (run.folder / "second" / "metrics.jsonl").write_text("a log")
    run()
    assert run.worked == []
