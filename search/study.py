"""Optuna studies: one kept in the run's folder, or one in a storage that several processes fill together.

Alone, the sampler works in memory, and every finished trial is appended to ``study.log``, a journal of Optuna's that
optuna-dashboard opens. Resuming proposes everything anew (the problem answers from its own journal), so the file is
written anew as well.

In a storage that is shared, the study itself is there. Each process asks it for a trial, evaluates it and tells it;
what others have found is taken over before each evaluation and never done again. A process that died is noticed by its
heartbeat where the storage is a database, and its trial is done by another.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from amc.config import masked
from amc.errors import BundleError, ConfigError, first_line
from amc.evaluation.problem import Problem, StudyPlace, from_record, to_record
from amc.evaluation.reward import Evaluation
from amc.space.sites import Choice

HEARTBEAT, GRACE = 30, 120
"""Seconds between two signs of life of a process that shares a study, and without one until it is given up."""
_RETRIES = 2
_ALREADY_RUNNING = 5
"""How often a trial is given up because another process evaluates the same policy at that moment."""


@dataclass(frozen=True)
class Design:
    """What the trials of a study are."""

    parameters: Mapping[str, FloatDistribution]
    first: Mapping[str, float]
    """The parameters of the first trial."""
    choice: Callable[[Mapping[str, float]], Choice]
    """The policy that a trial's parameters stand for."""
    values: Callable[[Evaluation], Sequence[float]]
    """The values of an evaluation in the study, one for each objective."""
    objectives: tuple[tuple[str, Literal["maximize", "minimize"]], ...] = (("reward", "maximize"),)
    """Name and direction of each."""


def fill(problem: Problem, evaluations: int, sampler: optuna.samplers.BaseSampler, design: Design) -> None:
    """Run a study of ``evaluations`` trials, where the problem says that studies are kept."""
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
    place: StudyPlace | None,
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
            finished.system_attrs = {}  # the sampler's own notes, of use to nobody else
            kept.add_trial(finished)


def _together(
    problem: Problem, evaluations: int, sampler: optuna.samplers.BaseSampler, design: Design, place: StudyPlace
) -> None:
    """Work on the study until it has as many evaluations as asked for, whoever did them."""
    study = _create(design, sampler, open_storage(place.url), place.name)
    _bind(study, place)
    sampler.reseed_rng()  # or all processes would propose the same
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(dict(design.first))
    objective = SharedObjective(problem, study, design)
    objective.learn()
    while len(objective.known) < evaluations:
        study.optimize(objective, n_trials=1, catch=(_NotToldError,))
        objective.learn()


class SharedObjective:
    """Evaluates the trials of a study that other processes work on, too; what they have found is not done again."""

    def __init__(self, problem: Problem, study: optuna.Study, design: Design) -> None:
        self._problem, self._study, self._design = problem, study, design
        self.known: set[int] = set()
        """Trials whose evaluations the problem has."""
        self._given_up = 0

    def __call__(self, trial: optuna.Trial) -> Sequence[float]:
        """The values of a trial. Raises _NotToldError where it failed, or where another process evaluates it."""
        design = self._design
        choice = design.choice({n: trial.suggest_float(n, d.low, d.high) for n, d in design.parameters.items()})
        trial.set_user_attr("choice", list(choice))  # announced before looking, so that of two at least one sees it
        if self._given_up < _ALREADY_RUNNING and list(choice) in _running(self._study, trial.number):
            self._given_up += 1
            raise _NotToldError
        self._given_up = 0
        self.learn()
        found = self._problem.evaluate(choice)
        _describe(trial, found)
        self.known.add(trial.number)
        if not math.isfinite(found.reward):
            raise _NotToldError
        return design.values(found)

    def learn(self) -> None:
        """Take over what other processes have found."""
        _learn(self._problem, self._study, self.known)


class _NotToldError(Exception):
    """The trial ends without a value."""


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
        raise ConfigError(f"the study '{name}' has other objectives: name another --study-name.")
    if storage is not None:
        study.set_metric_names([objective for objective, _ in design.objectives])
    return study


def _kept(design: Design, place: StudyPlace) -> optuna.Study:
    for left in (place.url, f"{place.url}.lock"):  # the lock of a process that was killed
        Path(left).unlink(missing_ok=True)
    return _create(design, None, open_storage(place.url), place.name)


def _describe(trial: optuna.Trial, found: Evaluation) -> None:
    for key, value in to_record(found).items():
        if value is not None:
            trial.set_user_attr(key, value)


def _learn(problem: Problem, study: optuna.Study, known: set[int]) -> None:
    """Take over the evaluations that other processes have added to the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        if trial.number not in known and (found := _found(trial)) is not None:
            known.add(trial.number)
            problem.learn(found)


def _found(trial: FrozenTrial) -> Evaluation | None:
    """The evaluation behind a finished trial; None where it ended without one."""
    if "costs" not in trial.user_attrs:
        return None
    try:
        return from_record(trial.user_attrs)
    except BundleError:
        raise ConfigError(f"the study's trial {trial.number} holds no evaluation of amc: use another name.") from None


def _running(study: optuna.Study, own: int) -> list[list[int]]:
    """The policies that other processes evaluate at this moment."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t.user_attrs["choice"] for t in trials if t.number != own and "choice" in t.user_attrs]


def _bind(study: optuna.Study, place: StudyPlace) -> None:
    """A study belongs to one network, budget and data."""
    if "amc" not in study.user_attrs:
        study.set_user_attr("amc", place.identity)
    if study.user_attrs["amc"] != place.identity:
        raise ConfigError(
            f"the study '{place.name}' was begun with another network, data or search: name another --study-name."
        )


@functools.cache
def check_storage(url: str) -> None:
    """Raise ConfigError for a storage that cannot be opened. A file that is not there yet is not made."""
    try:
        with _in_one_line(url, ""):
            if not _is_new_file(os.path.expandvars(url)):
                open_storage(url)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  (drivers and damaged files throw what they like)
        reason = f"{type(error).__name__}: {masked(first_line(error))}"
        raise ConfigError(f"--storage {masked(url)} cannot be opened: {reason}") from None


def _is_new_file(url: str) -> bool:
    """Whether a storage is a file that can be made in its folder. Raises OSError where it cannot."""
    if "://" in url:
        return False
    try:
        os.lstat(url)
    except FileNotFoundError:
        place = next(folder for folder in Path(url).absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)) from None
        return True
    return False


def open_storage(url: str) -> BaseStorage:
    """An Optuna storage: a database's URL, an SQLite file ``.db``, or any other file as Optuna's journal.

    ``$NAME`` in it is replaced from the environment, so that passwords need not be written down.
    """
    url = os.path.expandvars(url)
    if "://" not in url and not url.endswith(".db"):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(Path(url).absolute())))
    url = url if "://" in url else f"sqlite:///{url}"
    engine: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return _database(url, engine)


def _database(url: str, engine: dict[str, Any], tries: int = 5) -> RDBStorage:
    """A database, with Optuna's tables made where there are none; another process may be making them too."""
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
    """What goes wrong with a storage is the user's to mend, in one line and without the password."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"--storage {masked(url)} needs the package '{error.name}': install it.") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        cause = error.__cause__ or error
        reason = first_line(getattr(cause, "orig", None) or cause)
        raise ConfigError(f"--storage {masked(url)}: {masked(reason)}.{kept}") from None
