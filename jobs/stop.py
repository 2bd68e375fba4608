"""Ctrl-C: one line that says what is done and how to go on, exit status 130, no process left behind."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a program that was stopped by Ctrl-C, as shells give it."""


@contextmanager
def stoppable(what_is_done: Callable[[], str]) -> Iterator[None]:
    """End this process and its children at once if the user presses Ctrl-C while the block runs.

    Not by an exception: a model may keep the main thread for a minute, Beam makes another error of it, and its threads
    would be waited for. Python hands the signal to a thread, which needs none of them.

    Args:
        what_is_done: returns what the line says.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background
        yield
        return
    receiving, sending = os.pipe()
    terminal = os.dup(2)  # stderr may be turned off meanwhile, see `quiet_stderr`
    os.set_blocking(sending, False)

    def wait() -> None:
        number = b" "
        while number and number[0] != signal.SIGINT:  # other signals that Python handles come this way too
            number = os.read(receiving, 1)
        if number:
            os.write(terminal, f"stopped: {what_is_done()}\n".encode())
            kill_children()
            os._exit(INTERRUPTED)

    handler, wakeup = signal.signal(signal.SIGINT, lambda *_: None), signal.set_wakeup_fd(sending)
    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, handler)
        os.close(sending)  # the thread reads the end of the pipe, and ends
        watcher.join()
        os.close(receiving)
        os.close(terminal)


def kill_children() -> None:
    """Kill all processes that this one started, and those that they started."""
    import psutil  # noqa: PLC0415 - only here

    for child in psutil.Process().children(recursive=True):
        child.kill()
