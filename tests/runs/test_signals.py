from __future__ import annotations

import os
import signal
import threading

import pytest

from rlhf_lightning.errors import Interrupted
from rlhf_lightning.runs import signals
from rlhf_lightning.runs.signals import graceful_signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_obeyed_at_the_next_check(signum: int):
    before = signal.getsignal(signum)
    with graceful_signals() as stop:
        stop.check()
        os.kill(os.getpid(), signum)
        assert stop.requested == signum
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before


def test_a_second_signal_interrupts_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "REPEAT_S", 0.0)
    with graceful_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_arrives_twice_within_moments_counts_once():
    with graceful_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def test_the_term_after_slurms_warning_does_not_cut_the_checkpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "REPEAT_S", 0.0)
    with graceful_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGUSR1


def test_outside_the_main_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with graceful_signals() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]
