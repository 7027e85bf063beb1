import threading
import time

import pytest

from rlhf_lightning.data.loader import BatchLoader, Counted, ResumableLoader


@pytest.mark.parametrize("prefetch", [0, 1, 2, 20])
def test_batches_come_in_order_whatever_is_made_ahead(prefetch):
    assert list(BatchLoader(lambda i: i * i, 7, prefetch=prefetch)) == [i * i for i in range(7)]
    assert list(BatchLoader(lambda i: i, 0, prefetch=prefetch)) == []


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stop", range(6))
def test_a_resumed_loader_gives_the_rest_exactly_once(prefetch, stop):
    loader = ResumableLoader(lambda i: Counted(i, {"n": 1}), 5, prefetch=prefetch)
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(stop)] if stop <= 5 else []
    state = loader.state_dict()
    assert state["position"] == stop == state["counts"].get("n", 0)  # not what was made ahead
    iterator.close()
    resumed = ResumableLoader(lambda i: Counted(i, {"n": 1}), 5, prefetch=prefetch)
    resumed.load_state_dict(state)
    assert seen + list(resumed) == list(range(5))
    assert resumed.counts == {"n": 5}
    assert list(resumed) == list(range(5))  # the next epoch


def test_batches_are_made_ahead_in_a_thread_that_ends():
    made = []
    loader = BatchLoader(lambda i: made.append(i) or i, 10, prefetch=2)
    iterator = iter(loader)
    assert next(iterator) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:  # 0 is out, and its place was filled
        time.sleep(0.005)
    assert made == [0, 1, 2, 3]
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_an_error_while_making_a_batch_reaches_the_caller():
    def broken(i):
        raise RuntimeError(f"batch {i}")

    with pytest.raises(RuntimeError, match="batch 0"):
        next(iter(BatchLoader(broken, 3, prefetch=1)))


def test_a_state_of_another_length_is_refused():
    with pytest.raises(ValueError, match="must be of 5 batches, got 6"):
        ResumableLoader(lambda i: i, 5).load_state_dict({"position": 1, "total": 6, "counts": {}})
    with pytest.raises(ValueError, match="must be >= 0, got -1 and 0"):
        BatchLoader(lambda i: i, -1)
