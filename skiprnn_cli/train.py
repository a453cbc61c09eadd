"""``skiprnn train``."""

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource as Source

from pipelines.errors import SkipRNNError
from pipelines.runs.config import (
    CHOICES,
    DATA,
    FOR_CELL,
    FOR_PLAIN,
    LOGS,
    MAY_CHANGE,
    NONE,
    OWN_TASKS,
    PRESETS,
    TASK_NAMES,
    WITH_BASELINES,
    TrainConfig,
    configure,
    dear_feature,
    is_own_cell,
    preset_of,
)
from skiprnn_cli import options
from skiprnn_cli.config_file import config_option
from skiprnn_cli.groups import variable_of
from skiprnn_cli.messages import detail, note

if TYPE_CHECKING:
    from pipelines.parallel.team import Team
    from pipelines.runs.training import Outcome
    from pipelines.sources.own import How

OF_THE_GATE = (
    "lam", "lam_warmup", "cost_growth", "feature_cost", "keep", "target_usage", "gate_clip", "gate", "min_skip",
    "max_skip",
)  # fmt: skip
FOR_CELL_NOTE = "".join(
    f"; {preset} {model}{f' on {task}' if task else ''}: "
    f"{', '.join(f'{name} {NONE if value is None else value}' for name, value in changes.items())}"
    for (task, preset, model), changes in [
        *FOR_CELL.items(),
        *(((*of, f"{cell or ''} without a gate".strip()), changes) for (*of, cell), changes in FOR_PLAIN.items()),
    ]
)


class FeatureCost(options.ParamType[str]):
    """A feature and its cost."""

    name = "feature=cost"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            dear_feature(str(value))
        except SkipRNNError as error:
            self.fail(f"{error}.", param, ctx)
        return str(value)


FEATURE_COST = FeatureCost()


def preset_option(flag: str, field: str, kind: Any, text: str) -> Callable[[Any], Any]:
    """An option whose default is the preset's, said in its help."""
    by_preset = {preset: _defaults(preset, field) for preset in CHOICES["preset"]}
    if len(set(by_preset.values())) == 1:
        default = next(iter(by_preset.values()))
    else:
        default = "; ".join(f"{preset}: {value or 'none'}" for preset, value in by_preset.items())
    return click.option(flag, field, type=kind, default=None, help=f"{text}  [default: {default}]" if default else text)


def _defaults(preset: str, field: str) -> str:
    """A preset's values, task by task where they differ: "mnist 128, own 64, else 256"."""
    having = [task for task in TASK_NAMES if preset in PRESETS[task]]
    values = {task.split("-")[0]: getattr(PRESETS[task][preset], field) for task in having}
    usual = Counter(values.values()).most_common(1)[0][0]
    special = [f"{task} {'none' if value is None else value}" for task, value in values.items() if value != usual]
    if usual is not None:
        special.append(f"else {usual}" if special else str(usual))
    return ", ".join(special)


@click.command(
    epilog="""\b
Examples:
  skiprnn train --cell lstm --lam 1e-5
  skiprnn train --task sine --cell gru --lam 1e-4 --preset paper --device cuda
  skiprnn train --no-skip                     the plain LSTM
  skiprnn train --config adding.toml --seed 3
  SKIPRNN_TRAIN_DEVICE=cuda skiprnn train     an option from the environment
  skiprnn train --resume runs/NAME --steps 5000"""
)
@click.option("--task", type=click.Choice(TASK_NAMES), help="What to learn.  [default: the data file's, or adding]")
@click.option(
    "--preset",
    type=click.Choice(CHOICES["preset"]),
    default="quick",
    show_default=True,
    help="quick: minutes on two CPU cores. settled: the paper's tables as far as CPUs carry. "
    f"paper: the paper's protocol. Options below default to it{FOR_CELL_NOTE}.",
)
@click.option(
    "--data",
    type=options.PATH,
    help="Data file, or sequences of your own, converted as `skiprnn gen-data own` does, and again when they change.  "
    "[default: data/TASK.h5; adding and sine are generated if missing]",
)
@options.classes
@preset_option("--fresh-batches/--no-fresh-batches", "fresh_batches", bool, "Draw each batch anew, not from the file.")
@preset_option(
    "--cell",
    "cell",
    options.CELL,
    "Recurrent cell: LSTM, GRU, plain RNN with tanh or ReLU, LSTM or GRU with layer normalization, or one of your own "
    "(docs/cells.md).",
)
@preset_option(
    "--reset-after/--reset-before",
    "reset_after",
    bool,
    "Which Skip GRU: torch's, or the one that the paper's authors trained.",
)
@preset_option("--skip/--no-skip", "skip", bool, "Learn to skip, or run the plain cell (lstm and gru).")
@preset_option(
    "--p-skip",
    "p_skip",
    options.Number(0, 1),
    "Baseline: skip with this probability instead of learning to (lstm and gru).",
)
@preset_option(
    "--gate",
    "gate",
    click.Choice(CHOICES["gate"]),
    "When the gate opens: where its sum is above 0.5, or, in training, with that probability.",
)
@preset_option("--min-skip", "min_skip", click.IntRange(min=0), "Samples skipped after each that is used, at least.")
@preset_option(
    "--max-skip", "max_skip", options.CountOrNone(min=0), "Samples skipped in a row, at most; none: any number."
)
@preset_option("--lam", "lam", options.Number(min=0), "λ, the loss of using one sample.")
@preset_option(
    "--lam-warmup", "lam_warmup", click.IntRange(min=0), "Steps over which λ rises from 0 to what it is; 0: at once."
)
@preset_option(
    "--cost-growth",
    "cost_growth",
    options.Number(min=0),
    "How much dearer each step makes a sample, in units of λ: one at step t costs λ (1 + GROWTH t).",
)
@click.option(
    "--feature-cost",
    type=FEATURE_COST,
    multiple=True,
    callback=lambda ctx, param, value: ",".join(value) or None,
    help="What a used sample costs on top, in units of λ, where this feature, a number from 0, is not 0, which stands "
    "for not measured; may be given for several.",
)
@preset_option(
    "--keep",
    "keep",
    options.Number(min=0, min_open=True),
    "As few samples as keep the validation metric at this: from --lam (1e-5) on, λ rises at each evaluation that "
    "keeps it, and falls back where one does not.",
)
@preset_option(
    "--target-usage",
    "target_usage",
    options.Number(0, 1, min_open=True),
    "The share of the samples to use: λ is found, positive while more are used, negative while fewer are.",
)
@preset_option("--hidden", "hidden_size", click.IntRange(min=1), "Units of a layer.")
@preset_option("--dropout", "dropout", options.Number(0, 1, max_open=True), "Before the head.")
@preset_option(
    "--memory",
    "memory",
    options.CountOrNone(min=3),
    "Updates for which units keep their state at first: from 2 to so many, instead of 4; for long sequences.",
)
@preset_option(
    "--true-lengths/--padded", "true_lengths", bool, "End sequences where they end, or read their padding too."
)
@preset_option("--layers", "num_layers", click.IntRange(min=1), "Layers of the stack.")
@preset_option("--engine", "engine", click.Choice(CHOICES["engine"]), "How the Skip RNN is computed.")
@preset_option(
    "--cuda-graph/--no-cuda-graph",
    "cuda_graph",
    bool,
    "On a GPU, with one layer of up to 128 units: replay a step's loss and gradients as a CUDA graph (docs/gpu.md).",
)
@preset_option("--lr", "lr", options.Number(min=0, min_open=True), "Learning rate of Adam.")
@preset_option(
    "--lr-schedule",
    "lr_schedule",
    click.Choice(CHOICES["lr_schedule"]),
    "The rate stays, or falls to 0 by the last step: along half a cosine, or in a straight line.",
)
@preset_option(
    "--decay-from",
    "decay_from",
    options.Number(0, 1, max_open=True),
    "Share of training after which cosine or linear begins to fall.",
)
@preset_option(
    "--warmup", "warmup", click.IntRange(min=0), "Steps over which the rate rises from a small one; 0: at once."
)
@preset_option("--grad-clip", "grad_clip", options.Number(min=0, min_open=True), "Largest global norm of the gradient.")
@preset_option(
    "--gate-clip",
    "gate_clip",
    options.NumberOrNone(min=0, min_open=True),
    "Bound of the gate's gradient, of each sequence and step, in units of a sequence's loss; none: no bound.",
)
@preset_option("--batch-size", "batch_size", click.IntRange(min=1), "Sequences of a batch.")
@preset_option("--steps", "steps", click.IntRange(min=1), "Batches to train on.")
@preset_option("--epochs", "epochs", click.IntRange(min=1), "Or passes over the train split.")
@preset_option(
    "--eval-every", "eval_every", click.IntRange(min=1), "Steps between evaluations; each saves a checkpoint."
)
@preset_option(
    "--patience",
    "patience",
    options.CountOrNone(min=1),
    "Stop after so many evaluations without a better one; none: train to the end.",
)
@preset_option(
    "--on-collapse",
    "on_collapse",
    click.Choice(CHOICES["on_collapse"]),
    "Where the gate shuts and the metric is lost for two evaluations: say so; or stop; or go back to the best "
    "checkpoint at half the learning rate, three times at most, and stop where there is none from before.",
)
@preset_option("--seed", "seed", click.IntRange(min=0), "Of weights and batches.")
@preset_option("--device", "device", click.Choice(CHOICES["device"]), "auto: CUDA where there is one.")
@preset_option(
    "--amp",
    "amp",
    click.Choice(CHOICES["amp"]),
    "bf16: matrix products of bfloat16, up to twice as fast on GPUs and on CPUs with AVX512-BF16; the gate stays in "
    "float32.",
)
@click.option(
    "--log",
    type=click.Choice(LOGS),
    multiple=True,
    help="Log evaluations there too, each with the extra of its name: to RUN/tensorboard; to Weights & Biases; to "
    "MLFLOW_TRACKING_URI. May be repeated.",
)
@config_option
@click.option("--out", type=options.PATH, help="Run directory.  [default: runs/NAME-DATE]")
@click.option(
    "--resume",
    type=options.PATH,
    help="Continue this run; only --steps, --epochs, --patience, --on-collapse, --device and --data may change. One "
    "whose cell is your own needs --cell too.",
)
@click.option(
    "--accept-edits",
    is_flag=True,
    help="With --resume: take what was edited by hand in the run's config.json or metrics.jsonl, and record it.",
)
@options.overwrite
@click.pass_context
def command(
    ctx: click.Context,
    /,
    task: str | None,
    preset: str,
    data: Path | None,
    classes: bool | None,
    log: tuple[str, ...],
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    accept_edits: bool,
    overwrite: bool,
    **training: Any,
) -> None:
    """Train a Skip RNN on adding, or what the options say, and save the run.

    The run directory receives config.json, environment.json, metrics.jsonl and the checkpoints last and best. Ctrl-C
    and SIGTERM save the run and stop it; --resume continues it as if it had not stopped. Under torchrun several
    processes train one run together.
    """
    from pipelines.parallel.team import team_of_environment
    from pipelines.runs.logs import require

    require(log)
    if accept_edits and resume is None:
        raise click.UsageError("--accept-edits is about a run there is; name it with --resume.")
    with team_of_environment() as team:
        how = (ctx, task, preset, data, classes, out, resume, accept_edits, overwrite, training)
        run = team.agree(_prepare(*how) if team.is_first else None)
        assert run is not None
        with stop_signals() as stopped:
            outcome = _train_with_display(run, stopped, log, accept_edits, team)
        if team.is_first:
            _summarise(outcome, log)
    if outcome.reason == "interrupted":
        sys.exit(128 + (stopped.signal or signal.SIGTERM))


def _prepare(
    ctx: click.Context,
    task: str | None,
    preset: str,
    data: Path | None,
    classes: bool | None,
    out: Path | None,
    resume: Path | None,
    accept_edits: bool,
    overwrite: bool,
    training: dict[str, Any],
) -> Path:
    """The run to train, made or changed."""
    from pipelines.parallel.devices import choose_device
    from pipelines.runs.directory import check_run_path, create_run, default_run_path
    from pipelines.runs.model import check_network
    from pipelines.runs.training import load_training_data
    from pipelines.tasks import TASKS, SyntheticTask
    from skiprnn_cli.gen_data import ensure_data

    if resume is not None:
        run = resume
        _change_resumed(ctx, run, data, accept_edits, training)
    else:
        config = _configuration(task, preset, data, classes, training)
        usual = asdict(preset_of(config.task, config.preset))
        changed = {name: value for name, value in asdict(config).items() if value != usual[name] and name != "data"}
        detail(f"preset {config.preset} of {config.task}, but for: {changed or 'nothing'}; data: {config.data}")
        run = out or default_run_path(config, options.RUNS)
        check_run_path(run, overwrite=overwrite)
        device = choose_device(config.device)
        check_network(config, device)
        detail(f"device: {device}")
        if config.cuda_graph and device.type != "cuda":
            note(f"--cuda-graph is a matter of GPUs, and this trains on the device {device}")
        if data is None:
            kind = TASKS[config.task]
            if issubclass(kind, SyntheticTask):
                ensure_data(Path(config.data), kind())
        load_training_data(config)  # refuse bad data before there is a run
        create_run(run, config, overwrite=overwrite)
    note(f"run: {run}")
    return run


class StopSignals:
    """Remembers the first SIGINT or SIGTERM; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        return self.signal != 0

    def remember(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        click.echo("stopping after this step, once more to stop at once", err=True)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch SIGINT and SIGTERM in the block."""
    stopped = StopSignals()
    before = {number: signal.signal(number, stopped.remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _configuration(
    task: str | None, preset: str, data: Path | None, classes: bool | None, training: dict[str, Any]
) -> TrainConfig:
    options.check_classes(task, classes)
    if data is not None:
        from pipelines.tasks import task_of_file

        data = _imported(data, task if task in OWN_TASKS else None, classes)
        task = task_of_file(data, task).name
    else:
        _refuse_classes(classes)
    task = task or "adding"
    if training["p_skip"] is not None:
        if training["skip"]:
            raise click.UsageError("--p-skip is a baseline without a learned gate; drop --skip.")
        training["skip"] = False
    for name in OF_THE_GATE:
        if training[name] not in (None, NONE, 0) and training["skip"] is False:
            flag, other = f"--{name.replace('_', '-')}", "--no-skip" if training["p_skip"] is None else "--p-skip"
            raise click.UsageError(f"{flag} has nothing to act on where the gate is not learned; drop it, or {other}.")
    _refuse_two_lengths(training)
    usual = preset_of(task, preset)

    def chosen(name: str) -> Any:
        return getattr(usual, name) if training[name] is None else training[name]

    if training["epochs"] is not None and chosen("fresh_batches"):
        raise click.UsageError("Fresh batches have no epochs; give --steps, or --no-fresh-batches.")
    if training["decay_from"] and chosen("lr_schedule") == "constant":
        raise click.UsageError("--decay-from has no fall to begin; add --lr-schedule linear or cosine.")
    if training["reset_after"] is not None and chosen("cell") != "gru":
        raise click.UsageError("--reset-after and --reset-before are of a GRU; add --cell gru, or drop them.")
    if training["reset_after"] is False and not chosen("skip"):
        raise click.UsageError(
            "The GRU that learns no gate is of torch's kind, which resets after; drop --reset-before."
        )
    if not chosen("skip") and chosen("cell") not in WITH_BASELINES:
        flag = "--no-skip" if training["p_skip"] is None else "--p-skip"
        raise click.UsageError(
            f"{flag} is a baseline of {' and '.join(WITH_BASELINES)} alone; drop it, or --cell {chosen('cell')}."
        )
    path = (data or DATA / f"{task}.h5").absolute()
    return configure(task, preset, data=str(path), **training)


def _imported(data: Path, task: str | None, classes: bool | None) -> Path:
    """The data file itself, or one's own sequences made into one, for a task if that was named."""
    from pipelines.data.schema import schema_of
    from pipelines.sources.own import SUFFIXES, How, earlier

    if not data.exists() or schema_of(data) or not (data.is_dir() or data.suffix.lower() in SUFFIXES):
        _refuse_classes(classes)
        return data
    from skiprnn_cli.gen_data import data_file_of, import_own

    path = data_file_of([data])
    if path.exists() and path.resolve() == data.resolve():
        path = DATA / f"{data.resolve().stem}-skiprnn.h5"
    found, how = "none", How()
    if path.exists():
        before = earlier(data, path, task=task, classes=classes)
        found, task, classes, how = before.found, before.task, before.classes, before.how
    settings = f" --task {task}" if task else {None: "", True: " --classes", False: " --numbers"}[classes]
    settings += _reading(how)
    if found == "other":
        raise SkipRNNError(
            f"{path} exists already, and was not made of {data} as it would be now; train on it with --data {path}, or "
            f"make it anew with `skiprnn gen-data own {data} --out {path}{settings} --overwrite`"
        )
    if found == "same":
        note(f"{data} has not changed since it was converted: training on {path}")
        return path
    why = f", or what it is taken for, has changed since {path} was made of it"
    why = " is no data file yet" if found == "none" else why
    note(f"{data}{why}: converting it, as `skiprnn gen-data own {data} --out {path}{settings}` does")
    import_own([data], path, task=task, classes=classes, overwrite=found == "changed", **vars(how))
    return path


def _reading(how: "How") -> str:
    """How sequences of one's own are read, as options of ``gen-data own``."""
    said = [f"--label-column {shlex.quote(name)}" for name in how.label_columns]
    columns = {"--id": how.id_column, "--time": how.time_column}
    said += [f"{flag} {shlex.quote(name)}" for flag, name in columns.items() if name is not None]
    said += [] if how.each_step is None else ["--per-step" if how.each_step else "--per-sequence"]
    said += [] if how.header is None else ["--header" if how.header else "--no-header"]
    return "".join(f" {words}" for words in said)


def _refuse_classes(classes: bool | None) -> None:
    if classes is not None:
        flag = "--classes" if classes else "--numbers"
        raise click.UsageError(f"{flag} is about sequences of your own that are to be converted; drop it.")


def _refuse_two_lengths(training: dict[str, Any]) -> None:
    if training["steps"] is not None and training["epochs"] is not None:
        raise click.UsageError("Give --steps or --epochs, not both.")


def _change_resumed(
    ctx: click.Context, run: Path, data: Path | None, accept_edits: bool, training: dict[str, Any]
) -> None:
    from pipelines.runs.named import refuse_training
    from pipelines.runs.training import change_run

    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source in (Source.COMMANDLINE, Source.ENVIRONMENT)}
    if (cell := training["cell"]) is not None and is_own_cell(cell):  # which says that its code may be run
        options.check_cell(run, cell)
        given.remove("cell")
    refused = given - {*MAY_CHANGE, "resume", "log", "accept_edits"}
    if refused:
        drop = []
        for option in ctx.command.params:
            if option.name in refused:
                variable = variable_of(option, str(ctx.auto_envvar_prefix))
                drop.append(variable if sources[option.name] is Source.ENVIRONMENT else option.opts[0])
        raise click.UsageError(f"--resume continues a run as it was configured; drop {', '.join(sorted(drop))}.")
    _refuse_two_lengths(training)
    refuse_training(options.run_or_model(run))
    changes = {name: training[name] for name in MAY_CHANGE if training.get(name) is not None}
    if changes.get("patience") == NONE:
        changes["patience"] = None
    if data is not None:
        changes["data"] = str(data.absolute())
    if "steps" in changes:
        changes["epochs"] = None
    elif "epochs" in changes:
        changes["steps"] = None
    if changes:
        change_run(run, accept=accept_edits, **changes)


def _train_with_display(
    run: Path, stopped: Callable[[], bool], log: tuple[str, ...], accept_edits: bool, team: "Team"
) -> "Outcome":
    from pipelines.runs.training import train
    from skiprnn_cli.progress import training_display

    if not team.is_first:
        return train(run, should_stop=stopped, accept=accept_edits, team=team)
    with training_display() as show:
        return train(run, should_stop=stopped, on_progress=show, log=log, accept=accept_edits, team=team)


def _summarise(outcome: "Outcome", log: tuple[str, ...]) -> None:
    from pipelines.runs.directory import load_config

    trained = load_config(outcome.run).cell
    named = shlex.quote(str(outcome.run)) + (f" --cell {trained}" if is_own_cell(trained) else "")
    how = {
        "finished": "finished",
        "patience": "out of patience",
        "collapsed": "stopped, its gate having shut,",
        "interrupted": "interrupted and saved",
    }[outcome.reason]
    click.echo(f"{outcome.run}: {how} at step {outcome.step} of {outcome.total_steps}{_best(outcome)}")
    if outcome.remedy is not None:
        click.echo(f"the gate is shut and the metric lost: {outcome.remedy}")
    if outcome.missed is not None:
        click.echo(f"Warning: {outcome.missed}", err=True)
    if outcome.reason == "interrupted":
        click.echo(f"continue with: skiprnn train --resume {named}{''.join(f' --log {name}' for name in log)}")
    else:
        click.echo(f"next: skiprnn evaluate {named}")


def _best(outcome: "Outcome") -> str:
    """Where the best checkpoint is, and what it does where the last evaluation was worse."""
    from pipelines.runs.directory import load_config, read_metrics
    from pipelines.tasks import TASKS

    records = {record["step"]: record["val"] for record in read_metrics(outcome.run)}
    if outcome.best_step not in records:
        return ""
    metric_name = TASKS[load_config(outcome.run).task].metric_name
    best, last = (
        f"{val['metric']:.4g}, {val['used_mean']:.1f} used"
        for val in (records[outcome.best_step], records[max(records)])
    )
    if outcome.best_step == max(records):
        return f", best at step {outcome.best_step}"
    return (
        f", best at step {outcome.best_step} ({metric_name} {best}), the last is worse: {metric_name} {last} "
        "(by validation loss, budget included); evaluate takes the best unless told --checkpoint last"
    )
