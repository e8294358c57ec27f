"""Ray: many machines, or many GPUs, that one process hands cells to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..cells import Cell
from ..grid import SweepError
from ..isolated import Orders, Report
from ..plan import takes
from .base import importable, job, lost, relay

SETTINGS = {"address": str, "num_cpus": float, "num_gpus": float, "resources": dict}
"""key of ``[ray]`` -> what it holds."""


class Ray:
    """A task a batch, each in a process of its own (``max_calls=1``) and never tried twice (``max_retries=0``).

    The folder of the results must be on a file system that the machines share.

    Args:
        settings: ``address`` of a running cluster, without which one is started here for the time of the sweep; and what a task
            takes: ``num_cpus`` (default: the threads of a process), ``num_gpus`` (default: 1 for cuda), ``resources``.
        cuda: cells compute on "cuda": Ray shows each the GPU that is its own.

    Raises:
        ImportError: Ray is not installed.
        SweepError: a setting is unknown or of the wrong type; of `run`: there is no cluster at ``address``.
    """

    shares_machine = True

    def __init__(self, settings: Mapping[str, Any], *, cuda: bool) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("the executor ray needs Ray: pip install -e '.[ray]'") from error
        for name, value in settings.items():
            if name not in SETTINGS:
                raise SweepError(f"[ray]: unknown key {name!r}; there are: {', '.join(SETTINGS)}")
            if not takes(SETTINGS[name], value) or (SETTINGS[name] is float and value < 0):
                words = {str: "text", float: "number of at least 0", dict: "table"}[SETTINGS[name]]
                raise SweepError(f"[ray] {name}: {value!r} is no {words}")
        self._ray, self._settings, self._cuda = ray, dict(settings), cuda

    def run(self, batches: Sequence[Sequence[Cell]], orders: Orders, tell: Report) -> None:
        """See `Executor`."""
        ray, settings = self._ray, dict(self._settings)
        address = settings.pop("address", None)
        options = {"num_cpus": orders.threads, "num_gpus": 1 if self._cuda else 0} | settings
        own = {"num_cpus": max(1, orders.jobs * options["num_cpus"])} if address is None else {"address": address}
        waiting, running = [list(b) for b in batches], dict[Any, list[Cell]]()
        with importable() as path:
            try:
                ray.init(
                    **own, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                    runtime_env={"env_vars": {"PYTHONPATH": path}},
                )  # fmt: skip
            except (ConnectionError, ValueError) as error:
                raise SweepError(f"[ray]: Ray cannot be reached or started: {error}") from error
        task = ray.remote(max_calls=1, max_retries=0, **options)(job)
        try:
            while waiting or running:
                while waiting and len(running) < orders.jobs:
                    batch = waiting.pop(0)
                    running[task.remote(batch, orders)] = batch
                    tell("start", batch[0], {})
                ended, _ = ray.wait(list(running), num_returns=1)
                batch = running.pop(ended[0])
                try:
                    told = ray.get(ended[0])
                except ray.exceptions.RayError as error:
                    if rest := lost(batch, f"{type(error).__name__}: {str(error).splitlines()[0]}", orders, tell):
                        waiting.append(rest)
                else:
                    relay(batch, told, tell)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            ray.shutdown()
