"""How a model is spread over processes, and over how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rlhf_lightning.config.checks import require

STRATEGIES = ("single", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
"""auto: CUDA where it is, else the CPU."""
OFFLOADING = ("fsdp2", "deepspeed_zero2", "deepspeed_zero3")


@dataclass
class StrategyConfig:
    """How a model is spread over `trainer.devices` × `trainer.num_nodes` processes; docs/strategies.md."""

    name: str = "single"
    """single: one process. ddp: all weights in each. deepspeed_zero2: gradients and optimizer states spread.
    fsdp2, deepspeed_zero3: weights too."""
    offload: bool = False
    """Keep what is spread in the host's memory: optimizer states, and with fsdp2 and deepspeed_zero3 the weights.
    Slower; not with single and ddp. Off."""
    timeout_minutes: int = 60
    """Minutes after which a process that waits for another one gives up; habit (PyTorch: 30, NCCL: 10)."""

    def __post_init__(self) -> None:
        rule = f"one of {', '.join(STRATEGIES)}"
        require(self.name in STRATEGIES, "strategy.name", rule, self.name)
        require(
            not self.offload or self.name in OFFLOADING,
            "strategy.offload",
            f"false where strategy.name is {self.name} (it spreads nothing that could be kept elsewhere)",
            self.offload,
        )
        require(self.timeout_minutes >= 1, "strategy.timeout_minutes", ">= 1", self.timeout_minutes)

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds all weights."""
        return self.name in ("fsdp2", "deepspeed_zero3")


def process_count(trainer: Mapping[str, Any] | None) -> int:
    """Processes of a task: trainer.devices on each of trainer.num_nodes."""
    devices = (trainer or {}).get("devices", 1)
    each = len(cast("list[Any]", devices)) if isinstance(devices, list) else int(devices)
    return each * int((trainer or {}).get("num_nodes", 1))


def check_processes(strategy: StrategyConfig, trainer: Mapping[str, Any]) -> None:
    """Keys of the Trainer that fit the strategy.

    Raises: UserError with the dotted key, what was got and what is allowed.
    """
    devices: Any = trainer.get("devices", 1)
    nodes: Any = trainer.get("num_nodes", 1)
    if strategy.name == "single":
        listed = isinstance(devices, list) and len(cast("list[Any]", devices)) == 1
        rule = "1, or a list of one device, where strategy=single"
        require(listed or devices in (1, "1"), "trainer.devices", rule, trainer.get("devices"))
        require(nodes == 1, "trainer.num_nodes", "1 where strategy=single", nodes)
    else:
        rule = "a number of processes on each node, >= 1"
        require(type(devices) is int and devices >= 1, "trainer.devices", rule, devices)
        require(type(nodes) is int and nodes >= 1, "trainer.num_nodes", ">= 1", nodes)
    accelerator: Any = trainer.get("accelerator", "auto")
    rule = f"one of {', '.join(ACCELERATORS)}"
    require(accelerator in ACCELERATORS, "trainer.accelerator", rule, accelerator)
    precision = trainer.get("precision", "32-true")
    allowed, rule = ("32", "32-true", "bf16-mixed"), "32-true or bf16-mixed"
    if strategy.name.startswith("deepspeed"):
        allowed, rule = ("32", "32-true"), f"32-true where strategy={strategy.name}"
    rule += " (model.dtype says what the weights are)"
    require(str(precision) in allowed, "trainer.precision", rule, precision)


def check_global_batches(processes: int, sizes: Mapping[str, int]) -> None:
    """The global batch is what the settings say, whatever the number of processes: it must divide among them.

    Raises: UserError that names the first key whose size does not.
    """
    for key, size in sizes.items():
        rule = f"a multiple of the {processes} processes (trainer.devices × trainer.num_nodes)"
        require(size % processes == 0, key, rule, size)
