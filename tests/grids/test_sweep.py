"""Grids of runs: what is trained, kept, resumed and tried again; and the tables that come of them."""

import copy
import gc
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.grids import sweep
from pipelines.grids.paper import NUMBERS, table
from pipelines.grids.report import count_figures, write_report
from pipelines.grids.results import COLUMNS, Line, cells, latex, lines_of, markdown, read_results, write_results
from pipelines.grids.sweep import (
    evaluate_all,
    grid,
    grid_of_table,
    in_turn,
    local,
    on_ray,
    others,
    plan,
    train_all,
    train_one,
)
from pipelines.parallel import processes
from pipelines.runs.config import configure
from pipelines.runs.directory import create_run, load_config, load_outcome, read_metrics
from pipelines.runs.training import train
from pipelines.sources.synthetic import generate
from pipelines.tasks import Adding, Sine
from skiprnn_cli.grids import Work
from tests.gpu import on_gpu


@pytest.fixture
def configs(config):
    """A plain cell and a Skip LSTM with two seeds each."""
    changes = [{"skip": False, "lam": 0.0}, {}]
    return [replace(config, seed=seed, **change) for change in changes for seed in (0, 1)]


@pytest.mark.parametrize("task", NUMBERS)
def test_the_paper_s_grids_are_what_it_trained(task, tmp_path):
    seeds = range(4)
    configs = grid_of_table(task, "paper", tmp_path, seeds)
    rows = table(task)
    assert len(configs) == 4 * len(rows)
    assert len({(c.data, c.model_name, c.lam, c.seed) for c in configs}) == len(configs)
    for config in configs:
        assert (config.task, config.preset) == (task, "paper")
        assert config.lr == 1e-4
        assert config.batch_size == 256


def test_a_data_file_is_drawn_for_its_task_whatever_it_is_called(config):
    named = {name: sweep.synthetic_task(replace(config, data=f"{name}.h5")) for name in ("adding", "imdb", "mine")}
    assert set(named.values()) == {Adding()}
    sines = [sweep.synthetic_task(replace(config, task="sine", data=f"{name}.h5")) for name in ("sine", "sine-0.5ms")]
    assert [task.sampling_period for task in sines] == [1.0, 0.5]
    assert sweep.synthetic_task(replace(config, task="mnist", data="adding.h5")) is None


def test_published_numbers_are_the_paper_s():
    adding = {(row.cell, row.lam, row.p_skip): row for row in table("adding")}
    assert adding["lstm", 1e-5, None].used == pytest.approx(50 * 0.539)
    assert adding["lstm", None, 0.5].solved is False
    mnist = {(row.cell, row.lam, row.p_skip): row for row in table("mnist")}
    assert (mnist["gru", 1e-4, None].metric, mnist["gru", 1e-4, None].used) == (0.976, 392.62)
    imdb = {(row.data.name, row.cell, row.lam): row for row in table("imdb")}
    assert (imdb["imdb-400", "gru", 1e-3].metric, imdb["imdb-400", "gru", 1e-3].used) == (0.814, 99.12)
    ucf = {(row.cell, row.lam): row for row in table("ucf101")}
    assert (ucf["lstm", 1e-4].metric, ucf["lstm", 1e-4].used, ucf["lstm", 1e-4].cost) == (0.790, 7.6, 2.89e10)
    assert {task: len(table(task)) for task in NUMBERS} == {
        "adding": 10,
        "sine": 16,
        "mnist": 6,
        "imdb": 20,
        "ucf101": 8,
    }


def test_features_that_are_not_the_paper_s_are_not_compared_with_it_and_say_what_they_are():
    config = asdict(replace(configure("ucf101", "paper", cell="lstm", skip=False), data="data/ucf101.h5"))
    said = {
        "metric": 0.9, "metric_name": "accuracy", "used_mean": 250.0, "solved": None, "steps_per_sequence": 250,
        "cost": 1.0, "seconds_per_sequence": 1.0, "seconds_per_sequence_without_skipping": 1.0,
    }  # fmt: skip

    def line(**others):
        made = {"fps": 25.0, "steps": 250, "network": "resnet50", "weights": "imagenet1k_v1"}
        task = {**made, "classes": json.dumps(list(map(str, range(101)))), **others}  # as task.json has it
        of_run = {"config": config, "task": task, "evaluation": said, "training_seconds": 1.0, "outcome": {"step": 1}}
        (found,) = lines_of([of_run])
        return found

    assert (line().data, line().paper["metric"]) == ("ucf101", 0.671)
    few = line(classes='["a", "b"]')
    assert (few.data, few.paper) == ("ucf101 (2 classes, 250 frames at 25 a second, resnet50)", None)
    other = line(network="")
    assert (other.data, other.paper) == (
        "ucf101 (101 classes, 250 frames at 25 a second, features made elsewhere)",
        None,
    )
    untrained = line(weights="random:0")
    assert (untrained.data, untrained.paper) == (
        "ucf101 (101 classes, 250 frames at 25 a second, untrained resnet50)",
        None,
    )


def test_one_s_own_grid_has_every_combination(adding_file):
    configs = grid("adding", "quick", ["lstm", "gru"], [None, 0.0, 1e-5], range(2), data=str(adding_file), steps=7)
    assert len(configs) == 12
    assert {(c.cell, c.skip, c.lam) for c in configs} == {
        (cell, lam is not None, lam or 0.0) for cell in ("lstm", "gru") for lam in (None, 0.0, 1e-5)
    }
    assert all(config.steps == 7 for config in configs)


def test_a_grid_is_trained_and_finished_runs_are_kept(configs, tmp_path):
    runs, ended = plan(tmp_path, configs), []
    assert train_all(runs, in_turn, lambda run, reason: ended.append(run)) == {}
    assert len(ended) == 4
    assert [load_config(run.path) for run in runs] == configs
    stamps = [(run.path / "checkpoints/last.json").stat().st_mtime_ns for run in runs]
    train_all(plan(tmp_path, configs), in_turn, lambda run, reason: ended.append(run))
    assert len(ended) == 4
    assert [(run.path / "checkpoints/last.json").stat().st_mtime_ns for run in runs] == stamps
    more = plan(tmp_path, [*configs, replace(configs[0], seed=2)])
    train_all(more, in_turn, lambda run, reason: ended.append(run))
    assert len(ended) == 5


def test_runs_of_earlier_grids_are_found_whatever_the_preset_has_for_their_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "is_finished", lambda run: True)

    def planned(cells, lams, **options):
        return plan(tmp_path, grid("mnist", "settled", cells, lams, [0], data=str(tmp_path / "mnist.h5"), **options))

    earlier = planned(["gru"], [None, 0.0])
    for run in [*earlier, *planned(["gru"], [1e-3], lr=3e-3)]:
        create_run(run.path, run.config)
    for cell in ("lstm", "gru"):
        assert {run.path for run in others(tmp_path, planned([cell], [1e-4]))} == {run.path for run in earlier}


def test_runs_share_out_gpus_and_cores(configs, tmp_path, monkeypatch):
    asked, started = [], []

    class Worker:
        queue = ()

        def __init__(self, work, start):
            started.append(start[:2])  # threads, and which GPU

        def take(self, job):
            return True

        def end(self):
            pass

    def map_in_processes(count, work, jobs, **how):
        asked.append(count)
        return processes.map_in_processes(count, work, iter(()), **how)

    monkeypatch.setattr(processes, "_Worker", Worker)
    monkeypatch.setattr(sweep, "map_in_processes", map_in_processes)
    monkeypatch.setattr(sweep, "choose_device", torch.device)
    monkeypatch.setattr(sweep, "cores", lambda: 7)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    runs = plan(tmp_path, [replace(configs[0], device="cuda", seed=seed) for seed in range(9)])
    for jobs in (None, 3, 20):
        list(local(jobs)(runs))
    assert asked == [8, 3, 9]  # four a GPU, or as told, and no more than there are
    assert started == [(1, n % 2) for n in range(8)] + [(2, n % 2) for n in range(3)] + [(1, n % 2) for n in range(9)]


@on_gpu
def test_several_processes_train_on_one_gpu(configs, tmp_path):
    runs = plan(tmp_path, [replace(config, device="cuda") for config in configs[1:]])
    assert train_all(runs, local(3), lambda run, reason: None) == {}
    assert [load_outcome(run.path)["reason"] for run in runs] == ["finished"] * 3


def test_an_interrupted_run_goes_on(configs, tmp_path):
    runs = plan(tmp_path, configs[:1])
    train_one_step = iter([False, False, False, True])
    sweep.create_run(runs[0].path, configs[0])
    train(runs[0].path, should_stop=lambda: next(train_one_step))
    assert load_outcome(runs[0].path) is None
    train_all(runs, in_turn, lambda run, reason: None)
    assert load_outcome(runs[0].path)["step"] == 8
    sessions = json.loads((runs[0].path / "environment.json").read_text())
    assert [session["from_step"] for session in sessions] == [0, 4]


def test_training_further_takes_the_outcome_back(configs, tmp_path):
    (run,) = plan(tmp_path, configs[:1])
    train_one(run)
    before = load_outcome(run.path)
    (run.path / "config.json").write_text(
        json.dumps({"schema": 1, **asdict(replace(configs[0], steps=11))}), encoding="utf-8"
    )
    train(run.path)
    assert (before["step"], load_outcome(run.path)["step"]) == (8, 11)


def test_failed_runs_are_tried_again_and_stop_nothing(configs, tmp_path):
    runs = plan(tmp_path, configs)
    tries = []

    def engine(wanted):
        for run in wanted:
            tries.append(run.path.name)
            yield run, "the disk is full" if run.config.seed == 1 else train_one(run)

    failed = train_all(runs, engine, lambda run, reason: None)
    assert failed == {str(run.path): "the disk is full" for run in runs if run.config.seed == 1}
    assert len(tries) == 6
    assert len(evaluate_all(runs, {})) == 2
    assert train_all(runs, in_turn, lambda run, reason: None) == {}
    assert len(evaluate_all(runs, {})) == 4


def test_a_run_with_other_options_is_not_taken_for_one_s_own(configs, tmp_path):
    train_all(plan(tmp_path, configs[:1]), in_turn, lambda run, reason: None)
    with pytest.raises(SkipRNNError, match=r"was made with lr 0.01, not 0.5; name another --out"):
        plan(tmp_path, [replace(configs[0], lr=0.5)])


def test_only_the_device_may_change(configs, tmp_path):
    train_all(plan(tmp_path, configs[:1]), in_turn, lambda run, reason: None)
    assert plan(tmp_path, [replace(configs[0], device="auto")])[0].path.exists()


def test_two_runs_cannot_share_a_directory(configs, tmp_path):
    with pytest.raises(SkipRNNError, match="two runs called"):
        plan(tmp_path, [configs[2], replace(configs[2], lam=configs[2].lam * (1 + 1e-9))])


def test_any_error_fails_one_run(configs, tmp_path, monkeypatch):
    def train_or_not(run):
        if run.name.endswith("seed1"):
            raise MemoryError("too large")
        return train(run)

    monkeypatch.setattr(sweep, "train", train_or_not)
    runs = plan(tmp_path, configs)
    failed = train_all(runs, in_turn, lambda run, reason: None)
    assert sorted(failed) == sorted(str(run.path) for run in (runs[1], runs[3]))
    assert failed[str(runs[1].path)].startswith("MemoryError: too large; see ")
    assert "train_or_not" in (runs[1].path / "error.txt").read_text()


def test_earlier_runs_stay_in_the_table(configs, tmp_path):
    train_all(plan(tmp_path, configs), in_turn, lambda run, reason: None)
    now = plan(tmp_path, configs[:1])
    assert {run.config for run in others(tmp_path, now)} == set(configs[1:])
    shutil.copytree(now[0].path, tmp_path / "runs/copy")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/config.json").write_text("{")
    assert len(others(tmp_path, now)) == 3
    assert others(tmp_path, plan(tmp_path / "new", [replace(configs[0], steps=9)])) == []


def test_a_table_is_not_of_two_data_sets(results, configs, adding_file, tmp_path):
    out, evaluated = results
    other = generate(Adding(length=12), tmp_path / "adding.h5", {"train": 32, "val": 8, "test": 8}, seed=7)
    runs = [replace(run, config=replace(run.config, data=str(other))) for run in plan(out, configs)]
    for run in runs:
        saved = {"schema": 1, **asdict(run.config)}
        (run.path / "config.json").write_text(json.dumps(saved))
    failed = {}
    assert evaluate_all(runs, failed) == []
    assert len(failed) == 4
    assert evaluated


def test_runs_without_data_fail_by_name(configs, tmp_path):
    runs = plan(tmp_path, [replace(configs[0], data=str(tmp_path / "missing.h5"))])
    failed = train_all(runs, in_turn, lambda run, reason: None)
    assert "no data file" in failed[str(runs[0].path)]


def test_processes_train_what_one_would(configs, tmp_path):
    ours = plan(tmp_path / "ours", configs[1:3])
    assert train_all(ours, local(2), lambda run, reason: None) == {}
    theirs = plan(tmp_path / "theirs", configs[1:3])
    train_all(theirs, in_turn, lambda run, reason: None)
    for mine, other in zip(evaluate_all(ours, {}), evaluate_all(theirs, {}), strict=True):
        assert mine["evaluation"]["metric"] == other["evaluation"]["metric"]
        assert mine["evaluation"]["used_mean"] == other["evaluation"]["used_mean"]


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()[1])


@pytest.mark.slow(reason="a Ray cluster, and a worker that begins twice")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files and processes that older versions of Ray leave
def test_ray_goes_on_where_a_worker_was_killed(configs, tmp_path):
    pytest.importorskip("ray")
    runs = plan(tmp_path, [replace(config, steps=400, eval_every=50) for config in configs[1:3]])
    killed = []

    def kill():
        while not killed:
            time.sleep(0.2)
            started = all((run.path / "metrics.jsonl").exists() and read_metrics(run.path) for run in runs)
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    ours = parent(parent(process.name)) == os.getpid()  # by way of the raylet
                    if started and ours and (process / "cmdline").read_bytes().startswith(b"ray::_Actor.work"):
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(process.name)
                        break

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert train_all(runs, on_ray(2, "local"), lambda run, reason: None) == {}
    assert killed
    sessions = [json.loads((run.path / "environment.json").read_text()) for run in runs]
    assert sorted(len(one) for one in sessions) == [1, 2]
    alone = plan(tmp_path / "alone", [run.config for run in runs])
    train_all(alone, in_turn, lambda run, reason: None)
    for mine, other in zip(evaluate_all(runs, {}), evaluate_all(alone, {}), strict=True):
        assert mine["evaluation"]["metric"] == other["evaluation"]["metric"]
    gc.collect()  # what Ray left open, here, where it is no error


@pytest.fixture(scope="module")
def kept_results(tmp_path_factory):
    """A place for the results that all tests begin with, and what was evaluated, if they are there."""
    return tmp_path_factory.mktemp("results") / "out", []


@pytest.fixture
def results(kept_results, configs, tmp_path):
    kept, evaluated = kept_results
    if not evaluated:
        runs = plan(kept, configs)
        train_all(runs, in_turn, lambda run, reason: None)
        evaluated += evaluate_all(runs, {})
        about = {"asked": {"task": "adding", "preset": "quick", "settings": {"lr": 0.01}}, "where": {"device": "<CPU>"}}
        write_results(kept, evaluated, {}, about)
    return shutil.copytree(kept, tmp_path / "out"), copy.deepcopy(evaluated)


def test_tables_have_means_over_seeds_and_the_paper_s_numbers(results):
    _, evaluated = results
    plain, skip = lines_of(evaluated)
    metrics = [result["evaluation"]["metric"] for result in evaluated]
    assert plain.metric == pytest.approx(sum(metrics[:2]) / 2)
    assert plain.metric_std == pytest.approx(abs(metrics[0] - metrics[1]) / 2**0.5)
    assert (plain.runs, plain.model, plain.lam, skip.model, skip.lam) == (2, "LSTM", None, "Skip LSTM", 1e-3)
    assert plain.paper is None  # neither the paper's size nor its data
    assert plain.training_vs_plain == 1
    for result in evaluated:
        result["config"]["hidden_size"] = 110
        assert lines_of([result])[0].paper is None
        result["task"]["length"] = 50
    plain, skip = lines_of(evaluated)
    assert plain.paper["used"] == 50
    assert skip.paper is None  # no such λ
    row = dict(zip(COLUMNS, cells(plain), strict=False))
    assert row["solved"] == "0 of 2 (paper: yes)"
    assert row["runs"] == "2"


def test_training_is_compared_by_the_sequence(results):
    _, evaluated = results
    for result, (seconds, steps) in zip(evaluated, [(8, 8), (8, 8), (1, 4), (1, 4)], strict=True):
        result["training_seconds"], result["outcome"]["step"] = seconds, steps
    assert [line.training_vs_plain for line in lines_of(evaluated)] == [1, 4]
    for result in evaluated[2:]:
        result["config"]["batch_size"] *= 2  # in as many seconds
    assert [line.training_vs_plain for line in lines_of(evaluated)] == [1, 8]


def test_a_time_too_short_for_its_digits_is_not_said(results):
    plain, skip = lines_of(results[1])
    rows = cells(replace(plain, training_seconds=0.4, training_vs_plain=8.31, inference_ms=0.0004))
    assert rows[-2:] == ["—", "—"]
    assert cells(replace(plain, training_seconds=0.6, training_vs_plain=8.31))[-2] == "1 s (8.31×)"
    assert "—" not in latex([replace(skip, training_seconds=0.0)])


def test_tables_are_well_formed(results):
    lines = lines_of(results[1])
    rows = markdown(lines).splitlines()
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    text = latex(lines)
    assert text.count(r"\\") == 3
    assert "λ" not in text
    assert "±" not in text


def test_results_are_read_back(results):
    out, evaluated = results
    assert read_results(out)["lines"] == lines_of(evaluated)
    whole = json.loads((out / "results.json").read_text())
    changes = [{"asked": {}}, {"runs": [{}]}, {"failed": []}, {"lines": [{**whole["lines"][0], "metric": "a"}]}]
    for text in ("{", "[]", '{"lines": []}', *(json.dumps({**whole, **change}) for change in changes)):
        (out / "results.json").write_text(text)
        with pytest.raises(SkipRNNError, match=r"cannot read .*results.json"):
            read_results(out)
    runs = [{**whole["runs"][0], "config": {**whole["runs"][0]["config"], "lr": "a"}}]
    for change in ({"failed": {"a": 5}}, {"runs": runs}, {"runs": [{**whole["runs"][0], "name": 5}]}, {"where": 5}):
        (out / "results.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(SkipRNNError, match="not the results of a sweep"):
            read_results(out)
    (out / "results.json").unlink()
    os.mkfifo(out / "results.json")
    with pytest.raises(SkipRNNError, match="it is a pipe or a device"):
        read_results(out)


def test_an_evaluation_is_kept_until_the_run_is_trained_further(results, configs):
    out, evaluated = results
    (first, *_) = runs = plan(out, configs)
    last = evaluate_all(runs, {}, checkpoint="last")
    assert [of["evaluation"]["step"] for of in last] == [of["outcome"]["step"] for of in evaluated]
    evaluated = evaluate_all(runs, {})  # whose times are others
    assert all(of["evaluation"]["checkpoint"] == "best" for of in evaluated)
    assert evaluate_all(runs, {}) == evaluated
    there = json.loads((first.path / "result.json").read_text())
    there["outcome"]["step"] = 1
    (first.path / "result.json").write_text(json.dumps(there))
    for text in ("{", "[]", "{}", '{"evaluation": {}}'):
        (runs[1].path / "result.json").write_text(text)
        assert evaluate_all([runs[1]], {})[0]["evaluation"]["metric"] == evaluated[1]["evaluation"]["metric"]
    note = json.loads((runs[1].path / "result.json").read_text())
    for wrong in ({"training_seconds": "a"}, {"evaluation": {**note["evaluation"], "metric": "a"}}, {"name": 5}):
        (runs[1].path / "result.json").write_text(json.dumps({**note, **wrong}))
        (again,) = evaluate_all([runs[1]], {})
        assert (again["name"], again["evaluation"]["metric"]) == (note["name"], note["evaluation"]["metric"])
        assert isinstance(again["training_seconds"], float)
    (runs[1].path / "result.json").unlink()
    os.mkfifo(runs[1].path / "result.json")
    failed = {}
    assert len(evaluate_all([runs[1]], failed)) == 1, failed
    assert evaluate_all([first], {})[0]["outcome"]["step"] == 8


def test_an_evaluation_with_classes_is_kept(tmp_path):
    data = generate(Sine(), tmp_path / "sine.h5", {"train": 16, "val": 8, "test": 8}, seed=0)
    runs = plan(
        tmp_path, [configure("sine", "quick", data=str(data), hidden_size=4, batch_size=8, steps=2, device="cpu")]
    )
    assert not train_all(runs, in_turn)
    (result,) = evaluate_all(runs, {})
    assert [of["name"] for of in result["evaluation"]["by_class"]] == ["0", "1"]
    assert evaluate_all(runs, {}) == [result]  # or its times were others


def test_a_run_that_cannot_be_evaluated_costs_only_itself(results, configs):
    out, _ = results
    runs, failed = plan(out, configs), {}
    (runs[1].path / "result.json").unlink()
    (runs[1].path / "checkpoints/best.json").write_text("{")
    assert len(evaluate_all(runs, failed)) == 3
    assert list(failed) == [str(runs[1].path)]
    assert "cannot be evaluated" in failed[str(runs[1].path)]


class Page(HTMLParser):
    """Counts tags and collects texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.counts, self.sources, self.text = [], {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_needs_nothing_else(results, tmp_path):
    out, _ = results
    path = write_report(out, tmp_path / "report.html")
    page = Page(path.read_text())
    assert page.open == []
    assert page.counts["tr"] == 3
    assert page.counts["img"] == count_figures(out) == 2
    assert all(source.startswith("data:") for source in page.sources)
    assert "<CPU>" in page.text
    with pytest.raises(SkipRNNError, match="exists already"):
        write_report(out, path)


def test_the_report_says_which_figures_are_missing(results, tmp_path, adding_file, configs):
    out, _ = results
    for run in plan(out, configs):
        moved = {"schema": 1, **asdict(run.config), "data": str(tmp_path / "gone.h5")}
        (run.path / "config.json").write_text(json.dumps(moved))
    page = Page(write_report(out, tmp_path / "report.html").read_text())
    assert page.counts["img"] == 1
    assert "no data file" in page.text


def test_estimates_are_of_the_kind_of_model(configs):
    times = sweep.estimate(configs, None)
    assert set(times) == set(configs)
    assert all(seconds > 0 for seconds in times.values())
    assert times[configs[2]] == times[configs[3]]  # the seed does not matter
    missing = replace(configs[0], data="nowhere.h5")
    assert sweep.estimate([missing], 1)[missing] > 0  # what can be drawn is
    missing = replace(configs[0], task="mnist", data="nowhere.h5")
    assert sweep.estimate([missing], 1) == {missing: None}


def test_cells_of_a_table_have_one_decimal():
    line = Line(
        data="own", model="LSTM", lam=None, p_skip=None, runs=2, metric_name="accuracy", metric=0.5, metric_std=None,
        solved=None, used=30.84, used_std=0.0, steps=30.8421, cost=1.0, training_seconds=1.0, training_vs_plain=None,
        inference_ms=1.0, inference_vs_plain=1.0, paper=None,
    )  # fmt: skip
    assert "30.8 ± 0.0 of 30.8" in cells(line)


SETTINGS = ("--set", "steps=4", "--set", "eval_every=2", "--set", "hidden_size=5", "--set", "batch_size=16")


@pytest.mark.usefixtures("forked")
def test_the_command_trains_a_grid_and_prints_its_table(skiprnn, adding_file, tmp_path):
    command = ("sweep", "--data", adding_file, "--lam", "none,1e-3", "--seeds", "0-1", "--out", "grid", *SETTINGS)
    result = skiprnn(*command, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count(" on adding.h5, 2 seeds (0, 1), not trained yet, about ") == 2
    assert result.stderr == "estimating how long 4 runs take\n"
    said = result.stdout.splitlines()
    assert said[1].startswith("grid/runs/adding-skip-lstm-lam0.001-seed*: Skip LSTM on adding.h5, 2 seeds")
    assert said[1].endswith(" each")
    assert not (tmp_path / "grid").exists()
    result = skiprnn(*command, "--no-train")
    assert result.exit_code == 1
    assert "no run in grid/runs is finished; leave out --no-train" in result.output
    result = skiprnn(*command)
    assert result.exit_code == 0, result.output
    assert "4 of 4 runs finished" in result.output
    assert result.output.count("| adding |") == 2
    assert "| training (× as fast as plain) | inference (× as fast as without skipping) |" in result.output
    assert (tmp_path / "grid/table.tex").exists()
    result = skiprnn(*command)
    assert "4 of 4 runs are finished already" in result.output
    (tmp_path / "grid/runs/adding-skip-lstm-lam0.001-seed1/outcome.json").unlink()
    result = skiprnn(*command, "--no-train")
    assert "3 of 4 runs are finished\n" in result.output
    assert "| Skip LSTM | 0.001 | 1 |" in result.output
    result = skiprnn("report", "grid")
    assert result.exit_code == 0, result.output
    assert "wrote grid/report.html" in result.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--set", "stepps=4"), 2, "'stepps' is none of"),
        (("--set", "steps=many"), 2, "'many' is no int, which steps is"),
        (("--set", "fresh_batches=maybe"), 2, "'maybe' is no bool, which fresh_batches is"),
        (("--lam", "a"), 2, "is no list of floats"),
        (("--seeds", "3-1"), 2, "'3-1' holds nothing"),
        (("--set", "lr"), 2, "'lr' is not NAME=VALUE"),
        (("--set", "engine=cuda", "--set", "layers=2"), 1, "cannot train this: it runs one layer, not 2"),
        (("--executor", "ray", "--ray-address", "127.0.0.1:1"), 1, "no Ray cluster answers at 127.0.0.1:1"),
        (("--out", "/proc/none"), 1, "cannot write /proc/none/runs"),
        (("--data", "."), 1, "is a folder; `skiprnn gen-data own .`"),
        (("--cell", "elman"), 2, "'elman' is not one of"),
        (("--cell", "rnn", "--lam", "none"), 1, "rnn needs skip = true, in a sweep a --lam other than none"),
        (("--seeds", "0", "--set", "lr=-1"), 1, "lr must be a positive number"),
    ],
)
def test_wrong_options_are_refused(skiprnn, adding_file, options, code, message):
    result = skiprnn("sweep", "--data", adding_file, *options)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_reproduce_takes_some_rows_of_a_table(skiprnn):
    some = skiprnn("reproduce", "mnist", "--runs", "2", "--only", "skip-gru", "--only", "lstm-seed", "--dry-run")
    said = some.stdout.splitlines()
    assert [line.partition("-seed*")[0].rpartition("/")[2] for line in said[:-1] if "runs/" in line] == [
        "mnist-lstm", "mnist-skip-gru-reset-before-lam0.0001",
    ]  # fmt: skip
    assert said[-1] == "4 runs whose data is missing"
    refused = skiprnn("reproduce", "mnist", "--only", "rnn", "--dry-run")
    assert refused.exit_code == 1
    assert "mnist: --only rnn is in no run's name; they are mnist-lstm, mnist-skip-lstm-lam0.0001, " in refused.stderr


def test_reproduce_names_the_data_it_lacks(skiprnn):
    assert skiprnn("reproduce", "mnist", "--runs", "1", "--dry-run").stdout.endswith("6 runs whose data is missing\n")
    result = skiprnn("reproduce", "mnist", "--preset", "quick", "--runs", "1")
    assert result.exit_code == 1
    assert "no data file" in result.output
    assert "gen-data" in result.output


def test_reproduce_refuses_data_that_is_not_the_paper_s(skiprnn, adding_file):
    result = skiprnn("reproduce", "adding", "--preset", "quick", "--runs", "1", "--data", adding_file.parent)
    assert result.exit_code == 1
    assert "holds Adding(length=12), but the paper's is Adding(length=50)" in result.output


def test_reproduce_all_makes_the_tables_that_it_can(skiprnn, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("skiprnn_cli.gen_data.write_with_progress", lambda *arguments, **options: None)
    monkeypatch.setattr(
        "skiprnn_cli.reproduce.run_grid", lambda configs, *_, **how: asked.append(configs[0].task) or Work(1.5, 2)
    )
    result = skiprnn("reproduce", "all", "--preset", "quick", "--runs", "1")
    assert asked == ["adding", "sine"]
    assert result.exit_code == 1
    assert "about 3.0 core-hours in all, without 4 runs whose data is missing\n" in result.output
    for text in ("gen-data mnist", "gen-data imdb", "extract-features ucf101"):
        assert text in result.output
