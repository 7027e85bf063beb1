from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks import checkpointing
from rlhf_lightning.callbacks.checkpointing import Checkpointing, find_checkpoint
from rlhf_lightning.callbacks.metrics_csv import MetricsCSV
from rlhf_lightning.callbacks.random_state import random_state, set_random_state
from rlhf_lightning.callbacks.samples import SampleTables
from rlhf_lightning.errors import Interrupted, RunFailed
from tests.callbacks.toy import Rows, Toy, trainer

BATCHES = 5


def fit(folder: Path, *, every: int = 2, epochs: int = 2, **toy: Any) -> tuple[Toy, pl.Trainer]:
    pl.seed_everything(3, verbose=False)
    module = Toy(**toy)
    before = signal.signal(
        module.signum, module.on_signal
    )  # before fit: Lightning keeps it beside its own
    callbacks = [
        SampleTables(folder / "samples.jsonl", figures=0),
        Checkpointing(folder, every, stop=module),
    ]
    run = trainer(folder, callbacks, [MetricsCSV(folder / "metrics.csv")], max_epochs=epochs)
    found = find_checkpoint(folder)
    # the validation loader draws its base seed from the global generator, as DataLoaders do
    loaders = Rows(BATCHES), DataLoader([0, 1], num_workers=0)
    try:
        run.fit(module, *loaders, ckpt_path=found, weights_only=True if found else None)
    finally:
        signal.signal(module.signum, before)
    return module, run


def weights(module: Toy) -> list[float]:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Path]:
    folder = tmp_path_factory.mktemp("straight")
    return fit(folder)[0], folder


def same_run(module: Toy, folder: Path, straight: tuple[Toy, Path]) -> None:
    assert weights(module) == weights(straight[0])
    for name in ("metrics.csv", "samples.jsonl"):
        assert (folder / name).read_text() == (straight[1] / name).read_text()


@pytest.mark.parametrize("step", range(1, 2 * BATCHES + 1))
def test_a_stopped_run_continues_to_the_same_bits(
    step: int, tmp_path: Path, straight: tuple[Toy, Path]
) -> None:
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, every=100, stop_at=step)
    assert stopped.value.signum == signal.SIGTERM
    module, _ = fit(tmp_path)
    same_run(module, tmp_path, straight)


@pytest.mark.parametrize("step", range(1, 2 * BATCHES + 1))
def test_a_killed_run_continues_to_the_same_bits(
    step: int, tmp_path: Path, straight: tuple[Toy, Path]
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, die_at=step)
    module, _ = fit(tmp_path)
    same_run(module, tmp_path, straight)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_middle_of_a_validation_still_saves(
    signum: int, tmp_path: Path, straight: tuple[Toy, Path]
) -> None:
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, every=100, stop_in_validation=6, signum=signum)
    assert stopped.value.signum == signum
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["iteration"] == 6
    module, _ = fit(tmp_path)
    same_run(module, tmp_path, straight)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_validation_of_its_own_ends_it_and_saves_nothing(
    signum: int, tmp_path: Path
) -> None:
    module = Toy(stop_in_validation=0, signum=signum)
    before = signal.signal(signum, module.on_signal)
    try:
        run = trainer(tmp_path, [Checkpointing(tmp_path, 1, stop=module)], [])
        with pytest.raises(Interrupted) as stopped:
            run.validate(module, DataLoader([0, 1, 2]), verbose=False)
        assert signal.getsignal(signum) == module.on_signal
    finally:
        signal.signal(signum, before)
    assert stopped.value.signum == signum
    assert not list(tmp_path.glob("*.ckpt"))


def test_nothing_is_trained_again_after_the_last_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, every=BATCHES)
    module, run = fit(tmp_path, every=BATCHES)
    assert module.noise == []
    assert run.global_step == 2 * 2 * BATCHES  # two optimizer steps a batch, two epochs


def test_validation_comes_before_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    fit(tmp_path, every=3, epochs=1)
    state = torch.load(tmp_path / "previous.ckpt", weights_only=True)
    assert state["iteration"] == 3
    assert state["callbacks"]["Checkpointing"]["logged"] == 3
    assert '"step": 3' in (tmp_path / "samples.jsonl").read_text()


def test_the_last_batch_is_saved_whatever_divides_it(tmp_path: Path) -> None:
    fit(tmp_path, every=3, epochs=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["iteration"] == BATCHES


def test_a_process_whose_run_was_taken_over_writes_no_checkpoint(tmp_path: Path) -> None:
    def taken() -> None:
        raise RuntimeError("another process owns this run now")

    module = Toy()
    module.requested = signal.SIGTERM
    run = trainer(tmp_path, [Checkpointing(tmp_path, 100, module, taken)], [])
    with pytest.raises(RuntimeError, match="another process owns"):
        run.fit(module, Rows(BATCHES))
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_two_newest_checkpoints_are_kept_and_no_temporary_file(tmp_path: Path) -> None:
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["last.ckpt", "previous.ckpt"]
    steps = [
        torch.load(tmp_path / n, weights_only=True)["iteration"]
        for n in ("previous.ckpt", "last.ckpt")
    ]
    assert steps == [8, 10]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, tmp_path: Path, straight: tuple[Toy, Path]
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, die_at=7)
    last = tmp_path / "last.ckpt"
    data = bytearray(last.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - b for b in data[middle : middle + 64])
    last.write_bytes({"cut": data[:middle], "flipped": data, "empty": b""}[damage])
    assert find_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    same_run(fit(tmp_path)[0], tmp_path, straight)


def test_a_checkpoint_with_fewer_files_than_processes_is_never_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS another node may still have its part to itself: the good one before it must stay."""
    (tmp_path / "fsdp2-rank-0.ckpt").write_bytes(b"x")
    monkeypatch.setattr(checkpointing, "world_size", lambda: 2)
    with pytest.raises(RunFailed, match=r"of 2 processes must have as many files, got 1"):
        checkpointing._close(tmp_path)
    assert not (tmp_path / "files.json").exists()


def test_a_folder_is_whole_where_every_process_can_read_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    for rank in (0, 1):
        torch.save({"a": torch.arange(100)}, folder / f"fsdp2-rank-{rank}.ckpt")
    monkeypatch.setattr(checkpointing, "world_size", lambda: 2)
    checkpointing._close(folder)
    monkeypatch.setattr(checkpointing, "SEEN_S", 0.0)
    data = bytearray((folder / "fsdp2-rank-1.ckpt").read_bytes())
    data[300:340] = bytes(40)
    (folder / "fsdp2-rank-1.ckpt").write_bytes(data)
    for rank, readable in ((0, True), (1, False)):
        monkeypatch.setattr(checkpointing, "rank", lambda r=rank: r)
        assert checkpointing._is_readable(folder) is readable
    monkeypatch.undo()
    assert find_checkpoint(tmp_path) is None


def test_another_process_waits_until_it_sees_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last.ckpt"
    monkeypatch.setattr(checkpointing, "world_size", lambda: 2)
    monkeypatch.setattr(checkpointing, "rank", lambda: 1)
    monkeypatch.setattr(checkpointing, "SEEN_S", 0.0)
    assert not checkpointing._is_readable(folder)
    monkeypatch.setattr(checkpointing, "SEEN_S", 30.0)

    def appears(_: float) -> None:
        folder.mkdir()
        for rank in (0, 1):
            torch.save({}, folder / f"fsdp2-rank-{rank}.ckpt")
        checkpointing._close(folder)

    monkeypatch.setattr(checkpointing.time, "sleep", appears)
    assert checkpointing._is_readable(folder)


def test_no_checkpoint_is_found_where_none_is(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "absent") is None


def test_all_global_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), float(np.random.randn()), float(torch.rand(())), random.random()

    draw()  # leaves a cached second gaussian in python's and numpy's generators
    torch.save(random_state(), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


def test_checkpoint_interval_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint_every must be >= 1, got 0"):
        Checkpointing(tmp_path, every=0)
