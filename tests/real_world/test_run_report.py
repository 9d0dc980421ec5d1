"""The page about a run: every link leads somewhere, every number is one that was recorded."""

import json
import shutil
import time
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from real_world.episode_file import PART
from real_world.measures import NAMES, STAGES
from real_world.recorder import Recorder
from real_world.run_bc import main as run_bc
from real_world.run_files import load_run, parse_verdicts, read_steps
from real_world.run_report import latency_rows, main, timing
from tests.real_world.rows import row
from toto_robot.intervals import wilson_interval

RUN_ROW = {
    "success": False, "end_reason": "time limit", "fault": False, "steps": 3, "seconds": 0.1,
    "limit_events": {"speed": 1}, "film": None, "recording": "",
}  # fmt: skip


class Links(HTMLParser):
    def __init__(self, page: Path):
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[key] or "" for key in ("src", "href") if key in given]
        self.ids.add(given.get("id") or "")


def check_links(folder: Path) -> list[str]:
    links = Links(folder / "index.html")
    for link in links.found:
        there = link[1:] in links.ids if link.startswith("#") else (folder / link).is_file()
        assert there and not link.startswith(("/", "http")), link
    return links.found


def recorded(folder: Path, episodes: int = 2, steps: int = 3, listed: int | None = None, keep=row):
    """A run's folder without a run; the last episodes are not `listed`."""
    lines = []
    with Recorder(folder / "episodes", NAMES) as recorder:
        for number in range(episodes):
            recorder.begin()
            for k in range(steps):
                assert recorder.append(keep(k))
            file = recorder.end(False, "time limit").relative_to(folder).as_posix()
            line = {**RUN_ROW, "number": number, "file": file, "steps": steps}
            lines.append(json.dumps(line) + "\n")
    (folder / "episodes.jsonl").write_text("".join(lines[:listed]))
    return folder


def torn(part: Path, scratch: Path, steps: int) -> None:
    """What is on the disk in the middle of an episode."""
    with Recorder(scratch) as recorder:
        path = recorder.begin()
        for k in range(steps):
            recorder.append(row(k))
        for _ in range(500):  # until the writer has caught up
            with suppress(FileNotFoundError):
                shutil.copy(path.with_name(path.name + PART), part)
                if len(read_steps(part)[0].get("actions", ())) == steps:
                    return
            time.sleep(0.01)
    raise AssertionError("the steps did not come to the disk")


def page_of(folder: Path, *words: str, pictures: int = 0) -> str:
    """Without pictures it takes a tenth of the time."""
    main([f"run={folder}", f"pictures={pictures}", *words])
    return (folder / "index.html").read_text()


@pytest.fixture(scope="module")
def real_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run_bc(["paced=false", "episodes=2", "seconds=0.3", f"out={out}"])
    return out


def test_a_run_ends_with_its_page(real_run):
    links = check_links(real_run)
    assert {"episode_0000.mp4", "episode_0001.mp4", "run.png", "joints_0001.png"} <= set(links)
    assert links.count("episodes/episode_0001.hdf5") == 1
    page = (real_run / "index.html").read_text()
    low, high = wilson_interval(0, 2)
    assert f"0 of 2 judged, 95 % Wilson [{100 * low:.1f} %, {100 * high:.1f} %]" in page
    assert "0 of 18" in page and "30.00 Hz achieved of 30" in page
    assert 'The run: <span class="">ended</span>' in page and "On a virtual clock" in page
    assert '<td class="l">hold_seconds</td><td class="l wrap">1.0</td>' in page
    for name in ("run.png", "joints_0000.png"):
        with Image.open(real_run / name) as picture:
            assert (
                picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
            )


def test_a_person_has_a_word_beside_the_machine(real_run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(real_run, folder)
    before = {
        p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".jsonl", ".json", ".hdf5")
    }
    page = page_of(folder, "success=0:true,1:false")
    assert "1 of 2 judged" in page and "A person said otherwise of episode 0." in page
    assert "0 of 2 judged" in page, "the automatic verdict stays"
    assert "success, by hand: 1 of 2, 50.0 %" in capsys.readouterr().out
    page_of(folder, "success=0:false")
    assert [e.by_hand for e in load_run(folder).episodes] == [False, False]
    page = page_of(folder, "success=0:none,1:none")
    assert "Nobody has said anything." in page
    assert len((folder / "verdicts.jsonl").read_text().splitlines()) == 5, "all that was said"
    assert {p: p.read_bytes() for p in before} == before
    with pytest.raises(SystemExit, match="episodes 0 to 1"):
        main([f"run={folder}", "success=2:true"])


@pytest.mark.parametrize("words", [["1"], ["1:yes"], ["a:true"], ["-1:true"]])
def test_a_word_that_is_no_verdict(words):
    with pytest.raises(ValueError, match="expected <episode>:true"):
        parse_verdicts(words)


def test_a_run_that_was_killed(tmp_path):
    """One episode listed, one complete but not listed, one in the middle: its steps are there, and
    nothing on the disk is changed."""
    folder = recorded(tmp_path / "run", listed=1)
    with (folder / "episodes.jsonl").open("a") as file:
        file.write('{"number": 1, "succ')  # the kill came here
    part = folder / "episodes" / ("episode_0002.hdf5" + PART)
    with Recorder(folder / "episodes"):
        torn(part, tmp_path / "other", 5)
        running = load_run(folder)
        assert running.running and running.episodes[2].end_reason == "running"
    before = part.read_bytes()
    page = page_of(folder, "success=2:true")
    run = load_run(folder)
    assert [e.end_reason for e in run.episodes] == ["time limit", "time limit", "killed"]
    assert [e.success for e in run.episodes] == [False, False, None]
    assert [e.steps for e in run.episodes] == [3, 3, 5] and not run.running
    assert run.episodes[2].missed == 1 and run.episodes[2].limit_events == {"speed": 2}
    assert "killed before its end" in page and "at least so many" in page
    assert "0 of 2 judged" in page and "1 not judged" in page
    assert part.read_bytes() == before
    check_links(folder)

    Recorder(folder / "episodes").close()  # the next run repairs it
    again = load_run(folder)
    assert [e.end_reason for e in again.episodes] == ["time limit", "time limit", "killed"]
    assert again.episodes[2].by_hand and not again.episodes[2].recording


def test_a_run_that_ended_in_a_fault_says_so_and_escapes_it(tmp_path):
    folder = recorded(tmp_path, episodes=1)
    fault = "RobotError: reflex <joint 3>"
    line = {**RUN_ROW, "number": 0, "file": "episodes/episode_0000.hdf5", "success": None,
            "fault": True, "end_reason": fault}  # fmt: skip
    gone = {**line, "number": 1, "file": "episodes/moved_away.hdf5"}
    (folder / "episodes.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(gone) + "\n")
    page = page_of(folder)
    assert "RobotError: reflex &lt;joint 3&gt;" in page and "<joint" not in page
    assert "moved_away.hdf5 is not there" in page


def test_numbers_come_from_the_steps_where_there_is_no_report(tmp_path):
    run = load_run(recorded(tmp_path, episodes=1, steps=5))
    rows, of_what = latency_rows(run)
    assert list(rows) == list(STAGES) and of_what == "of the steps on disk"
    assert rows["policy"] == pytest.approx({"p50": 2, "p90": 3.6, "p99": 3.96, "max": 4})
    assert timing(run) == {
        "deadlines": 5, "missed": 1, "achieved_hz": pytest.approx(30), "rate_hz": None, "least": True
    }  # fmt: skip


def test_an_older_run_without_times(tmp_path):
    old = ("latency_ms", "limit_events", "missed")
    folder = recorded(tmp_path, keep=lambda k: {n: v for n, v in row(k).items() if n not in old})
    page = page_of(folder, pictures=1)
    assert "No times were recorded." in page and "No options.json" in page
    assert not (folder / "run.png").exists() and (folder / "joints_0000.png").exists()


def test_only_so_many_pictures_and_the_bad_ones_first(tmp_path):
    folder = recorded(tmp_path, episodes=3)
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    for line, success in zip(lines, (True, None, True), strict=True):
        line["success"] = success
    lines[2]["fault"] = True
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder, pictures=2)
    assert sorted(p.name for p in folder.glob("joints_*")) == ["joints_0001.png", "joints_0002.png"]
    assert "2 of 3 episodes, faults and failures first" in page


def test_no_run_there(tmp_path):
    with pytest.raises(SystemExit, match="holds no episodes"):
        main([f"run={tmp_path}"])
    with pytest.raises(SystemExit, match="pictures=-1"):
        main([f"run={tmp_path}", "pictures=-1"])


def test_the_joints_are_drawn_as_they_were(tmp_path):
    """Wanted and sent apart leave orange beside blue, alike do not."""
    from real_world.run_figures import draw_joints

    episode = load_run(recorded(tmp_path, episodes=1)).episodes[0]
    episode.columns["q_wanted_rad"] = episode.columns["q_sent_rad"] + 0.5
    shares = []
    for _ in range(2):
        assert draw_joints(tmp_path / "x.png", episode)
        with Image.open(tmp_path / "x.png") as picture:
            rgb = np.asarray(picture.convert("RGB")).astype(int)
        shares.append((np.abs(rgb - (0xD5, 0x5E, 0x00)).sum(-1) < 60).mean())
        episode.columns["q_wanted_rad"] = episode.columns["q_sent_rad"]
    assert shares[0] > 1.2 * shares[1]
