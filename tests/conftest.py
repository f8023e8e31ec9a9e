"""What all tests share: one thread, and property tests that do the same on every machine."""

import os

# Before torch is imported, and for every process that a test starts. Two tests run at once on two cores: with two
# threads each, they would spend most of their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("amc", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("amc")
LONG = (
    "test_ray.py", "test_batch.py", "test_recovery.py", "test_verified_latency.py", "test_search.py", "test_run.py",
    "test_kill.py", "test_fuzz.py", "test_own_operators.py",
)  # fmt: skip
SLOW_FILES = frozenset(
    f"test_{name}.py"
    for name in (
        "batch", "benchmarks", "branches", "device", "docs", "export", "finetune_elsewhere", "fuzz", "int8", "kill",
        "own_operators", "postgres", "ray", "recipes", "recovery", "run", "schedule", "scope", "search", "tiny",
        "tracking", "tutorials", "verified_latency", "zoo",
    )
)  # fmt: skip
SLOW_TESTS = frozenset((
    "test_a_machine_that_is_too_noisy_is_reported",
    "test_a_network_that_the_runtime_computes_otherwise_is_refused_before_the_search",
    "test_a_program_is_an_ordinary_module",
    "test_a_run_keeps_its_study_and_resuming_adds_nothing",
    "test_a_search_as_json_quiet_and_verbose",
    "test_an_lstm_is_called_with_weights_and_states_that_fit",
    "test_an_operator_of_another_kind_keeps_the_contract",
    "test_any_value_anywhere_is_read_or_refused",
    "test_by_name_alone_on_the_embedded_example",
    "test_costs_are_those_of_the_pruned_network",
    "test_episodes_on_a_real_network_end_within_the_limits",
    "test_every_operator_keeps_the_contract",
    "test_examples_give_what_they_say",
    "test_it_stands_the_contract",
    "test_measure_prints_the_ratio_and_where_it_was_measured",
    "test_of_a_quadratic_loss_it_is_the_loss",
    "test_operators_of_a_network",
    "test_rounds_minimise_the_matching_loss",
    "test_the_cut_file_is_the_policys",
    "test_the_example_is_a_real_network",
    "test_timing_leaves_denormals_as_they_are",
    "test_a_fault_late_in_the_test_split_names_the_sample_and_loses_nothing",
    "test_a_file_with_widths_in_constants_is_cut_or_exported_again",
    "test_a_folder_that_holds_a_run_is_not_touched",
    "test_a_password_is_in_no_file_and_comes_from_the_environment_on_resume",
    "test_a_search_for_latency_records_it",
    "test_a_signal_and_a_network_that_gives_a_tuple",
    "test_json_round_trip",
    "test_mistakes",
    "test_resuming_with_another_network_is_refused",
    "test_several_inputs_by_keyword_and_a_dict_of_outputs",
    "test_predictions_are_at_least_the_time_for_starting_operators",
    "test_two_processes_fill_one_study_and_evaluate_nothing_twice",
    "test_a_changed_input_is_a_cache_miss",
    "test_the_ratio_of_two_models_is_that_of_their_blocks",
    "test_without_a_problem_the_example_is_used",
    "test_writers_killed_at_any_moment_leave_a_whole_cache",
))  # fmt: skip
"""Marked ``slow``: files of more than ten seconds, and single tests of more than four."""


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: at the end one of them would keep one process busy and the other idle."""
    for item in items:
        if item.path.name in SLOW_FILES or getattr(item, "originalname", item.name) in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache, or waits for what else runs on the machine.

    Runs measure what they deliver for a fraction of a second; how to measure well is tested by itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_LOCKS", str(tmp_path_factory.mktemp("locks")))
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("AMC_KEY", str(tmp_path_factory.mktemp("key") / "key"))
        patch.setenv("AMC_MEASURE_SECONDS", "0.2")
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_exports():
    """Exports to ONNX are most of a small run's time. Many runs begin with the same network: it is exported once."""
    from amc.pipeline import original

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original, "export_onnx", remembered(original.export_onnx))
        yield


def remembered(export):
    """``export``, done once for each original of amc's own architectures: those are their parameters and buffers."""
    from amc.evaluation.keys import digest

    files = {}

    def write(model, example, path):
        if type(model).__module__ != "amc.task.models":
            return export(model, example, path)
        key = str(model), digest(dict(model.state_dict())), digest(example)
        if key not in files:
            export(model, example, path)
            files[key] = path.read_bytes()
        path.write_bytes(files[key])

    return write


@pytest.fixture(scope="session")
def resnet8():
    """The embedded architecture, untrained, with its graph."""
    from amc.graph.build import build_graph
    from amc.task.models import build_model

    torch.manual_seed(0)
    model = build_model("resnet8", False, 1, 10).eval()
    return build_graph(model, torch.randn(1, 1, 8, 8)), model


@pytest.fixture(scope="session")
def digits():
    """The embedded network on its data, ready for evaluators: task, graph, orders, moments."""
    from amc.config import DataConfig
    from amc.graph.build import build_graph
    from amc.importance import rank
    from amc.reconstruction.moments import collect, readers
    from amc.task import load_data, load_model, make_task

    task = make_task(
        "digits", load_model("resnet8", None, 1, 10, "digits"), load_data(DataConfig()), torch.device("cpu")
    )
    graph = build_graph(task.model, task.example)
    moments = collect(task, readers(graph, task.model), 0)
    return task, graph, rank("obs", graph, task.model, moments), moments
