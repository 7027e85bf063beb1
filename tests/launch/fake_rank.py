"""Stands for a process of a stage: says what its orders' name asks of its rank, without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rlhf_lightning.errors import Interrupted, Pruned, RunFailed, UserError
from rlhf_lightning.launch.orders import Orders, Outcome
from rlhf_lightning.runs.signals import SIGNALS


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    does = dict(item.split("=") for item in Orders.read(folder).name.split(","))[str(rank)]
    (folder.parent / f"started-{rank}").write_text(os.environ["WORLD_SIZE"])
    if does == "ends":
        Outcome("finished", metrics={"rank": float(rank)}).write(folder, rank)
        return
    if does == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "silent":
        raise SystemExit(3)
    if does == "waits":  # as for a process that is gone
        time.sleep(60)
    if does == "stops":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # as a real one, once it listens
        seen: list[int] = []
        signal.signal(signal.SIGUSR1, lambda signum, _frame: seen.append(signum))
        (folder.parent / f"ready-{rank}").touch()
        while not seen:
            time.sleep(0.02)
        Outcome.of(Interrupted(seen[0])).write(folder, rank)
        raise SystemExit(1)
    if does == "late":  # the other one has gone: this is not the reason
        time.sleep(0.5)
    errors = {
        "user": UserError("ppo.x must be 1, got 2"),
        "failed": RunFailed("ppo: iteration 3: the loss is nan"),
        "pruned": Pruned("the KL is 50"),
        "breaks": KeyError("oops"),
        "late": RuntimeError("Connection closed by peer"),
    }
    Outcome.of(errors[does]).write(folder, rank)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
