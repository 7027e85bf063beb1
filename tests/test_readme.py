"""What README.md tells people to type: every command composes, every Python snippet runs."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning import compose
from rlhf_lightning.pipeline import run_task
from tests.harness import ROOT, only

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = [code for language, code in FENCE.findall(README) if language == "python"]
YAML = [code for language, code in FENCE.findall(README) if language == "yaml"]

ANSWERED_BY_HYDRA = ("--help", "--cfg", "-sc", "--shell-completion")
"""Flags that print and leave; test_entry.py has them."""

FRAGMENTS = ("def run(job: Job)",)
"""Python that shows a shape and is not meant to be run."""


def commands() -> list[str]:
    """Every `rlhf ...` of an indented or a fenced block, or between backticks, without its comment."""
    prose = FENCE.sub("", README)
    blocks = re.findall(r"^ {4}(.*)$", prose, re.MULTILINE)
    blocks += [
        line
        for language, code in FENCE.findall(README)
        for line in code.splitlines()
        if language in ("", "sh", "bash")
    ]
    inline = re.findall(r"`(rlhf [^`]+)`", re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE))
    comments = [line.partition("#")[2].strip() for line in "\n".join(YAML).splitlines()]
    found = [line.split("  #")[0].split(" #")[0].strip() for line in (*blocks, *inline)]
    found += [c[c.index("rlhf ") :] for c in comments if "rlhf " in c]
    shown = re.compile(r"^(\w+=\S+ )*(\.venv/bin/)?rlhf( |$)")
    return sorted({line for line in found if shown.match(line)})


COMMANDS = commands()
COMPOSED = [line for line in COMMANDS if not any(f in line.split() for f in ANSWERED_BY_HYDRA)]
IN_PROCESS = [line for line in COMPOSED if "--config-dir" not in line]
WITH_FOLDER = [line for line in COMPOSED if "--config-dir" in line]


def words_of(line: str) -> list[str]:
    words = shlex.split(line)
    return words[1 + next(i for i, word in enumerate(words) if word.endswith("rlhf")) :]


@pytest.fixture
def here(
    finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """A working directory as the text supposes it, and what its placeholders stand for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outputs").mkdir()
    first = only(finished_pipeline / "pipeline")
    (tmp_path / "outputs" / "latest").symlink_to(first)
    _write_folder(tmp_path / "my_folder")
    shutil.copy(tmp_path / "my_folder" / "ranked.jsonl", tmp_path / "my_pairs.jsonl")
    for code in SNIPPETS:
        name = re.match(r"# (\w+\.py)\n", code)
        if name:
            (tmp_path / name[1]).write_text(code)
    for code in YAML:
        name = re.match(r"# (\S+\.yaml)", code)
        if name:
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(code)
    return {task: (first / "round-1" / task).resolve() for task in ("sft", "reward", "ppo")}


def _write_folder(folder: Path) -> None:
    folder.mkdir()
    turns = [[{"role": "user", "content": f"Say {i}."}] for i in range(200)]
    for name, rows in {
        "spoken": [{"messages": [*t, {"role": "assistant", "content": "I do."}]} for t in turns],
        "ranked": [{"prompt": t, "completions": ["Yes.", "No."], "ranks": [0, 1]} for t in turns],
        "asked": [{"prompt": t} for t in turns],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def filled(word: str, here: dict[str, Path]) -> str:
    """An argument with its placeholder replaced by what the key asks for."""
    key, equals, value = word.partition("=")
    run = here["reward" if key.endswith("reward") else "sft"]
    value = re.sub(r"^RUN\b", str(run), value)
    value = re.sub(r"^FOLDER(_OR_HUB_ID)?$", str(run / "artifact"), value)
    value = re.sub(r"^PATH$", str(Path.cwd() / "path"), value)
    return key + equals + value


def jobs(words: list[str]) -> list[list[str]]:
    """The override lists of a command: one, or with -m every combination."""
    flags = {word for word in words if word.startswith("-")}
    assert flags <= {"-m"}, f"flags that this test does not know: {flags}"
    parsed = OverridesParser.create().parse_overrides([w for w in words if w not in flags])
    choices = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def test_the_text_has_commands_of_every_kind() -> None:
    assert len(IN_PROCESS) >= 25
    assert len(WITH_FOLDER) >= 2
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("line", IN_PROCESS)
def test_a_command_of_the_text_composes_and_can_be_planned(
    line: str, here: dict[str, Path]
) -> None:
    if "logger=wandb" in line:
        pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    combinations = jobs([filled(word, here) for word in words_of(line)])
    for overrides in (combinations[0], *combinations[1:][-1:]):  # the first and the last
        root = compose.check(compose.compose(overrides))
        if root.task != "runs":
            assert run_task(replace(root, dry_run=True), overrides=overrides) == {}
    assert sorted(p.name for p in Path("outputs").iterdir()) == ["latest"]


@pytest.mark.parametrize("line", WITH_FOLDER)
def test_a_command_with_a_folder_of_options_is_planned(line: str, here: dict[str, Path]) -> None:
    words = [re.sub(r"^RUN\b", str(here["ppo"]), word) for word in words_of(line)]
    wide = Path("conf_of_mine/model/wide.yaml")
    wide.parent.mkdir(parents=True, exist_ok=True)
    wide.write_text((ROOT / "conf/model/small.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lightning", *words, "dry_run=true", "outputs=elsewhere"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ppo" in done.stdout and "new" in done.stdout


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.splitlines()[0][:40])
def test_a_snippet_of_the_text_runs(
    code: str, here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile(code, "README.md", "exec")
    if any(mark in code for mark in FRAGMENTS):
        return
    small = code.replace("compose([", 'compose(["experiment=debug", ')
    script = Path("snippet.py")
    script.write_text(small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader sees them; they are not what is tested here
        runpy.run_path(str(script))
    for folder in re.findall(r'save_pretrained\("(.+?)"\)', code):
        assert (Path(folder) / "model.safetensors").is_file()


def test_the_data_source_of_the_text_trains(here: dict[str, Path]) -> None:
    from tests.harness import rlhf_here

    (line,) = [line for line in COMMANDS if "sums.Sums" in line]
    metrics = rlhf_here(*words_of(line))
    assert metrics["sft/examples"] == 128  # of experiment=debug, as the harness runs it
    assert (only(Path("outputs/sft")) / "artifact" / "model.safetensors").is_file()
