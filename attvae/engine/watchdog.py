"""Ends all ranks when one of them hangs, fails or is gone, says which, and keeps what the others were doing."""

import faulthandler
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from attvae.engine.rendezvous import World, store_keeper

BEAT_S = 1.0
SILENT_BEATS = 10
"""A rank without a sign of life for so long is gone: its thread beats whatever the main one does."""

UNANSWERED_BEATS = 30
"""A store that does not answer for so long is gone with its host, whose connections nobody has closed.

Longer than SILENT_BEATS: where the host of the store only slows down, or the network loses a few packets, none ends.
"""

ABSENT_BEATS = 30
"""A rank that has met the others, and shows no first sign for so long, does not come."""

STACKS_S = 10.0
"""How long the stacks may take to be written: the disk may be what hangs, or on a host that is gone."""

NAMED = 8
"""Ranks, and hosts, that a verdict names."""

_LEFT = "left"


class _Sign(NamedTuple):
    """What a rank tells of itself with each beat."""

    beat: int
    entered: int
    phase: str

    @classmethod
    def parse(cls, shown: bytes) -> "_Sign":
        beat, entered, phase = shown.decode().split(" ", 2)
        return cls(int(beat), int(entered), phase)


class Watchdog:
    """A thread of each rank that shows signs of life in the ranks' common store.

    The first and the last rank, which on several hosts are on different ones, judge by them: a rank whose signs end
    is gone; where no rank has entered another phase for `hang_s`, those that are behind the others hang. Each rank
    sees for itself when the store is gone. Time is counted in beats, so that a job which is suspended and continued is
    not found dead.
    """

    def __init__(self, world: World, hang_s: float, stacks: Path) -> None:
        """Waits for no other rank, and needs no collective: it watches over the first one too.

        Args:
            stacks: folder for the stacks of all threads, and the last collectives, a file a rank; made when there is
                something to keep.

        Raises:
            ConnectionError: the ranks' common store is gone.
        """
        self._world = world
        self._hang_s = hang_s
        self._stacks = stacks
        self.record_verdict: Callable[[str], None] = lambda verdict: None
        """Called before a verdict ends this process, on a thread of its own that may take STACKS_S."""
        self._unanswered_beats = 0
        self._ended = threading.Event()
        self._hosts = {world.rank: socket.gethostname()}
        self._neighbours: dict[int, int] = {}
        self._all_known = False
        self._silent_beats = [0] * world.size
        self._still_beats = 0
        self._signs: list[_Sign] = []
        self._threads = [
            threading.Thread(target=work, name="watchdog", daemon=True) for work in (self._watch_store, self._watch)
        ]
        watch_store, watch = self._threads
        watch_store.start()  # a clone of a store that does not answer takes its time
        try:
            self._store = PrefixStore("watchdog", world.store.clone())  # type: ignore[attr-defined]
            self._store.set_timeout(timedelta(seconds=hang_s))
            self._show(0)
            self._store.set(f"who/{world.rank}", f"{socket.gethostname()} {os.getpid()} {_pid_space()}")
        except dist.DistError as error:
            self._ended.set()
            raise ConnectionError(f"{self._keeper()} is gone: {error}") from error
        watch.start()

    def report(self, error: BaseException) -> None:
        """Ends the other ranks: this one fails alone. Or this one, where the error is that another has ended."""
        if self._ended.is_set():
            return
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            time.sleep((UNANSWERED_BEATS + 5) * BEAT_S)  # until it is known which, which ends this process
        self._ended.set()
        who = self._named([self._world.rank])
        self._ask_store(lambda: self._give_verdict(f"{who} failed: {type(error).__name__}: {error}"))
        if self._world.size > 1:
            time.sleep(3 * BEAT_S)  # the store may be this process's

    def stop(self) -> None:
        """This rank ends as it should."""
        self._ended.set()
        for thread in self._threads:
            thread.join(5 * BEAT_S)
        self._ask_store(lambda: self._store.set(str(self._world.rank), f"0 0 {_LEFT}"))

    def _ask_store(self, ask: Callable[[], None]) -> None:
        """From the main thread, which must end also where the store is gone."""

        def attempt() -> None:
            with suppress(RuntimeError):  # the rank with the store was faster
                ask()

        asking = threading.Thread(target=attempt, name="watchdog", daemon=True)
        asking.start()
        asking.join(UNANSWERED_BEATS * BEAT_S)

    def _watch(self) -> None:
        for beat in itertools.count(1):
            try:
                self._show(beat)
                if self._store.check(["verdict"]):
                    self._end(self._store.get("verdict").decode())
                self._all_known = self._all_known or self._know()
                if self._is_judge and (verdict := self._judge() if self._all_known else self._absent(beat)):
                    self._give_verdict(verdict)
                    self._say(verdict)
                    time.sleep(3 * BEAT_S)  # for the others, who read it in the store, which may be this process's
                    self._end(verdict)
            except RuntimeError:  # of the store
                if not self._ended.wait(3 * BEAT_S):
                    verdict = f"{self._keeper()} is gone: the connection is closed"
                    self._say(verdict)
                    self._end(verdict)
            self._unanswered_beats = 0
            if self._ended.wait(BEAT_S):
                return

    def _watch_store(self) -> None:
        """The store has no time limit of its own for one who stops without closing its connections."""
        while not self._ended.wait(BEAT_S):
            self._unanswered_beats += 1
            if self._unanswered_beats > UNANSWERED_BEATS:
                verdict = f"{self._keeper()} is gone, or cut off: no answer for {UNANSWERED_BEATS * BEAT_S:g} s"
                self._say(verdict)
                self._end(verdict)

    def _keeper(self) -> str:
        host = self._hosts.get(0) or os.environ["MASTER_ADDR"]
        return store_keeper(host)

    def _know(self) -> bool:
        """Whether the judges know who all ranks are, and the others who the first one is."""
        ranks = range(self._world.size if self._is_judge else 1)
        keys = [f"who/{rank}" for rank in ranks]
        if not self._store.check(keys):
            return False
        for rank, told in zip(ranks, self._store.multi_get(keys), strict=True):
            host, pid, space = told.decode().split(" ", 2)
            self._hosts[rank] = host
            if space == _pid_space():
                self._neighbours[rank] = int(pid)
        return True

    def _absent(self, beat: int) -> str | None:
        if beat < ABSENT_BEATS:
            return None
        absent = [rank for rank in range(self._world.size) if not self._store.check([f"who/{rank}"])]
        silence = f"no sign of life for {ABSENT_BEATS * BEAT_S:g} s since it met the others"
        return f"{self._named(absent)} {_are(absent)} gone: {silence}" if absent else None

    def _show(self, beat: int) -> None:
        phases = self._world.phases
        self._store.set(str(self._world.rank), f"{beat} {phases.entered} {phases.name}")

    def _judge(self) -> str | None:
        dead = [rank for rank, pid in self._neighbours.items() if _is_dead(pid)]
        found = self._store.multi_get([str(rank) for rank in range(self._world.size)])  # who has ended told so before
        signs = [_Sign.parse(shown) for shown in found]
        if self._signs:
            for rank, (before, now) in enumerate(zip(self._signs, signs, strict=True)):
                self._silent_beats[rank] = self._silent_beats[rank] + 1 if before == now else 0
            moved = [sign.entered for sign in signs] != [sign.entered for sign in self._signs]
            self._still_beats = 0 if moved else self._still_beats + 1
        self._signs = signs
        there = [rank for rank, sign in enumerate(signs) if sign.phase != _LEFT]
        if killed := [rank for rank in dead if rank in there]:
            return f"{self._named(killed)} {_are(killed)} gone: the process has ended ({self._places(killed)})"
        if silent := [rank for rank in there if self._silent_beats[rank] >= SILENT_BEATS]:
            who, silence = self._named(silent), f"no sign of life for {SILENT_BEATS * BEAT_S:g} s"
            return f"{who} {_are(silent)} gone: {silence} ({self._places(silent)})"
        if self._still_beats * BEAT_S >= self._hang_s:
            behind = min((signs[rank].entered for rank in there), default=0)
            hanging = [rank for rank in there if signs[rank].entered == behind]
            if len(hanging) == len(there) > 1:
                return f"no rank has moved for {self._hang_s:g} s ({self._places(hanging)})"
            who, rest = self._named(hanging), f"not moved for {self._hang_s:g} s"
            return f"{who} {_are(hanging)} hanging: {rest} ({self._places(hanging)})"
        return None

    def _named(self, ranks: list[int]) -> str:
        """`rank 1 on host-b`; without hosts that are not known."""
        hosts = list(dict.fromkeys(self._hosts[rank] for rank in ranks if rank in self._hosts))
        return f"rank{'s' if len(ranks) > 1 else ''} {_some(ranks)}" + (f" on {_some(hosts)}" if hosts else "")

    def _places(self, ranks: list[int]) -> str:
        return ", ".join(dict.fromkeys(f"in {self._signs[rank].phase}" for rank in ranks))

    @property
    def _is_judge(self) -> bool:
        return self._world.rank in (0, self._world.size - 1)

    def _give_verdict(self, verdict: str) -> None:
        with suppress(RuntimeError):  # the rank with the store is gone: the others notice that
            if not self._store.check(["verdict"]):
                self._store.set("verdict", verdict)

    def _say(self, verdict: str) -> None:
        if not (self._is_judge or os.environ.get("LOCAL_RANK") == "0"):  # one a host is enough
            return
        with suppress(OSError):  # nobody reads it any more
            print(
                f"attvae (rank {self._world.rank}): {verdict}; stacks are in {self._stacks}; ending all ranks: "
                "run the same command again to go on from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )

    def _end(self, verdict: str) -> None:
        if self._ended.is_set():  # it ended as it should, meanwhile
            return
        with suppress(OSError):  # should the last resort be needed: what blocks may hold Python's lock
            faulthandler.dump_traceback_later(STACKS_S + 5, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
        writer = threading.Thread(target=self._write_stacks, args=(verdict,), name="watchdog", daemon=True)
        writer.start()
        writer.join(STACKS_S)
        os._exit(1)

    def _write_stacks(self, verdict: str) -> None:
        rank = f"rank-{self._world.rank:04d}"
        with suppress(OSError):
            self.record_verdict(verdict)
        with suppress(OSError, RuntimeError, AttributeError):  # what torch has of the collectives is private to it
            self._stacks.mkdir(parents=True, exist_ok=True)
            with (self._stacks / f"{rank}.txt").open("w") as file:
                file.write(f"{verdict}\n\n")
                file.flush()
                faulthandler.dump_traceback(file)
            if self._world.device.type == "cuda":  # in the format, and by the names, of torch's analyser
                (self._stacks / f"nccl-{rank}").write_bytes(c10d._dump_nccl_trace())  # type: ignore[attr-defined]
            else:  # which does not understand gloo
                (self._stacks / f"gloo-{rank}.json").write_bytes(c10d._dump_fr_trace_json())  # type: ignore[attr-defined]


def _are(ranks: list[int]) -> str:
    return "are" if len(ranks) > 1 else "is"


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _pid_space() -> str:
    """Equal for processes that see each other's ids: the same boot of a host, the same container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text()} {os.readlink('/proc/self/ns/pid')}"


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
