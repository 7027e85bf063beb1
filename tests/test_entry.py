"""The command: exit codes, one-line errors, multirun, re-running a saved config; no directory that nobody asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlhf_lightning.__main__ as entry
from rlhf_lightning.__main__ import flags_first, quoted_prompt, saved_config_first
from rlhf_lightning.compose import compose, conf_dir

CONFIG_ERROR_LIMIT_S = 6.0
"""Three on a quiet machine."""

STUB = '''
import json, sys, types
from rlhf_lightning.compose import saved_config
from rlhf_lightning.errors import Interrupted, RunFailed, UserError

def run_task(root, *, overrides):
    """Ends in the way that the seed says."""
    ends = {7: UserError("data is empty"), 8: RunFailed("loss is NaN"), 9: Interrupted(15), 10: KeyError("bug"),
            11: OSError(28, "No space left on device", "here")}
    if root.seed in ends:
        raise ends[root.seed]
    heavy = sorted({"torch", "lightning", "transformers"} & set(sys.modules))
    print(json.dumps({"seed": root.seed, "kl_coef": root.ppo.kl_coef, "overrides": overrides, "heavy": heavy}))
    open("config.yaml", "w").write(saved_config(root))
    return {}

sys.modules["rlhf_lightning.pipeline"] = types.SimpleNamespace(run_task=run_task)
from rlhf_lightning.__main__ import main
main()
'''


def rlhf(cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with a stage runner that only reports; everything before it is the real thing."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA")}
    return subprocess.run(
        [sys.executable, "-c", STUB, *args],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_gets_the_checked_config_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "seed=3")
    assert done.returncode == 0, done.stderr
    assert '"seed": 3' in done.stdout
    assert '"overrides": ["seed=3"], "heavy": []' in done.stdout
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["seed=7"], 2, "error: data is empty"),
        (["seed=8"], 1, "error: loss is NaN"),
        (
            ["seed=11"],
            1,
            "error: No space left on device: here; with room the same command continues",
        ),
        (["seed=9"], 143, "rlhf: stopped by SIGTERM; the same command continues"),
        (["model=nope"], 2, "error: model must be one of debug, gpt2, "),
        (["ppo.kl_coef=-1"], 2, "error: ppo.kl_coef must be >= 0, got -1.0"),
        (["-m", "seed=9,1"], 143, "rlhf: stopped by SIGTERM; the same command continues"),
    ],
)
def test_each_end_has_its_exit_code_and_one_line(
    tmp_path: Path, args: list[str], code: int, line: str
) -> None:
    done = rlhf(tmp_path, *args)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(line)
    if "-m" not in args:
        assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_bug_shows_its_traceback_and_full_error_shows_every_one(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "seed=10")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    done = rlhf(tmp_path, "seed=7", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_in_a_multirun_bad_jobs_are_reported_and_the_others_finish(tmp_path: Path) -> None:
    # seed=x cannot be composed, 7 is refused by the data, 8 fails while it runs, kl_coef=-1 is out of range
    done = rlhf(tmp_path, "-m", "seed=1,x,7,8,2", "ppo.kl_coef=0.1,-1")
    assert done.returncode == 1
    assert done.stdout.count('"seed"') == 2
    assert "error: seed=x ppo.kl_coef=0.1: seed must be an integer, got 'x'" in done.stderr
    assert "error: seed=7 ppo.kl_coef=0.1: data is empty" in done.stderr
    assert "error: seed=8 ppo.kl_coef=0.1: loss is NaN" in done.stderr
    assert "error: seed=1 ppo.kl_coef=-1: ppo.kl_coef must be >= 0, got -1.0" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 8 of 10 jobs failed"
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_sweep_file_is_a_multirun_whose_keys_the_command_line_replaces(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "sweeps=kl", "seed=5", "ppo.kl_coef=0.3,0.4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"seed": 5') == 2
    assert '"kl_coef": 0.4' in done.stdout


def test_a_saved_config_runs_again_and_is_still_checked(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert rlhf(tmp_path / "run", "ppo.kl_coef=0.7").returncode == 0
    done = rlhf(tmp_path, "--config-dir", "run", "--config-name", "config", "seed=4")
    assert done.returncode == 0, done.stderr
    assert '"seed": 4, "kl_coef": 0.7' in done.stdout
    done = rlhf(tmp_path, "--config-dir=run", "-cn", "config", "ppo.kl_coeff=4")
    assert done.returncode == 2
    assert "did you mean ppo.kl_coef?" in done.stderr


def test_a_typo_in_an_experiment_file_names_key_and_file(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\nppo: {kl_coeff: 1}\n")
    (folder / "target.yaml").write_text("# @package _global_\nsft: {optimizer: {lrr: 1}}\n")
    (folder / "syntax.yaml").write_text("# @package _global_\nppo: {kl_coef: 1\nseed: 2\n")
    (folder / "kind.yaml").write_text("# @package _global_\nppo: {kl_coef: much}\n")
    expected = {
        "typo": "ppo.kl_coeff must be a known setting, got an unknown key in experiment/typo.yaml; did you mean",
        "target": "sft.optimizer.lrr must be a parameter of torch.optim.AdamW, got 'lrr'; did you mean lr?",
        "syntax": "syntax.yaml, line 3 must be YAML",
        "kind": "ppo.kl_coef must be a number, got 'much' in experiment/kind.yaml",
    }
    for name, line in expected.items():
        done = rlhf(tmp_path, "--config-dir", "mine", f"experiment={name}")
        assert done.returncode == 2
        assert line in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args", [["--help"], ["ppo.kl_coeff=1"], ["+sft.optimizer.lrr=1"], ["model=x"]]
)
def test_help_and_config_errors_are_quick(tmp_path: Path, args: list[str]) -> None:
    start = time.monotonic()
    done = rlhf(tmp_path, *args)
    assert time.monotonic() - start < CONFIG_ERROR_LIMIT_S
    assert done.returncode == (0 if args == ["--help"] else 2)


def test_help_says_what_it_is_and_lists_tasks_and_groups(tmp_path: Path) -> None:
    text = rlhf(tmp_path, "--help").stdout
    for part in ("InstructGPT", "rlhf task=sft", "ppo: default, instructgpt, tldr", "sweeps: kl"):
        assert part in text


def test_cfg_job_prints_the_tree(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "--cfg", "job", "-p", "ppo", "ppo.kl_coef=0.25")
    assert done.returncode == 0
    assert "kl_coef: 0.25" in done.stdout


def test_the_shell_completes_groups(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "--shell-completion", "query=bash", COMP_LINE="rlhf ppo=", COMP_POINT="9")
    assert "ppo=instructgpt" in done.stdout
    assert "complete" in rlhf(tmp_path, "--shell-completion", "install=bash").stdout


def test_task_runs_prints_a_table(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "task=runs")
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout


def test_only_a_folder_with_the_named_config_becomes_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    given = ["--config-dir", str(tmp_path), "-cn", "config", "seed=1"]
    ours = str(conf_dir())
    expected = [
        "--config-path",
        str(tmp_path),
        "--config-name",
        "config",
        "--config-dir",
        ours,
        "seed=1",
    ]
    assert saved_config_first(given) == expected
    other = ["--config-dir", str(tmp_path), "--config-name", "other"]
    assert saved_config_first(other) == other
    assert saved_config_first(["seed=1"]) == ["seed=1"]


def test_a_flag_may_stand_among_the_overrides() -> None:
    assert flags_first(["task=sft", "-m", "seed=0,1"]) == ["-m", "task=sft", "seed=0,1"]
    assert flags_first(["task=sft", "seed=0"]) == ["task=sft", "seed=0"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, fox! What's up?",
        'say "hi"',
        '"Hi", he said',
        "a: {b} [c], d=e",
        "end\\",
        '\\"x\\\\"',
        "two\nlines",
        "what does ${x} cost, ${oc.env:HOME}",
        "\\${x} and $x",
    ],
)
def test_a_prompt_needs_no_quotes_of_hydra(text: str) -> None:
    (item,) = quoted_prompt([f"prompt={text}"])
    assert compose([item]).prompt == text


def test_a_prompt_that_is_quoted_already_null_or_swept_stays() -> None:
    for argv in (["prompt='a, b'"], ["prompt=null"], ["-m", "prompt=a,b"], ["seed=1,2"]):
        assert quoted_prompt(argv) == argv


@pytest.mark.parametrize(
    ("percent", "given", "policy"),
    [(5.0, None, None), (60.0, None, "passive"), (60.0, "active", "active")],
)
def test_threads_sleep_while_they_wait_only_where_others_use_the_machine(
    monkeypatch: pytest.MonkeyPatch, percent: float, given: str | None, policy: str | None
) -> None:
    # one of its own: what the command sets is not for the tests that follow
    environ = {} if given is None else {"OMP_WAIT_POLICY": given}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(entry.psutil, "cpu_percent", lambda interval: percent)
    entry._choose_how_threads_wait()
    assert environ.get("OMP_WAIT_POLICY") == policy
