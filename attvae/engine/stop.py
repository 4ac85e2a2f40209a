"""A request to stop: made by a signal, or by the end of the launcher; carried out where the ranks next agree."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LAUNCHER_GONE = "its launcher's end"
REASONS = (*(s.name for s in SIGNALS), LAUNCHER_GONE)
SAME_REQUEST_S = 2.0
"""Launchers and loader workers pass on what a rank has had itself: one request, however often it arrives by then."""

STOPPED = 75
"""Exit code: stopped as asked; the same command goes on. EX_TEMPFAIL of sysexits.h."""


class StopRequestedError(Exception):
    """All ranks have agreed to stop; the message is one of REASONS."""

    known_to_all = True  # attvae.engine.rendezvous.is_known_to_all


class StopRequest:
    """Whether this process has been asked to stop.

    Before there is anything to save, it then ends at once; so it does when it is asked a second time by a signal,
    unless its work is saved by then.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._since = 0.0
        self._worth_saving = False
        self._saved = False

    def request(self, reason: str) -> None:
        now = time.monotonic()
        if not self._worth_saving:
            print(f"attvae: {reason}: ending, before there is anything to save", file=sys.stderr, flush=True)
            os._exit(STOPPED)
        if self.reason is None:
            self._since = now
            self.reason = reason
        elif now - self._since > SAME_REQUEST_S and reason != LAUNCHER_GONE and not self._saved:
            print(f"attvae: {reason} after {self.reason}: ending at once", file=sys.stderr, flush=True)
            os._exit(1)

    def work_begins(self) -> None:
        """From here on all ranks agree before they stop."""
        self._worth_saving = True

    def saved(self) -> None:
        """Nothing is left to be saved: further requests change nothing."""
        self._saved = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Makes signals into requests. On the main thread.

        They are received by a thread of its own, for the main one may be inside a collective that never returns.
        """
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        heard = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]  # as nohup wants SIGHUP
        before = {each: signal.signal(each, lambda *_: None) for each in heard}
        waking_before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        threading.Thread(target=self._receive, args=(receiver,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(waking_before)
            for each, handler in before.items():
                signal.signal(each, handler)
            os.close(sender)

    def _receive(self, receiver: int) -> None:
        names = {int(each): each.name for each in SIGNALS}
        while number := os.read(receiver, 1):
            if number[0] in names:
                self.request(names[number[0]])
        os.close(receiver)
