"""Loaders over batches that are made by number, so that the place in the data is one integer."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counted:
    """A batch and what happened while it was made (examples, dropped ones); a `make_batch` may return it."""

    batch: Any
    counts: Mapping[str, int] = field(default_factory=dict)


class BatchLoader:
    """Batches 0 .. total-1 of a function of the batch's number; every iteration begins at 0.

    `prefetch` batches are made ahead in a thread. `make_batch` must depend on the number alone (and use no global
    random state), so that this changes nothing but time.
    """

    def __init__(self, make_batch: Callable[[int], Any], total: int, *, prefetch: int = 0) -> None:
        if total < 0 or prefetch < 0:
            raise ValueError(f"total and prefetch must be >= 0, got {total} and {prefetch}")
        self.total = total
        self.counts: Counter[str] = Counter()
        """Sums of `Counted.counts` over the batches that were handed out since batch 0."""
        self._make_batch = make_batch
        self._prefetch = prefetch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Any]:
        self.counts.clear()
        for made in self._made(0):
            yield self._handed_out(made)

    def _handed_out(self, made: Any) -> Any:
        if not isinstance(made, Counted):
            return made
        self.counts.update(made.counts)
        return made.batch

    def _made(self, start: int) -> Iterator[Any]:
        if self._prefetch == 0:
            yield from map(self._make_batch, range(start, self.total))
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        try:
            waiting = deque(
                pool.submit(self._make_batch, i)
                for i in range(start, min(start + 1 + self._prefetch, self.total))
            )
            for ahead in range(start + len(waiting), self.total + len(waiting)):
                made = waiting.popleft().result()
                if ahead < self.total:
                    waiting.append(pool.submit(self._make_batch, ahead))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)


class ResumableLoader(BatchLoader):
    """A `BatchLoader` that goes on where its saved state stopped (Lightning saves and restores it by itself).

    The state counts batches handed out, not those made ahead. An iteration after a complete one begins at 0; one after
    `load_state_dict` never does, even if the state is that of the very end.
    """

    def __init__(self, make_batch: Callable[[int], Any], total: int, *, prefetch: int = 0) -> None:
        super().__init__(make_batch, total, prefetch=prefetch)
        self.position = 0
        """Batches handed out so far."""
        self._loaded = False

    def __iter__(self) -> Iterator[Any]:
        if self.position >= self.total and not self._loaded:
            self.position = 0
            self.counts.clear()
        self._loaded = False
        for made in self._made(self.position):
            self.position += 1
            yield self._handed_out(made)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "total": self.total, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: ValueError if the state is that of a loader with another number of batches."""
        if state["total"] != self.total:
            raise ValueError(f"the state must be of {self.total} batches, got {state['total']}")
        self.position = state["position"]
        self.counts = Counter(state["counts"])
        self._loaded = True
