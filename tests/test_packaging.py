"""The wheel carries the config groups, and the command works from anywhere."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip would lay it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def command(site: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The command of the wheel in `site`, away from the checkout; -P keeps the working directory off the path."""
    start = (
        "import rlhf_lightning.__main__ as m, sys; sys.stderr.write(m.__file__ + chr(10)); m.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-P", "-c", start, *args],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--help"], "sweeps: kl"),
        (["--cfg", "job", "experiment=debug"], "name: debug"),
        (["--cfg", "hydra", "sweeps=kl"], "ppo.kl_coef"),
        (["--cfg", "hydra"], "hydra_plugins.rlhf_local_sweeper.LocalSweeper"),
    ],
)
def test_the_wheel_runs_from_any_directory(
    installed: Path, tmp_path: Path, args: list[str], expected: str
) -> None:
    done = command(installed, tmp_path, *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed))
    assert expected in done.stdout


def test_the_wheel_holds_real_files_and_nothing_else(installed: Path) -> None:
    names = {path.relative_to(installed).parts[0] for path in installed.iterdir()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"rlhf_lightning", "hydra_plugins"}
    sweep = installed / "rlhf_lightning" / "conf" / "sweeps" / "kl.yaml"
    assert sweep.is_file()
    assert not sweep.parent.is_symlink()
    shipped = {
        p.relative_to(installed / "rlhf_lightning/conf")
        for p in (installed / "rlhf_lightning/conf").rglob("*.yaml")
    }
    assert {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")} <= shipped


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and its locked dependencies, and nothing of this one."""
    folder = tmp_path_factory.mktemp("environment")
    # with build isolation: nothing but what pyproject.toml names may be needed
    build = ["wheel", ".", "--no-deps", "-q", "-w", str(folder)]
    pip(sys.executable, *build)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    pip(str(folder / "venv/bin/python"), "install", "-q", "-c", "constraints.txt", str(wheel))
    return folder / "venv"


def pip(python: str, *args: str) -> None:
    """pip from the checkout; the test is skipped where no package index answers."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *args]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    offline = ("Failed to establish a new connection", "Temporary failure in name resolution")
    if done.returncode and any(reason in done.stderr for reason in offline):
        pytest.skip(f"pip reaches no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_works_in_an_environment_of_its_own(environment: Path, tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYDRA"))}

    def said(*args: str) -> str:
        done = subprocess.run(
            [str(environment / "bin/rlhf"), *args],
            cwd=tmp_path,
            env={**kept, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "sweeps: kl" in said("--help")
    # before the run: nothing is there to be reused
    plans = said("-m", "seed=0,1", "experiment=debug", "dry_run=true")
    assert plans.count("evaluate           new") == 2
    sweep = said("sweeps=kl", "experiment=debug", "dry_run=true")
    assert sweep.count("evaluate           new") >= 4
    assert list(tmp_path.iterdir()) == []
    said("experiment=debug")
    report = (tmp_path / "outputs/latest/report.html").read_text()
    assert "<style>" in report and "ppo" in report  # template and style sheet are in the wheel
    assert said("experiment=debug", "dry_run=true").count(" reused ") == 5


def test_constraints_are_exact_and_exclude_the_malware() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert locked["lightning"] not in ("2.6.2", "2.6.3")
    assert re.search(
        r'"lightning==[\d.]+,!=2\.6\.2,!=2\.6\.3"', (ROOT / "pyproject.toml").read_text()
    )
    assert "+" not in "".join(locked.values())
    for name in importlib.metadata.requires("rlhf-lightning") or []:
        package = re.split(r"[^\w.-]", name)[0]
        if "extra ==" not in name:
            assert normal(package) in {normal(key) for key in locked}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
