"""A pool of processes for tasks that may be run again: a worker that dies costs its current task.

`multiprocessing.Pool` waits for ever for the task of a killed worker, `concurrent.futures` gives up
on all tasks. Here the task goes to the next worker, up to three times.
"""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

ATTEMPTS = 3
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}

# (number of worker, task, report, what to avoid with reasons)
Work = Callable[[int, int, Callable[[str, int], None], dict[str, str]], Any]


@dataclass
class Worker:
    """The parent's end of a process."""

    number: int
    process: BaseProcess
    connection: Connection
    task: int | None = None
    item: str = ""  # what it is at, as it reported

    def end(self) -> str:
        """Wait for a process that is dying; how it ended, in words."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@dataclass
class Pool:
    """`run` does tasks in processes of their own.

    Args:
        work: picklable; called as work(worker's number, task, report, avoid). It calls
            report(item, count) with what it is about to read and what it has just done.
        workers: number of processes.
        progress: is given the reports of all.
        finished: is given the number of every task that is done.
    """

    work: Work
    workers: int
    progress: Callable[[str, int], None]
    finished: Callable[[int], None]
    deaths: Counter[int] = field(default_factory=Counter)
    avoid: dict[int, dict[str, str]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    in_a_row: int = 0

    def run(self, tasks: Sequence[int]) -> dict[int, str]:
        """Do the tasks; returns those that failed, with how their last worker ended.

        An item at which a worker crashed (SIGSEGV and the like) is avoided from then on. When
        workers die again and again without finishing anything, the remaining tasks fail too.
        """
        todo, workers = deque(tasks), list[Worker]()
        try:
            while todo or any(worker.task is not None for worker in workers):
                while todo and len(workers) < min(self.workers, len(tasks)):
                    workers.append(self._start(workers))
                for worker in workers:
                    if worker.task is None and todo:
                        worker.task = todo.popleft()
                        self._give(worker)
                self._listen(workers, todo)
        finally:
            for worker in workers:
                worker.process.terminate()
                worker.process.join()
        return self.failed

    def _start(self, others: list[Worker]) -> Worker:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        number = min(set(range(self.workers)) - {worker.number for worker in others})
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.work, number, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return Worker(number, process, ours)

    def _give(self, worker: Worker) -> None:
        assert worker.task is not None
        try:
            worker.connection.send((worker.task, self.avoid.get(worker.task, {})))
        except OSError:
            pass  # it died while idle: `_listen` notices

    def _listen(self, workers: list[Worker], todo: deque[int]) -> None:
        ready = wait([worker.connection for worker in workers])
        for worker in [worker for worker in workers if worker.connection in ready]:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                workers.remove(worker)
                self._bury(worker, todo)
                continue
            if message is None:
                assert worker.task is not None
                self.finished(worker.task)
                worker.task, worker.item, self.in_a_row = None, "", 0
            else:
                worker.item = message[0] or worker.item
                self.progress(*message)

    def _bury(self, worker: Worker, todo: deque[int]) -> None:
        how, task = worker.end(), worker.task
        if task is None:
            return
        self.deaths[task] += 1
        self.in_a_row += 1
        print(f"a worker died ({how}) in task {task} at {worker.item or 'its start'}")
        if worker.item and how in {crash.name for crash in CRASHES}:
            reason = f"{worker.item} made the decoder crash ({how})"
            self.avoid.setdefault(task, {})[worker.item] = reason
        if self.in_a_row > ATTEMPTS * self.workers:
            self.failed |= dict.fromkeys([task, *todo], how)
            todo.clear()
        elif self.deaths[task] < ATTEMPTS:
            todo.append(task)
        else:
            self.failed[task] = how


def _serve(work: Work, number: int, connection: Connection) -> None:
    """What a worker's process does: tasks, until the parent is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which ends its workers
    while True:
        try:
            task, avoid = connection.recv()
        except EOFError:
            return
        work(number, task, lambda item, count: connection.send((item, count)), avoid)
        connection.send(None)
