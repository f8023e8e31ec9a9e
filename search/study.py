"""Optuna studies, in the run's folder or in a storage that several processes share.

In a single process, the sampler works in memory. Every finished trial is appended to ``study.log``, an Optuna journal
that optuna-dashboard can open. A resumed search proposes all policies again, with results from the problem's journal,
so this file is also written again.

In a shared storage, the study is the state. Each process asks it for a trial, evaluates the policy and tells the
result. Before each evaluation it reads the results of the others, so no policy is evaluated twice. If the storage is a
database, processes send heartbeats, and another process takes over the trials of one that died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from amc.config import masked
from amc.errors import BundleError, ConfigError, first_line
from amc.evaluation.problem import Problem, StudyLocation, from_record, to_record
from amc.evaluation.reward import Evaluation
from amc.runtime.files import check_file
from amc.space.sites import Choice

HEARTBEAT, GRACE = 30, 120
"""Seconds between two heartbeats of a process that shares a study, and without one until its trial is given up."""
_RETRIES = 2
_ALREADY_RUNNING = 5
"""How often in a row a trial is given up because another process is evaluating the same policy."""


class Design(ABC):
    """The parameters and objectives of a study, and how they map to policies and evaluations."""

    objectives: tuple[tuple[str, Literal["maximize", "minimize"]], ...] = (("reward", "maximize"),)
    """Name and direction of each objective."""

    def __init__(self, parameters: Mapping[str, FloatDistribution], first: Mapping[str, float]) -> None:
        """``first`` are the parameters of the first trial."""
        self.parameters, self.first = parameters, first

    @abstractmethod
    def choice(self, parameters: Mapping[str, float]) -> Choice:
        """The policy for a trial's parameters."""

    @abstractmethod
    def values(self, evaluation: Evaluation) -> Sequence[float]:
        """The values of an evaluation, one per objective."""


def fill(problem: Problem, evaluations: int, sampler: optuna.samplers.BaseSampler, design: Design) -> None:
    """Run a study of ``evaluations`` trials in the place that ``problem.study`` gives."""
    place = problem.study
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if place is not None and place.shared:
                with _in_one_line(place.url):
                    _together(problem, evaluations, sampler, design, place)
            else:
                _alone(problem, evaluations, sampler, design, place)
    finally:
        optuna.logging.set_verbosity(before)


def _alone(
    problem: Problem,
    evaluations: int,
    sampler: optuna.samplers.BaseSampler,
    design: Design,
    place: StudyLocation | None,
) -> None:
    study = _create(design, sampler)
    kept = _kept(design, place) if place else None
    study.enqueue_trial(dict(design.first))
    for _ in range(evaluations):
        trial = study.ask(dict(design.parameters))
        found = problem.evaluate(design.choice(trial.params))
        _describe(trial, found)
        good = math.isfinite(found.reward)
        finished = study.tell(trial, design.values(found) if good else None, None if good else TrialState.FAIL)
        if kept is not None:
            finished.system_attrs = {}  # internal notes of the sampler
            kept.add_trial(finished)


def _together(
    problem: Problem, evaluations: int, sampler: optuna.samplers.BaseSampler, design: Design, place: StudyLocation
) -> None:
    """Work on a shared study until it has ``evaluations`` evaluations, those of other processes included."""
    with _opening(place.url):
        storage = open_storage(place.url)
    study = _create(design, sampler, storage, place.name)
    _bind(study, place)
    sampler.reseed_rng()  # otherwise all processes would propose the same policies
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(dict(design.first))
    objective = SharedObjective(problem, study, design)
    objective.learn()
    while len(objective.known) < evaluations:
        study.optimize(objective, n_trials=1, catch=(_NoValueError,))
        objective.learn()


class SharedObjective:
    """The objective of a study that other processes share; it reads their results instead of repeating them."""

    def __init__(self, problem: Problem, study: optuna.Study, design: Design) -> None:
        self._problem, self._study, self._design = problem, study, design
        self.known: set[int] = set()
        """Numbers of the trials whose evaluations the problem has."""
        self._given_up = 0

    def __call__(self, trial: optuna.Trial) -> Sequence[float]:
        """The values of a trial. Raises _NoValueError if it failed or another process is evaluating the same policy."""
        design = self._design
        choice = design.choice({n: trial.suggest_float(n, d.low, d.high) for n, d in design.parameters.items()})
        trial.set_user_attr("choice", list(choice))  # before the check: so one of two processes notices
        if self._given_up < _ALREADY_RUNNING and list(choice) in _running(self._study, trial.number):
            self._given_up += 1
            raise _NoValueError
        self._given_up = 0
        self.learn()
        found = self._problem.evaluate(choice)
        _describe(trial, found)
        self.known.add(trial.number)
        if not math.isfinite(found.reward):
            raise _NoValueError
        return design.values(found)

    def learn(self) -> None:
        """Add the evaluations of other processes to the problem."""
        _learn(self._problem, self._study, self.known)


class _NoValueError(Exception):
    """Ends a trial without a value."""


def _create(
    design: Design,
    sampler: optuna.samplers.BaseSampler | None,
    storage: BaseStorage | None = None,
    name: str | None = None,
) -> optuna.Study:
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        directions=[direction for _, direction in design.objectives],
        load_if_exists=storage is not None,
    )
    if [d.name.lower() for d in study.directions] != [direction for _, direction in design.objectives]:
        raise ConfigError(f"the study '{name}' has other objectives: use another --study-name.")
    if storage is not None:
        study.set_metric_names([objective for objective, _ in design.objectives])
    return study


def _kept(design: Design, place: StudyLocation) -> optuna.Study:
    for stale in (place.url, f"{place.url}.lock"):  # a process that was killed leaves its lock
        Path(stale).unlink(missing_ok=True)
    return _create(design, None, open_storage(place.url), place.name)


def _describe(trial: optuna.Trial, found: Evaluation) -> None:
    for key, value in to_record(found).items():
        if value is not None:
            trial.set_user_attr(key, value)


def _learn(problem: Problem, study: optuna.Study, known: set[int]) -> None:
    """Add the evaluations that other processes have written to the study to the problem."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        if trial.number not in known and (found := _found(trial)) is not None:
            known.add(trial.number)
            problem.learn(found)


def _found(trial: FrozenTrial) -> Evaluation | None:
    """The evaluation of a finished trial; None if it ended without one."""
    if "costs" not in trial.user_attrs:
        return None
    try:
        return from_record(trial.user_attrs)
    except BundleError:
        raise ConfigError(
            f"trial {trial.number} of the study is not an evaluation by amc: use another --study-name."
        ) from None


def _running(study: optuna.Study, own: int) -> list[list[int]]:
    """The policies that other processes are evaluating now."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t.user_attrs["choice"] for t in trials if t.number != own and "choice" in t.user_attrs]


def _bind(study: optuna.Study, place: StudyLocation) -> None:
    """Bind a new study to the network, data and search; raise ConfigError if it is bound to others."""
    if "amc" not in study.user_attrs:
        study.set_user_attr("amc", place.identity)
    if study.user_attrs["amc"] != place.identity:
        raise ConfigError(
            f"the study '{place.name}' was started with another network, data or search: use another --study-name."
        )


@functools.cache
def check_storage(url: str) -> None:
    """Raise ConfigError if a storage cannot be opened. A file that does not exist yet is not created."""
    with _opening(url):
        file = _file_of(os.path.expandvars(url))
        if file is not None and not _is_there(file) and (_is_journal(url) or file.parent.exists()):
            _check_arguments(os.path.expandvars(url))
        else:
            open_storage(url)


@contextlib.contextmanager
def _opening(url: str) -> Iterator[None]:
    """Turn whatever a storage raises while it is opened into a ConfigError of one line without the password."""
    try:
        with _in_one_line(url, ""):
            yield
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  (drivers and damaged files raise many types)
        reason = f"{type(error).__name__}: {masked(first_line(error))}"
        raise ConfigError(f"--storage {masked(url)} cannot be opened: {reason}") from None


def _check_arguments(url: str) -> None:
    """Read the arguments of an SQLite URL without connecting, which would create the file."""
    from sqlalchemy import create_engine

    if url.startswith(_SQLITE):
        create_engine(url).dispose()


def _file_of(url: str) -> Path | None:
    """The file of a storage; None if it is in memory or on a server.

    >>> _file_of("study.log"), _file_of("sqlite:///study.db?timeout=5"), _file_of("mysql://host/db")
    (PosixPath('study.log'), PosixPath('study.db'), None)
    """
    path = url.removeprefix(_SQLITE).partition("?")[0] if url.startswith(_SQLITE) else url
    return None if "://" in path or path in ("", ":memory:") else Path(path)


def _is_there(file: Path) -> bool:
    """Whether a storage's file exists. Raises OSError where it cannot be created either."""
    try:
        file.lstat()
    except FileNotFoundError:
        place = next(folder for folder in file.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)) from None
        return False
    return True


def _is_journal(url: str) -> bool:
    """Whether a storage is Optuna's journal, whose folder is created; SQLite creates none."""
    return "://" not in url and not url.endswith(".db")


_SQLITE = "sqlite:///"


def open_storage(url: str) -> BaseStorage:
    """Open an Optuna storage: the URL of a database, an SQLite file ``.db``, or any other file as an Optuna journal.

    ``$NAME`` in the URL is replaced from the environment, so that configurations need not contain passwords.
    """
    url = os.path.expandvars(url)
    file = _file_of(url)
    if file is not None and os.path.lexists(file):
        check_file(file)  # Optuna would wait for a FIFO, and read a device without an end
    if _is_journal(url):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(Path(url).absolute())))
    url = url if "://" in url else f"{_SQLITE}{url}"
    engine: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return _database(url, engine)


def _database(url: str, engine: dict[str, Any], tries: int = 5) -> RDBStorage:
    """Open a database and create Optuna's tables if needed; retries while another process is creating them."""
    from sqlalchemy.exc import DatabaseError

    try:
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            return RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES),
            )
    except DatabaseError as error:
        made_by_another = any(word in str(error).lower() for word in ("already exists", "unique", "duplicate"))
        if not made_by_another or tries == 1:
            raise
    time.sleep(0.2)
    return _database(url, engine, tries - 1)


@contextlib.contextmanager
def _in_one_line(url: str, kept: str = " What was finished is kept there.") -> Iterator[None]:
    """Turn errors of a storage into a ConfigError of one line without the password."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"--storage {masked(url)} needs the package '{error.name}': install it.") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        cause = error.__cause__ or error
        reason = first_line(getattr(cause, "orig", None) or cause)
        raise ConfigError(f"--storage {masked(url)}: {masked(reason)}.{kept}") from None
