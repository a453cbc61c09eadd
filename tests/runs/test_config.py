"""Presets and which GRU they train."""

import math

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.grids.results import lines_of
from pipelines.grids.sweep import grid, grid_of_table, plan
from pipelines.runs.cells import import_cell
from pipelines.runs.config import CHOICES, PRESETS, WITH_MEMORY, TrainConfig, configure
from pipelines.runs.directory import create_run, default_run_path
from pipelines.runs.evaluation import evaluate_run
from pipelines.runs.load import load_model
from pipelines.runs.model import build_model, check_network, stream, with_gate, without_skipping
from pipelines.runs.training import train
from pipelines.tasks import Sine
from skiprnn import RandomSkipGRU
from skiprnn.cells import CELLS, GRU, GRU_RESET_BEFORE, RNNCell


class NoGates(RNNCell):
    """A cell of one's own."""


def test_quick_presets_bound_the_gate_s_gradient_and_the_paper_s_do_not():
    assert {preset["quick"].gate_clip for preset in PRESETS.values()} == {0.1, 0.2, 1.0, None}
    assert {preset["paper"].gate_clip for preset in PRESETS.values()} == {None}
    assert configure("adding", "quick", gate_clip="none").gate_clip is None


def test_settled_presets():
    adding, sine = (configure(task, "settled", cell="lstm") for task in ("adding", "sine"))
    for config, decay_from, bound in ((adding, 0.6, 0.1), (sine, 0.3, 1.0)):
        assert (config.lr_schedule, config.decay_from, config.gate_clip) == ("linear", decay_from, bound)
        assert config.fresh_batches
    assert (adding.lr, adding.steps, adding.eval_every) == (1e-3, 6_000, 200)
    assert (sine.lr, sine.steps, sine.eval_every, sine.grad_clip) == (7e-4, 9_000, 250, 0.1)
    assert (adding.on_collapse, sine.on_collapse) == ("warn", "rewind")
    assert [configure(task, "settled", cell="gru").gate_clip for task in ("adding", "sine")] == [0.1, 5.0]
    assert [configure(task, "settled", cell="gru").lr for task in ("adding", "sine")] == [2e-3, 1e-3]
    assert [configure("sine", "settled", cell=cell).lam_warmup for cell in ("lstm", "gru")] == [0, 2_000]
    for cell, lr in (("lstm", 1e-3), ("gru", 2e-3)):
        plain = configure("sine", "settled", cell=cell, skip=False)
        assert (plain.lr, plain.batch_size, plain.memory, plain.steps) == (lr, 128, 100, 1_500)
    assert configure("adding", "settled", cell="gru", skip=False).lr == 1e-3


def test_the_settled_preset_of_mnist_has_a_memory_but_for_the_plain_gru():
    mnist = {
        (cell, skip): configure("mnist", "settled", cell=cell, skip=skip)
        for cell in ("lstm", "gru") for skip in (True, False)
    }  # fmt: skip
    assert {config.steps for config in mnist.values()} == {8_600}
    assert {key for key, config in mnist.items() if config.memory is None} == {("gru", False)}
    assert {key: config.lr for key, config in mnist.items()} == {
        ("lstm", True): 1e-3, ("lstm", False): 1e-3, ("gru", True): 1e-3, ("gru", False): 2e-3,
    }  # fmt: skip


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_memory_is_drawn_into_the_biases_of_a_run(cell, skip, adding_file, tmp_path):
    options = {"data": str(adding_file), "steps": 1, "eval_every": 1, "lr": 1e-9, "device": "cpu"}
    config = configure("adding", "quick", cell=cell, skip=skip, memory=50, **options)
    create_run(tmp_path / "run", config)
    train(tmp_path / "run")
    biases = load_model(tmp_path / "run").model.rnn.bias_ih_l0.detach().unflatten(0, (-1, config.hidden_size))
    assert biases[1].min() > -1e-3
    assert 3 < biases[1].max() <= math.log(49) + 1e-3


def test_where_a_preset_has_a_memory_cells_without_one_do_without():
    assert set(WITH_MEMORY) == {name for name, cell in CELLS.items() if cell.can_remember}
    for cell in (*CHOICES["cell"], "rnncells:Own"):
        assert configure("mnist", "settled", cell=cell).memory == (784 if cell in WITH_MEMORY else None)
    assert configure("mnist", "settled", cell="rnncells:Own", memory=50).memory == 50


def test_a_memory_needs_a_gate_that_keeps_the_state():
    with pytest.raises(SkipRNNError, match="memory is drawn into a gate that keeps the state; rnn-relu has none"):
        configure("adding", "quick", cell="rnn-relu", memory=50)
    with pytest.raises(SkipRNNError, match="memory must be at least 3, got 2"):
        configure("adding", "quick", memory=2)
    class_name = f"{NoGates.__module__}:{NoGates.__qualname__}"
    import_cell(class_name)
    config = configure("adding", "quick", cell=class_name, memory=50)
    with pytest.raises(SkipRNNError, match=r"--memory 50 is drawn into a gate .* the cell .*NoGates"):
        check_network(config, None)


def test_one_s_own_data_has_no_settled_preset():
    for task in PRESETS:
        if task.startswith("own-"):
            with pytest.raises(SkipRNNError, match=f"settled is for adding, .*, imdb; {task} has quick and paper"):
                configure(task, "settled")
        else:
            configure(task, "settled")


def test_the_rate_falls_in_all_presets_but_the_paper_s():
    for presets in PRESETS.values():
        for name, preset in presets.items():
            assert (preset.lr_schedule == "constant") == (name == "paper")


@pytest.mark.parametrize("task", PRESETS)
def test_the_paper_s_gru_resets_before(task):
    assert not configure(task, "paper", cell="gru").reset_after
    assert configure(task, "paper", cell="gru", reset_after=True).reset_after
    assert configure(task, "paper", cell="gru", skip=False).reset_after  # torch has one kind only
    assert configure(task, "paper", cell="lstm").reset_after
    assert configure(task, "quick", cell="gru").reset_after


@pytest.mark.parametrize("options", [{"cell": "lstm"}, {"cell": "gru", "skip": False}])
def test_only_a_skip_gru_resets_before(options):
    with pytest.raises(SkipRNNError, match="reset_after = false is a Skip GRU"):
        TrainConfig(steps=1, reset_after=False, **options)


def test_names_say_which_gru(tmp_path, adding_file):
    before = TrainConfig(steps=1, cell="gru", reset_after=False, data=str(adding_file))
    assert before.model_name == "Skip GRU (reset before)"
    assert default_run_path(before, tmp_path).name.startswith("adding-skip-gru-reset-before-seed0-")
    configs = [
        config
        for reset_after in (True, False)
        for config in grid("adding", "quick", ["gru"], [0.0], [0], data=str(adding_file), reset_after=reset_after)
    ]
    names = [run.path.name for run in plan(tmp_path, configs)]
    assert names == ["adding-skip-gru-lam0-seed0", "adding-skip-gru-reset-before-lam0-seed0"]


def test_a_grid_resets_before_where_there_is_a_choice(tmp_path):
    """In a table of the paper the plain GRU and those that skip at random are torch's."""
    for configs in (
        grid_of_table("adding", "paper", tmp_path, [0]),
        grid_of_table("adding", "quick", tmp_path, [0], reset_after=False),
        grid("adding", "quick", ["lstm", "gru"], [None, 0.0], [0], reset_after=False),
    ):
        for config in configs:
            assert config.reset_after == (config.cell == "lstm" or not config.skip)


@pytest.fixture
def reset_before():
    """A model whose gate is not always open."""
    torch.manual_seed(0)
    model = build_model(TrainConfig(cell="gru", reset_after=False, steps=1, hidden_size=6), Sine())
    torch.nn.init.constant_(model.rnn.update_bias, -0.5)
    return model


def test_the_kind_of_gru_is_kept(reset_before):
    torch.manual_seed(0)
    x = torch.randn(4, 9, 1)
    assert reset_before.rnn.cell is GRU_RESET_BEFORE
    assert with_gate(reset_before) is reset_before
    plain = without_skipping(reset_before)
    assert plain.rnn.cell is GRU_RESET_BEFORE
    assert plain(x).update_gate.all()
    assert not reset_before(x).update_gate.all()
    torch.nn.init.constant_(reset_before.rnn.update_bias, 100.0)
    torch.nn.init.zeros_(reset_before.rnn.update_weight)
    torch.testing.assert_close(plain(x), reset_before(x))
    for option, cell in ((True, GRU), (False, GRU)):
        other = build_model(TrainConfig(cell="gru", skip=option, steps=1, hidden_size=6), Sine())
        assert other.rnn.cell is cell
        assert isinstance(without_skipping(other).rnn, RandomSkipGRU)


def test_a_stream_follows_a_gru_that_resets_before(reset_before):
    x = torch.randn(9, 1)
    follower = stream(reset_before)
    follower.feed(x)
    with torch.no_grad():
        expected = reset_before(x[None])
    torch.testing.assert_close(follower.prediction.reshape(-1), expected.output[0], rtol=1e-4, atol=1e-5)
    assert follower.used == int(expected.update_gate.sum())


def test_a_run_that_resets_before_is_trained_and_evaluated_as_such(make_run):
    run = make_run(cell="gru", reset_after=False)
    report = evaluate_run(run)
    assert report.model == "Skip GRU (reset before)"
    assert report.seconds_alone_without_skipping > 0
    assert evaluate_run(make_run("after", cell="gru")).metric != report.metric


def test_tables_say_which_gru(make_run):
    """Where there are both."""

    def line_names(*configs):
        evaluation = {
            "metric_name": "MSE", "metric": 0.1, "used_mean": 5.0, "solved": False, "steps_per_sequence": 12.0,
            "cost": 1.0, "seconds_per_sequence": 1.0, "seconds_per_sequence_without_skipping": 1.0,
        }  # fmt: skip
        results = [
            {"config": config, "evaluation": evaluation, "training_seconds": 1.0, "outcome": {"step": 1}, "task": {}}
            for config in configs
        ]
        return [(line.model, line.runs) for line in lines_of(results)]

    gru = {"cell": "gru", "steps": 9}
    plain = {**gru, "skip": False}
    assert line_names(plain, gru, {**gru, "seed": 1}) == [("GRU", 1), ("Skip GRU", 2)]
    assert line_names({"steps": 9}, plain, {**gru, "reset_after": False}) == [
        ("Skip LSTM", 1), ("GRU (reset after)", 1), ("Skip GRU (reset before)", 1),
    ]  # fmt: skip
    assert line_names(gru, {**gru, "reset_after": True}) == [("Skip GRU", 2)]  # as runs of before it was an option


def test_bounds_of_skips_are_kept_by_a_run(make_run):
    run = make_run(min_skip=1, max_skip=3)
    rnn = load_model(run).model.rnn
    assert (rnn.min_skip, rnn.max_skip) == (1, 3)
    assert 12 / 4 <= evaluate_run(run).used_mean <= 12 / 2


def test_a_gate_that_draws_is_a_runs_and_rounds_in_evaluations(make_run):
    run = make_run(gate="bernoulli")
    trained = load_model(run)
    assert (trained.model.rnn.gate, trained.config.model_name) == ("bernoulli", "Skip LSTM (bernoulli gate)")
    first, second = evaluate_run(run), evaluate_run(run)
    assert (first.metric, first.used_mean) == (second.metric, second.used_mean)


def test_a_gate_may_draw_in_evaluations(make_run, skiprnn):
    run = make_run(gate="bernoulli")
    drawn, other = evaluate_run(run, sample=True), evaluate_run(run, sample=True, seed=7)
    assert drawn.sampled
    assert drawn.used_mean != other.used_mean
    done = skiprnn("evaluate", run, "--sample")
    assert "Skip LSTM (bernoulli gate) that draws on adding" in done.stdout
    assert f"  {drawn.used_mean:.2f} ± {drawn.used_std:.2f} of 12" in done.stdout
    refused = skiprnn("evaluate", run, "--seed", 7)
    assert refused.exit_code == 2
    assert "--seed is of what --sample draws; add that, or drop --seed." in refused.stderr
    run = make_run("rounds", steps=1)
    refused = skiprnn("evaluate", run, "--sample")
    assert (refused.exit_code, refused.stderr) == (
        1, f"Error: {run} has no gate that draws, so --sample has nothing to act on; drop it, or train with --gate "
        "bernoulli\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_skip": 3, "max_skip": 2}, "0 <= min_skip <= max_skip is asked for, got 3 and 2"),
        ({"min_skip": 5000}, "got 5000 and None"),
        ({"max_skip": 5000}, "max_skip must be at most 4,096, got 5,000"),
        ({"max_skip": 1, "skip": False}, "bound a learned gate; they need skip = true"),
        ({"max_skip": 1, "gate": "bernoulli"}, "'bernoulli' needs skip = true, and no min_skip or max_skip"),
        ({"gate": "coin"}, "unknown gate 'coin'; choose round or bernoulli"),
    ],
)
def test_impossible_bounds_of_skips(options, message):
    with pytest.raises(SkipRNNError, match=message):
        TrainConfig(steps=1, **options)


def test_the_gpu_engine_of_stacks_has_no_bounds_of_skips_and_no_draws():
    pytest.importorskip("skiprnn.engines.graph")
    config = TrainConfig(steps=1, engine="graph", max_skip=3)
    with pytest.raises(SkipRNNError, match="--engine graph has no bounds of how many samples are skipped"):
        check_network(config, torch.device("cuda"))
    with pytest.raises(SkipRNNError, match="--engine graph has no gate that draws"):
        check_network(TrainConfig(steps=1, engine="graph", gate="bernoulli"), torch.device("cuda"))
