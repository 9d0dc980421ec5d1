"""The pool of processes: a worker that dies costs its task an attempt, and nothing else."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretraining.pool import Pool

Report = Callable[[str, int], None]


def work(folder: Path, worker: int, task: int, report: Report, avoid: dict[str, str]) -> None:
    """Leaves a file of its number behind; what goes wrong depends on the task."""
    report(f"item {task}", 0)
    with open(folder / f"{task}.attempts", "a") as file:
        file.write("x")
    attempts = (folder / f"{task}.attempts").stat().st_size
    if task == 1 and attempts < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 2:
        raise SystemExit(7)
    if task == 3 and f"item {task}" not in avoid:
        os.kill(os.getpid(), signal.SIGSEGV)
    report("", 10 + task)
    (folder / str(task)).write_text(",".join(avoid.values()))


def test_deaths(tmp_path: Path, capsys) -> None:
    """Killed twice: done the third time. Failing thrice: reported. Crashing at an item: avoided."""
    reports: list[tuple[str, int]] = []
    finished: list[int] = []
    pool = Pool(partial(work, tmp_path), 2, lambda *r: reports.append(r), finished.append)
    assert pool.run(range(6)) == {2: "exit code 7"}
    assert sorted(finished) == [0, 1, 3, 4, 5]
    attempts = [(tmp_path / f"{task}.attempts").stat().st_size for task in range(6)]
    assert attempts == [1, 3, 3, 2, 1, 1]
    assert (tmp_path / "3").read_text() == "item 3 made the decoder crash (SIGSEGV)"
    assert (tmp_path / "1").read_text() == ""
    assert sum(count for _, count in reports) == 10 + 11 + 13 + 14 + 15
    said = capsys.readouterr().out
    assert said.count("(SIGKILL) in task 1 at item 1") == 2 and "(SIGSEGV) in task 3" in said


def hopeless(worker: int, task: int, report: Report, avoid: dict[str, str]) -> None:
    raise SystemExit(3)


def test_it_gives_up_when_nothing_works() -> None:
    """Four deaths in a row are enough for one worker, whatever is left."""
    pool = Pool(hopeless, 1, lambda *_: None, lambda _: None)
    assert pool.run(range(500)) == dict.fromkeys(range(500), "exit code 3")
    assert sum(pool.deaths.values()) == 4


def slow(worker: int, task: int, report: Report, avoid: dict[str, str]) -> None:
    report("here", os.getpid())
    time.sleep(60)


def test_ctrl_c_ends_the_workers() -> None:
    pids: list[int] = []

    def interrupt(_: str, pid: int) -> None:
        pids.append(pid)
        if len(pids) == 2:
            raise KeyboardInterrupt

    try:
        Pool(slow, 2, interrupt, lambda _: None).run(range(5))
    except KeyboardInterrupt:
        pass
    assert len(pids) == 2
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
