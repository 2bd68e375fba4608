"""Ctrl-C ends a command at once, with one line, and leaves no process behind."""

import signal
import subprocess
import sys
import textwrap
import time

import psutil

PROGRAM = """
import os, signal, subprocess, sys, threading, time
from jobs.stop import stoppable

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not have

def forever():
    time.sleep(600)

with stoppable(lambda: "2 of 3 are done"):
    threading.Thread(target=forever).start()  # which Python would wait for at its end
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    try:
        time.sleep(600)
    except BaseException:
        time.sleep(600)  # as a library that makes another error of it
"""


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; nobody may wait for one whose parent has ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_busy_program_ends_at_once_with_its_children() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout
    child = psutil.Process(int(program.stdout.readline()))
    started = time.monotonic()
    program.send_signal(signal.SIGINT)
    _, error = program.communicate(timeout=30)
    assert program.returncode == 130
    assert error == "stopped: 2 of 3 are done\n"
    assert time.monotonic() - started < 2
    while is_alive(child):  # a killed process may take a moment
        assert time.monotonic() - started < 30
        time.sleep(0.05)


def test_afterwards_a_signal_is_python_s_own_again() -> None:
    program = """
    import signal
    from jobs.stop import stoppable
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stoppable(lambda: ""):
        pass
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.set_wakeup_fd(-1))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "True -1\n"


def test_other_signals_stop_nothing() -> None:
    """torch's data loader handles SIGCHLD, which comes when its workers end."""
    program = """
    import os, signal, time
    from jobs.stop import stoppable
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, lambda *_: print("a child ended"))
    with stoppable(lambda: "not at all"):
        os.kill(os.getpid(), signal.SIGCHLD)
        time.sleep(0.5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable(lambda: "not at all"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    print("came to its end")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a child ended\ncame to its end\n", "")
