"""What jobs get: checked before anything is submitted, and never a piece of shell."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.config import PipelineSlurmConfig, SlurmConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.jobs import require_processes
from rlhf_lightning.slurm.submit import _as_outside_of_a_job, parameters, require_script
from tests.harness import rlhf_here
from tests.slurm.jobs_here import root_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partition": "a b"}, "slurm.partition must be a name of letters, digits and any of _ . - , @ : + /, got 'a b'"),
        ({"account": "$(id)"}, "slurm.account must be a name of letters, digits and any of _ . - , @ : + /, got '$(id)'"),
        ({"constraint": "a;b"}, "slurm.constraint must be features joined by & | , * ( ) [ ], got 'a;b'"),
        ({"time_min": 0}, "slurm.time_min must be an integer >= 1, got 0"),
        ({"max_requeues": -1}, "slurm.max_requeues must be an integer >= 0, got -1"),
        ({"mem_gb": 0}, "slurm.mem_gb must be null or in [1/1024, 1,048,576] GB, got 0"),
        ({"max_parallel": 0}, "slurm.max_parallel must be >= 1, got 0"),
        ({"time_min": 2}, "slurm.signal_before_s must be below slurm.time_min=2 (120 s), got 120"),
        ({"extra": {"signal": "USR2"}}, "slurm.extra must be options of sbatch that have no setting of their own, got 'signal'"),
        ({"extra": {"wrap": "x"}}, "slurm.extra must be options of sbatch that have no setting of their own, got 'wrap'"),
        ({"extra": {"parti": "long"}}, "slurm.extra must be options of sbatch that have no setting of their own, got 'parti'"),
        ({"extra": {"exclude": ["a", "b"]}}, "slurm.extra.exclude must be true, a number or one line of text, got ['a', 'b']"),
        ({"extra": {"exclusive": None}}, "slurm.extra.exclusive must be true, a number or one line of text, got None"),
        ({"mem_gb": float("inf")}, "slurm.mem_gb must be null or in [1/1024, 1,048,576] GB, got inf"),
        ({"mem_gb": 0.0004}, "slurm.mem_gb must be null or in [1/1024, 1,048,576] GB, got 0.0004"),
        ({"gpus_per_node": 4, "tasks_per_node": 8}, "slurm.gpus_per_node must be 0 or >= slurm.tasks_per_node=8, got 4"),
        ({"signal_before_s": 70000, "time_min": 10000}, "slurm.signal_before_s must be <= 65535, got 70000"),
        ({"extra": {"x y": 1}}, "slurm.extra must be options of sbatch that have no setting of their own, got 'x y'"),
        ({"extra": {"comment": "a\nrm"}}, "slurm.extra.comment must be true, a number or one line of text, got 'a\\nrm'"),
    ],
)  # fmt: skip
def test_settings_that_sbatch_would_misread_are_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        SlurmConfig(**given)
    assert str(error.value) == message


def test_a_stage_has_what_its_own_settings_say_and_else_what_all_have() -> None:
    given = {"ppo": {"time_min": 2880, "partition": "big"}, "report": {"gpus_per_node": 0}}
    settings = PipelineSlurmConfig(
        time_min=60, signal_before_s=30, nodes=4, tasks_per_node=8, gpus_per_node=8, stages=given
    )
    ppo, evaluate, report = (settings.of(name) for name in ("ppo", "evaluate", "report"))
    assert (ppo.time_min, ppo.partition, ppo.nodes) == (2880, "big", 4)
    # it trains nothing, but answers with as many processes as the policy was trained in
    assert (evaluate.time_min, evaluate.partition, evaluate.nodes) == (60, None, 4)
    assert (report.nodes, report.tasks_per_node, report.gpus_per_node) == (1, 1, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.slurm.stages.ppo.time_min=0", "pipeline.slurm.stages.ppo.time_min must be an integer >= 1, got 0"),
        ("pipeline.slurm.stages.ppo.time=5", "pipeline.slurm.stages.ppo.time must be one of partition, "),
        ("pipeline.slurm.stages.pppo.nodes=1", "pipeline.slurm.stages must be any of pretrain, sft, reward, ppo, "),
        ("pipeline.slurm.stages.ppo.extra=foo", "pipeline.slurm.stages.ppo.extra must be options of sbatch with their values, got 'foo'"),
        ("pipeline.slurm.stages.ppo.command=rlhf", "pipeline.slurm.stages.ppo.command must be a list of words, got 'rlhf'"),
        ("pipeline.slurm.stages.ppo.max_parallel=2", "pipeline.slurm.stages.ppo.max_parallel must be null: stages wait for each other, got 2"),
        ("pipeline.slurm.qos='a;b'", "pipeline.slurm.qos must be a name "),
        ("pipeline.launch=pbs", "pipeline.launch must be local or slurm, got 'pbs'"),
        ("pipeline.only=round-1/pppo", "pipeline.only must be one of pretrain, round-1/sft, round-1/reward, round-1/ppo, evaluate, got 'round-1/pppo'"),
    ],
)  # fmt: skip
def test_the_message_has_the_whole_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        rlhf_here(f"outputs={tmp_path}", override)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    # nodes, processes and GPUs on each
    [("slurm", (1, 1, 1)), ("slurm_cpu", (1, 1, 0)), ("slurm_node", (1, 8, 8)), ("slurm_multinode", (4, 8, 8))],
)  # fmt: skip
def test_the_presets_are_whole(name: str, expected: tuple[int, int, int]) -> None:
    compose.register()
    with initialize_config_dir(config_dir=str(compose.conf_dir()), version_base="1.3"):
        found = hydra_compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    settings = OmegaConf.to_container(found.hydra.launcher)
    assert isinstance(settings, dict)
    assert settings.pop("_target_") == "hydra_plugins.rlhf_slurm_launcher.SlurmLauncher"
    given = SlurmConfig(**settings)
    assert (given.nodes, given.tasks_per_node, given.gpus_per_node) == expected
    # every key is there to be overridden without a +
    assert set(settings) == {f.name for f in fields(SlurmConfig)}


def test_a_stage_alone_is_launched_by_hydra() -> None:
    with pytest.raises(
        UserError, match=r"^pipeline.launch must be local but in task=pipeline, got 'slurm'$"
    ):
        rlhf_here("task=sft", "pipeline.launch=slurm")


def test_a_job_gets_what_its_processes_take(tmp_path: Path) -> None:
    root = root_of(tmp_path)
    with pytest.raises(UserError) as error:
        require_processes(root, SlurmConfig(tasks_per_node=8, gpus_per_node=8), "hydra.launcher")
    assert str(error.value) == "trainer.devices must be hydra.launcher.tasks_per_node=8, got 1"
    with pytest.raises(UserError) as error:
        require_processes(root, SlurmConfig(nodes=4), "hydra.launcher")
    assert str(error.value) == "trainer.num_nodes must be hydra.launcher.nodes=4, got 1"


def test_jobs_are_submitted_as_outside_of_the_job_that_submits_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """sbatch would take over an allocation's variables, and its own before the script's."""
    given = {
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_CONF": "/etc/slurm.conf",
    }
    given |= {"SBATCH_PARTITION": "slow", "SBATCH_ACCOUNT": "mine", "SRUN_CPUS_PER_TASK": "2"}
    given |= {"SLURM_JWT": "token", "SBATCH_LICENSES": "matlab"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with _as_outside_of_a_job(SlurmConfig(partition="gpu")):
        assert {n: os.environ.get(n) for n in given} == dict.fromkeys(given) | {
            "SLURM_CONF": "/etc/slurm.conf",
            "SLURM_JWT": "token",
            "SBATCH_ACCOUNT": "mine",  # nothing here says another
            "SBATCH_LICENSES": "matlab",
        }
    assert {n: os.environ[n] for n in given} == given
    assert "SBATCH_PARTITION: not handed on" in caplog.text


def test_the_batch_script_quotes_what_it_is_given(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit.slurm.slurm")
    script = tmp_path / "my env;reboot.sh"
    script.write_text("")
    settings = SlurmConfig(
        partition="gpu", mem_gb=1.5, nodes=2, tasks_per_node=8, gpus_per_node=8, cpus_per_task=4, setup_script=str(script),
        extra={"exclusive": True, "comment": "it's $HOME; `id`"},
    )  # fmt: skip
    require_script(settings, "hydra.launcher")
    given = parameters(settings, name="rlhf-ppo", after=["12", "13_1"])
    lines = submitit._make_sbatch_string(command="python x", folder=tmp_path, **given).splitlines()
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --mem=1536M",  # 1.5 · 1024
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --dependency=afterok:12:13_1",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --exclusive",
        "#SBATCH --comment='it'\"'\"'s $HOME; `id`'",
        f"source '{script}'",
    ):
        assert line in lines, line
    assert not [
        line for line in lines if "wckey" in line
    ]  # a cluster may refuse one that nobody gave
    (srun,) = [line for line in lines if line.startswith("srun ")]
    # one process with the cores of the node's 8 times 4
    assert "--nodes=1 --ntasks=1 --overlap --cpus-per-task=32 python x" in srun


def test_a_script_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError) as error:
        require_script(SlurmConfig(setup_script="no.sh"), "hydra.launcher")
    assert (
        str(error.value)
        == "hydra.launcher.setup_script must be a file, got 'no.sh', which does not exist"
    )
