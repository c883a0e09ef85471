"""Stopping politely: the first signal asks, the second insists, and then all is as before."""

import signal
import threading

import pytest

from gptj.train.signals import StopOnSignal

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_the_first_asks_and_says_so(number):
    said = []
    with StopOnSignal(said.append) as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert len(said) == 1
    assert "stopping after this step and saving" in said[0]


@BOTH
def test_the_second_insists(number):
    said = []
    with StopOnSignal(said.append):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert len(said) == 1


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopOnSignal(print):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    with pytest.raises(ZeroDivisionError), StopOnSignal(print):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_midst_of_writing_to_the_same_stream():
    def busy(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopOnSignal(busy) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested


def test_in_another_thread_signals_are_left_alone():
    handlers, requested = [], []

    def work() -> None:
        with StopOnSignal(print) as stop:
            handlers.append(signal.getsignal(signal.SIGTERM))
            requested.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
    assert requested == [False]
