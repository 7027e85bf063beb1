"""Stands for `rlhf` in a trial: reads the config, leaves a run with a metrics.json, may fail in several ways.

`seed` carries what it should do: that, and not a new key, is what every config has.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.sweeps.child import announce


def main() -> None:
    folder = Path(sys.argv[sys.argv.index("--config-dir") + 1])
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    run = Path(config["outputs"]) / "ppo" / f"fake-{digest}"
    run.mkdir(parents=True, exist_ok=True)
    announce(run)
    if read_json(run / "metrics.json").get("status") == "finished":
        return  # as the real one: a finished run is left alone
    with open(run / "starts.txt", "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    kl_coef = config["ppo"]["kl_coef"]
    record = {"status": "running", "metrics": {}}
    write_json(run / "metrics.json", record)
    # learns from half of what it reaches
    reached = 1 - abs(kl_coef - 0.05)
    rows = [f"{step},{reached * (0.5 + step / 4)}" for step in range(3)]
    curve = "\n".join(["step,val/gold_score", *rows, ""])
    (run / "metrics.csv").write_text(curve, encoding="utf-8")
    behave(os.environ.get("FAKE", ""), folder, run)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    # the best is kl_coef = 0.05; the KL shrinks as the coefficient grows
    metrics = {"ppo/gold_score": reached, "ppo/kl_k1": 1 / (0.01 + kl_coef)}
    if str(Path(folder).name) in os.environ.get("FAKE_NAN", "").split():
        metrics["ppo/gold_score"] = None
    metrics |= {name.replace("ppo/", "ppo/validation/"): value for name, value in metrics.items()}
    write_json(run / "metrics.json", {"status": "finished", "metrics": metrics})


def behave(orders: str, folder: Path, run: Path) -> None:
    """`0002:kill 0003:raise 0004:once 0005:prune`."""
    todo = dict(item.split(":") for item in orders.split())
    kind = todo.get(folder.name, todo.get("all"))
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        write_json(
            run / "metrics.json",
            {"status": "failed", "metrics": {}, "reason": "ValueError: a bad number"},
        )
        sys.exit(1)
    if kind == "last":
        wait_for_others(run, 2)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (run / "stubborn").touch()
    if kind == "mute":
        print("error: nothing could be loaded", file=sys.stderr)
        sys.exit(1)
    if kind == "once" and not (run / "once").exists():
        (run / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "prune":
        write_json(
            run / "metrics.json",
            {"status": "pruned", "metrics": {}, "reason": "val/kl_k1 is 30, above"},
        )
        sys.exit(0)


def wait_for_others(run: Path, count: int) -> None:
    """Until so many other runs have finished; an error if they never do."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        others = [f for f in run.parent.glob("*/metrics.json") if f.parent != run]
        if sum(read_json(file).get("status") == "finished" for file in others) >= count:
            return
        time.sleep(0.05)
    sys.exit("error: the others waited for this one")


if __name__ == "__main__":
    main()
