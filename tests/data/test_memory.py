"""A file's rows stay on disk."""

import json
import subprocess
import sys

import pytest

ROWS = 40_000
GIGABYTE = 2**30

CODE = """
import sys, threading, time
import psutil
from rlhf_lightning.config import MixConfig, SourceConfig
from rlhf_lightning.data.mixture import Mixture

process = psutil.Process()
peak = before = process.memory_info().rss
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.005)

thread = threading.Thread(target=watch)
thread.start()
mix = Mixture(MixConfig(name="t", sources={"a": SourceConfig(path=sys.argv[1])}), 0)
for kind in ("demonstration", "prompt"):
    for record in mix.records(kind, "train", 5_000):
        pass
done = True
thread.join()
print(mix.size("demonstration", "train"), before, peak - before)
"""


@pytest.mark.slow
def test_a_gigabyte_of_rows_needs_far_less_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(ROWS):
            words = f"word{i} " * 40
            file.write(json.dumps({"prompt": f"Question {i}: {words}", "completion": words}) + "\n")
    code = [sys.executable, "-c", CODE, str(path)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    size, before, growth = map(int, done.stdout.split())
    assert size == pytest.approx(0.9 * ROWS, rel=0.01)
    row_bytes = path.stat().st_size / ROWS
    # every row is two records: a demonstration and its prompt
    a_gigabyte = before + growth * (GIGABYTE / row_bytes / ROWS)
    assert growth / ROWS < 400, f"{growth / ROWS:.0f} bytes a row"
    assert a_gigabyte < 0.9 * GIGABYTE, f"{a_gigabyte / 2**20:.0f} MB for a gigabyte of such rows"


MEASURED = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", "rlhf_lightning", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
def test_sft_on_a_gigabyte_of_rows_stays_below_one_and_a_half(tmp_path):
    """The whole command: torch, Lightning, the index, the loader and a model of a megabyte."""
    path, row = tmp_path / "rows.jsonl", '{"prompt": "Question %d: %s", "completion": "%s"}\n'
    words = "a word and another one " * 20
    with path.open("w") as file:
        number = 0
        while file.tell() < GIGABYTE:
            file.writelines(row % (number + i, words, words) for i in range(10_000))
            number += 10_000
    command = ["experiment=debug", "task=sft", "sft.init.policy=none", "mix=files"]
    command += [f"mix.sources.a.path={path}", f"outputs={tmp_path / 'outputs'}"]
    command += ["sft.max_length=1200", "model.context_length=1200", "mix.over_long=cut"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024
    assert peak < 1.5 * GIGABYTE, f"{peak / 2**20:.0f} MB"
