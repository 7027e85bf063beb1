"""Stands in for `rlhf` where only what happens around it is tested: real claims, signals and exit codes, no torch.

Its training is a chain of hashes, a step each: the last one proves that every step was made once, in order.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import yaml

from rlhf_lightning.errors import Interrupted, RunFailed
from rlhf_lightning.runs import claim, graceful_signals
from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.sweeps.child import announce

STEPS = int(os.environ.get("FAKE_STEPS", "60"))
STEP_S = 0.1
CHECKPOINT_EVERY = 10


def chain(weights: str, step: int) -> str:
    """One step of the training."""
    return hashlib.sha256(f"{weights}/{step}".encode()).hexdigest()


def straight(seed: int, steps: int = STEPS) -> str:
    """The weights of a run that nothing disturbs."""
    weights = str(seed)
    for step in range(steps):
        weights = chain(weights, step)
    return weights


def run_of(outputs: Path, seed: int) -> Path:
    return outputs / "fake" / f"s{seed}"


def main(argv: list[str]) -> int:
    assert argv[0] == "--config-dir" and argv[2:] == ["--config-name", "config"], argv
    config = yaml.safe_load((Path(argv[1]) / "config.yaml").read_text())
    restarts = os.environ.get("SLURM_RESTART_COUNT")
    seed, outputs = config["seed"], Path(config["outputs"])
    run_dir = run_of(outputs, seed)
    announce(run_dir)
    try:
        with (
            graceful_signals() as stop,
            claim(
                run_dir, task="fake", name="fake", seed=seed, identity={"seed": seed},
                config_yaml="", overrides=[], say=print, stop=stop,
            ) as run,
        ):  # fmt: skip
            if run.finished:
                return 0
            run.checkpoints.mkdir(exist_ok=True)
            checkpoint = run.checkpoints / "last.json"
            found = read_json(checkpoint) or {"step": 0, "weights": str(seed)}
            step, weights = found["step"], found["weights"]
            print(f"begins at step {step} on {os.environ.get('SLURMD_NODENAME')}", flush=True)
            while step < STEPS:
                weights, step = chain(weights, step), step + 1
                time.sleep(STEP_S)
                while str(step) == os.environ.get("FAKE_WAITS_AT") and not restarts:
                    time.sleep(STEP_S)
                if str(seed) in os.environ.get("FAKE_BAD_SEEDS", "").split():
                    raise RunFailed(f"step {step}: the loss is nan")
                if step % CHECKPOINT_EVERY == 0 or stop.requested:
                    run.update()  # not if another process owns it by now
                    write_json(checkpoint, {"step": step, "weights": weights})
                    print(f"checkpoint of step {step}", flush=True)
                stop.check()
            run.artifact.mkdir(exist_ok=True)
            (run.artifact / "weights").write_text(weights)
            run.finish({"fake/steps": step, "fake/seed": seed})
    except Interrupted as error:
        print(f"rlhf: {error}", flush=True)
        return 128 + error.signum
    except RunFailed as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
