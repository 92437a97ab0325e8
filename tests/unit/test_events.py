"""A wait ends at once for a signal or a descriptor, says so once, and leaves the process's signals as they were."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from llmio_probe.events import Events

LONG = 20.0
SIGNAL, OTHER = signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[int]]:
    """Both signals are caught by the test itself, so that no mistake ends it; what it caught."""
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in (SIGNAL, OTHER)}
    yield caught
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def waited(events: Events, seconds: float) -> float:
    start = time.monotonic()
    events.wait(seconds)
    return time.monotonic() - start


def test_a_signal_ends_a_wait_at_once_and_is_reported_once() -> None:
    with Events([SIGNAL]) as events:
        timer = threading.Timer(0.1, send, [SIGNAL])
        timer.start()
        assert waited(events, LONG) < LONG / 2
        assert events.signals() == [SIGNAL]
        assert events.signals() == []
        timer.join()


def test_a_signal_before_the_wait_ends_it_too_but_only_one() -> None:
    with Events([SIGNAL]) as events:
        send(SIGNAL)
        assert waited(events, LONG) < LONG / 2
        assert events.signals() == [SIGNAL]
        assert waited(events, 0.05) >= 0.04


def test_another_thread_ends_a_wait() -> None:
    with Events([SIGNAL]) as events:
        timer = threading.Timer(0.1, events.wake)
        timer.start()
        assert waited(events, LONG) < LONG / 2
        timer.join()
        for _ in range(100_000):  # however often it says so, and nobody reads
            events.wake()
        assert waited(events, LONG) < LONG / 2
        assert events.signals() == []
    events.wake()


def test_signals_are_reported_in_order() -> None:
    with Events([SIGNAL, OTHER]) as events:
        for number in (OTHER, SIGNAL, OTHER):
            send(number)
        assert events.signals() == [OTHER, SIGNAL, OTHER]


def test_many_signals_at_once_do_not_block() -> None:
    with Events([SIGNAL]) as events:
        for _ in range(5000):
            send(SIGNAL)
        assert waited(events, LONG) < LONG / 2
        assert set(events.signals()) == {SIGNAL}


def test_a_signal_that_was_ignored_stays_so() -> None:
    signal.signal(SIGNAL, signal.SIG_IGN)
    with Events([SIGNAL]) as events:
        assert signal.getsignal(SIGNAL) == signal.SIG_IGN
        send(SIGNAL)
        assert events.signals() == []
    assert signal.getsignal(SIGNAL) == signal.SIG_IGN


def test_afterwards_signals_do_what_they_did_before(handlers: list[int]) -> None:
    before, wakeup = signal.getsignal(SIGNAL), signal.set_wakeup_fd(-1)
    with Events([SIGNAL]) as events:
        assert signal.getsignal(SIGNAL) != before
    assert signal.getsignal(SIGNAL) == before
    assert signal.set_wakeup_fd(wakeup) == -1
    send(SIGNAL)
    assert handlers == [SIGNAL]
    assert events.signals() == []


def test_they_do_so_after_an_error_too() -> None:
    before = signal.getsignal(SIGNAL)
    with pytest.raises(ZeroDivisionError), Events([SIGNAL]):
        raise ZeroDivisionError
    assert signal.getsignal(SIGNAL) == before


def test_release_gives_signals_back_while_waiting_goes_on(handlers: list[int]) -> None:
    with Events([SIGNAL]) as events:
        send(SIGNAL)
        events.release()
        send(SIGNAL)
        assert events.signals() == [SIGNAL]
        assert handlers == [SIGNAL]
        events.wait(0)
        events.release()
        assert waited(events, 0.02) >= 0.01


def test_signals_that_were_not_asked_for_are_left_alone(handlers: list[int]) -> None:
    with Events([SIGNAL]) as events:
        send(OTHER)
        assert events.signals() == []
    assert handlers == [OTHER]


def test_a_descriptor_ends_a_wait_when_something_comes_not_while_it_lies_there() -> None:
    reading, writing = os.pipe()
    with Events([]) as events:
        events.watch(reading)
        assert waited(events, 0.02) >= 0.01
        os.write(writing, b"x")
        assert waited(events, LONG) < LONG / 2
        assert waited(events, 0.05) >= 0.04
        os.write(writing, b"x")
        assert waited(events, LONG) < LONG / 2
    os.close(reading)
    os.close(writing)


def test_the_end_of_a_child_ends_a_wait() -> None:
    child = os.posix_spawn("/bin/sleep", ["sleep", "0.1"], dict(os.environ))
    pidfd = os.pidfd_open(child)
    with Events([]) as events:
        events.watch(pidfd)
        assert waited(events, LONG) < LONG / 2
    os.close(pidfd)
    os.waitpid(child, 0)


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_left_is_no_wait(seconds: float) -> None:
    with Events([SIGNAL]) as events:
        assert waited(events, seconds) < LONG / 2


def test_nothing_stays_open() -> None:
    before = os.listdir("/proc/self/fd")
    with Events([SIGNAL]):
        pass
    assert os.listdir("/proc/self/fd") == before
