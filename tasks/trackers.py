"""Who is told of a stage's training curve while it grows: TensorBoard files always, other trackers by their own libraries.

What trackers write lies beside the results or elsewhere; it never enters them. A tracker that fails is told once and left
out: a stage does not fail because somebody's server is down.
"""

import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from configs import ConfigError
from configs.runtime import Runtime
from tasks.tensorboard import EventFile

PROJECT = "roundhouse"  # the libraries' own environment variables go before it
FOLDER = "tensorboard"  # in _beside


class Tracker(Protocol):
    """One run of an outside tracker."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the curve."""

    def close(self, done: bool) -> None:
        """The stage has ended; done: with a result."""


class Wandb:
    """Weights & Biases: a run a stage; WANDB_* decide where it goes."""

    def __init__(self, label: str, key: str, recipe: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")  # Any: no stubs without the library
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=label, id=key.replace("/", "-"), resume="allow",
            config=dict(recipe), reinit="create_new",
        )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """MLflow: a run a stage in one experiment; MLFLOW_TRACKING_URI decides where."""

    def __init__(self, label: str, key: str, recipe: Mapping[str, Any]) -> None:
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client: Any = importlib.import_module("mlflow").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"mlflow.runName": label, "roundhouse.key": key}
        self._run: str = self._client.create_run(experiment, tags=tags).info.run_id
        for field, value in recipe.items():
            self._client.log_param(self._run, field, json.dumps(value)[:500])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if done else "FAILED")


TRACKERS: dict[str, Callable[[str, str, Mapping[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


def check(runtime: Runtime) -> None:
    """Raise ConfigError unless the library of every tracker that the runtime names is installed."""
    for name in runtime.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"runtime.trackers: {name} is not installed here; pip install {name}, or leave it out")


class Curve:
    """Everybody who is told of one stage's curve."""

    def __init__(
        self,
        beside: Path,
        runtime: Runtime,
        label: str,
        key: str,
        recipe: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._file, self._say = EventFile(beside / FOLDER), say
        self._open: dict[str, Tracker] = {}
        self._wanted: Sequence[str] = runtime.trackers
        self._about = (label, key, recipe)
        self._begun = False

    def known(self, path: Path) -> None:
        """Begin with the rows that a save point holds: an earlier process has told of them."""
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._file.write(int(row.pop("step")), row)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Tell of one row."""
        self._file.write(step, values)
        if not self._begun:  # a stage without a curve is no run to anybody
            self._begun = True
            for name in self._wanted:
                self._try(name, lambda name=name: self._open.update({name: TRACKERS[name](*self._about)}))  # type: ignore[misc]
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.write(step, values))  # type: ignore[misc]

    def close(self, done: bool) -> None:
        """Tell that the stage has ended."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.close(done))  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a library of somebody else's: whatever it raises, the work goes on
            self._open.pop(name, None)
            self._say(f"tracker {name} failed ({' '.join(str(error).split())[:200]}); the stage goes on without it")
