"""The trials on TensorBoard's HPARAMS page: `tensorboard --logdir SWEEP/tensorboard`.

    tensorboard/0007/    the trial's parameters, state and objectives, and what it reported to the pruner

A trial's runs have summaries of their own, of every setting of a stage; these here have what was searched, a row for
each trial that has ended.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import temporary_name
from rlhf_lightning.sweeps.child import label

FOLDER = "tensorboard"


def write_trials(folder: Path, trials: Iterable[Any], objectives: Sequence[str]) -> None:
    """Write what is not there yet; a trial in a final state never changes."""
    for trial in trials:
        place = folder / FOLDER / label(trial.number)
        if not trial.state.is_finished() or place.exists():
            continue
        place.parent.mkdir(exist_ok=True)
        temporary = temporary_name(place)
        try:
            _write(temporary, trial, objectives)
            os.replace(temporary, place)
        except OSError:
            if not place.exists():  # another process had the same in hand
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(place: Path, trial: Any, objectives: Sequence[str]) -> None:
    # by tensorboard's own parts: torch's writer would load torch
    from tensorboard.plugins.hparams import api_pb2, summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    known: Any = api_pb2  # generated: its names are not visible to type checkers
    ended = {"COMPLETE": known.STATUS_SUCCESS, "FAIL": known.STATUS_FAILURE}
    status = ended.get(trial.state.name, known.STATUS_UNKNOWN)
    start, end = (
        None if time is None else time.timestamp()
        for time in (trial.datetime_start, trial.datetime_complete)
    )
    parameters = {key: _plain(value) for key, value in trial.params.items()}
    # the state is among them, so that the page can filter by it
    named = {**parameters, "state": trial.state.name}
    values = trial.values if trial.state.name == "COMPLETE" else []
    writer = EventFileWriter(str(place))
    try:
        begun = summary_v2.hparams_pb(named, f"trial {trial.number}", start)
        _add(writer, begun, end)
        for name, value in zip(objectives, values, strict=False):
            _scalar(writer, name, value, 0, end)
        for step, value in sorted(trial.intermediate_values.items()):
            _scalar(writer, "pruner/reported", value, step, end)
        _add(writer, _session_end(status, end), end)
    finally:
        writer.close()


def _session_end(status: Any, end: float | None) -> Any:
    # tensorboard's own function for it asks for TensorFlow
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    proto: Any = summary_pb2
    data: Any = plugin_data_pb2
    info = data.SessionEndInfo(status=status, end_time_secs=end or 0.0)
    described = metadata.create_summary_metadata(data.HParamsPluginData(session_end_info=info))
    name = metadata.SESSION_END_INFO_TAG
    null = metadata.NULL_TENSOR
    return proto.Summary(value=[proto.Summary.Value(tag=name, metadata=described, tensor=null)])


def _scalar(writer: Any, name: str, value: float, step: int, time: float | None) -> None:
    from tensorboard.compat.proto import summary_pb2

    proto: Any = summary_pb2
    _add(
        writer, proto.Summary(value=[proto.Summary.Value(tag=name, simple_value=value)]), time, step
    )


def _add(writer: Any, summary: Any, time: float | None, step: int = 0) -> None:
    from tensorboard.compat.proto import event_pb2

    proto: Any = event_pb2
    writer.add_event(proto.Event(summary=summary, wall_time=time or 0.0, step=step))


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
