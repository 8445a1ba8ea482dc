"""The command line: every command parses, calls, prints. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench import __version__

if TYPE_CHECKING:
    from bench.experiments import Experiment
    from bench.jobs import Job, Selection
    from bench.results import Row, Run
    from bench.soak import Outcome
    from bench.store import Store
    from bench.suites import Suite
    from reports.formats import Report

DEFAULT_STORE = "layerbench.sqlite"
WIDTH = 120
"""Columns of what is printed into a file or a pipe."""

PROFILE_OPTIONS = (
    *("names", "dataset", "structure", "batch", "steps"),
    *("implementations", "threads", "first", "csv_path", "plots"),
)
"""What means something beside ``train --profile``."""

Command = Callable[..., Any]

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


class Group(click.Group):
    """Prints the errors that a user can mend as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Bad input and a bad store end with exit status 2, missing data with 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            status = _exit_status(error)
            if status is None:
                raise
            click.echo(f"layerbench: {error.args[0] if error.args else error}", err=True)
            ctx.exit(status)


def _exit_status(error: Exception) -> int | None:
    """The exit status for errors that name their own remedy; None for a mistake of ours."""
    from impls import SpecError

    if isinstance(error, SpecError):
        return 2
    loaded = (
        ("bench.store", "StoreError", 2),
        ("bench.keras_model", "ModelError", 2),
        ("bench.nvml", "DeviceError", 2),
        ("bench.ceilings", "ProfileError", 2),
        ("bench.optuna_study", "TuneError", 2),
        ("bench.results", "Failure", 1),
        ("bench.sources", "SourceError", 2),
        ("impls.nn.training", "TrainingError", 1),
        ("datasets", "DatasetError", 1),
    )
    for module, name, status in loaded:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return status
    return None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """How fast, and how right, is this way of computing a neural-network layer, on this machine, against Keras?

    \b
    layerbench run                          check and time the quick suite, two minutes
    layerbench verify --model mnist         check only, in a Keras model on real images
    layerbench run --suite paper --op conv2d
    layerbench train                        a small network on the bundled digits, ours and Keras' in turns
    layerbench report --format markdown
    """


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_selection = _options(
    click.option("--suite", metavar="NAME|FILE", help="quick, paper[-large-kernels], networks, scaling, awkward."),
    click.option(
        "--case",
        "cases",
        multiple=True,
        metavar="CASE",
        help="For example conv2d:32x28x28x1,k5x5,f8, or after --op without it.",
    ),
    click.option("--op", "ops", multiple=True, help="conv2d, maxpool2d, avgpool2d, dense; may be repeated."),
    click.option("--impl", "implementations", multiple=True, metavar="NAME", help="Only these; see: layerbench list."),
    click.option("--direction", "directions", multiple=True, help="forward, grad_weights, grad_input."),
    click.option("--competitor", "competitors", multiple=True, metavar="NAME", help="keras, torch, ..., or none."),
    click.option("--batch", type=click.IntRange(min=1), help="Another batch size for every case."),
    click.option("--threads", type=click.IntRange(min=1), help="For every thread pool.  [default: all usable cores]"),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all random inputs."),
    click.option("--device", metavar="N|UUID", help="Which GPU, or which MIG slice; see: nvidia-smi -L."),
)


class Percent(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A share, written with or without the sign: ``5%``."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share: 0.05 for 5%. Fails for what is not a positive number."""
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            share = 0.0
        if not share > 0:
            self.fail(f"{value!r} is not a percentage above 0, such as 5%", param, ctx)
        return share


_limits = _options(
    click.option(
        "--setup-limit",
        "setup_limit_s",
        type=click.FloatRange(min=0, min_open=True),
        default=180.0,
        show_default=True,
        help="Seconds that an import, or making one plan, may take; then it is a TIMEOUT.",
    ),
    click.option(
        "--call-limit",
        "call_limit_s",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        help="Seconds that the calls of one sample may take, beside four times what they are expected to.",
    ),
)

_store = click.option("--db", default=DEFAULT_STORE, show_default=True, help="SQLite file or SQLAlchemy URL.")


@main.command("list")
@click.option("--op", "ops", multiple=True, help="Only these operations.")
def list_command(ops: tuple[str, ...]) -> None:
    """Show every implementation: device, directions, algorithm, arithmetic, and whether it can run here."""
    from bench.listing import entries, table

    _print(table(entries(ops)))


@main.command()
@_selection
@_limits
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="DATASET[:STRUCTURE]",
    help="Check inside Keras models on real images: digits, mnist, cifar10, olivetti; published: all 33; repeatable.",
)
@click.option("--training", is_flag=True, help="Check the training of the models instead, step by step against Keras.")
@click.option("--images", type=click.IntRange(min=2), default=64, show_default=True, help="Batch for --model.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the tables as markdown too.")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    training: bool,
    images: int,
    output: Path | None,
    setup_limit_s: float,
    call_limit_s: float,
    **options: Any,
) -> None:
    """Check every implementation and direction; nothing is timed. Exit status 1 if anything of ours is wrong.

    Without --model: the suite's cases against the float64 reference, error in units of the derived bound, then a
    reference model on the bundled digits. With --model: those models only. With --training: 20 training steps of
    each model beside its twin in Keras, gradients and optimizer.
    """
    from bench.agreement import verify_training
    from bench.keras_model import parse_model
    from bench.keras_training import KerasProcess
    from bench.machine import usable_cores
    from bench.verify import verify_in_model
    from reports import checks, formats

    threads = options.pop("threads")
    device = options.pop("device")
    seed = options["seed"]
    _, selection, wanted = _wanted(**options)
    rows: list[Any] = []
    pages: list[str] = []
    chosen = [model for text in models or ("digits",) for model in parse_model(text)]

    def show(*tables: Any) -> None:
        for table in tables:
            _print(formats.rich_table(table))
            pages.append(formats.markdown_table(table))

    if training:
        with KerasProcess(threads or usable_cores()) as keras:
            for model in chosen:
                with _console(stderr=True).status(f"{model.name}: {model.structure}"):
                    rows.append(verify_training(keras, model, images, seed))
                show(checks.training_table(rows[-1]))
    else:
        with _session(threads, seed, device, setup_limit_s=setup_limit_s, call_limit_s=call_limit_s) as session:
            session.start(dict.fromkeys((job.case.op, name) for job in wanted for name in job.names))
            if not models:
                rows = _progress(wanted, lambda job: session.verify(job.case, job.direction, job.names))
                show(checks.bounds_table(rows))
            for model in chosen if models or not options["cases"] else ():
                with _console(stderr=True).status(f"{model.name}: {model.structure}"):
                    found = verify_in_model(session, model, selection, images, threads or usable_cores(), seed)
                rows += found
                show(checks.layer_table(found), checks.swap_table(found))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n\n".join(pages) + "\n", encoding="utf-8")
    if _any_wrong(rows):
        ctx.exit(1)


@main.command()
@_selection
@_limits
@click.option(
    "--memory",
    type=click.Choice(["hot", "cold-weights", "cold", "both"]),
    default="hot",
    show_default=True,
    help="Caches before every call: hot; flushed but for activations; flushed; on a GPU both hot and flushed.",
)
@click.option("--budget", type=float, help="Seconds of timing per case and direction, shared by all.")
@click.option(
    "--precision",
    type=Percent(),
    default="2%",
    show_default=True,
    help="Stop a case before its budget is spent when half the width of every speed-up's interval is below this.",
)
@click.option("--resume", is_flag=True, help="Go on with the latest run in the store: only what is missing.")
@_store
@click.option("--json", "json_path", type=_FILE, help="Write the rows as JSON too.")
@click.option("--csv", "csv_path", type=_FILE, help="Write the rows as CSV too.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    memory: str,
    budget: float | None,
    precision: float,
    resume: bool,
    db: str,
    json_path: Path | None,
    csv_path: Path | None,
    setup_limit_s: float,
    call_limit_s: float,
    **options: Any,
) -> None:
    """Check every implementation, then time those that are right, in shuffled rounds with the competitors.

    Rows are stored as they are finished. Ctrl-C keeps them all; --resume goes on.
    """
    from bench.jobs import in_suite, missing
    from bench.profile_machine import holding, limits_of, with_ceilings
    from bench.results import write_csv, write_json
    from bench.store import Store
    from reports import formats, tables

    threads, device = options.pop("threads"), options.pop("device")
    if budget is not None and not budget > 0:  # before whatever is asked for is imported
        raise click.BadParameter("must be above 0 seconds", param_hint="--budget")
    suite, _, wanted = _wanted(**options)
    seconds = suite.budget_s if budget is None else budget
    how: dict[str, Any] = {
        "memory": memory,
        "precision": precision,
        "setup_limit_s": setup_limit_s,
        "call_limit_s": call_limit_s,
    }
    wished = _new_run(suite.name, threads, options["seed"], device, budget_s=seconds, **how)
    store = Store(db)
    current = _latest_like(store, wished) if resume else store.start(with_ceilings(wished, device))
    ceilings = limits_of(current, device)
    before = {(row.op, row.spec, row.direction, row.implementation) for _, row in store.rows(current.id)}
    todo = missing(wanted, before)
    if resume:
        click.echo(f"run {current.id}: {len(wanted) - len(todo)} of {len(wanted)} done, {len(todo)} to go")

    def measure(job: Job) -> list[Row]:
        known = ceilings.ceilings
        measured = ceilings.judge(session.run(job.case, job.direction, job.names, seconds))
        if ceilings.ceilings != known:
            store.set_machine(holding(current, ceilings.ceilings))
        found = [in_suite(row, suite) for row in measured]
        store.add(current, *found)
        return found

    interrupted = False
    with _session(current.threads, current.seed, device, **how) as session:
        try:
            session.start(dict.fromkeys((job.case.op, name) for job in todo for name in job.names))
            _progress(todo, measure)
        except KeyboardInterrupt:
            interrupted = True
    current = store.run(current.id)  # ceilings may have been measured again
    rows = [row for _, row in store.rows(current.id)]
    for path, write in ((json_path, write_json), (csv_path, write_csv)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, current, rows)
    formats.show(tables.brief(current, rows), _console())
    click.echo(f"\nrun {current.id} is in {db}; every case: layerbench report --db {shlex.quote(db)}")
    if interrupted:
        click.echo(f"stopped: {len(rows)} rows are kept; go on with the same command and --resume", err=True)
        ctx.exit(130)
    if _any_wrong(rows):
        ctx.exit(1)


@main.command()
@_store
@click.option("--run", "run_id", type=int, help="Which run.  [default: the latest]")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "csv", "latex"]), default="table", show_default=True
)
@click.option("--op", "ops", multiple=True, help="Only these operations.")
@click.option("--suite", help="The latest run of this suite.")
@click.option("--pivot", is_flag=True, help="Cases as lines, implementations as columns.")
@click.option("--with-published", is_flag=True, help="Put the paper's published times beside ours.")
@click.option("--paper", is_flag=True, help="Training: the paper's three tables, ours beside the published figures.")
@click.option("--scaling", is_flag=True, help="Suite scaling: its latest run with 1, 2, ... threads, and a model.")
@click.option("--output", type=_FOLDER, help="Write tables and figures there.")
def report(
    db: str,
    run_id: int | None,
    form: str,
    ops: tuple[str, ...],
    suite: str | None,
    pivot: bool,
    with_published: bool,
    paper: bool,
    scaling: bool,
    output: Path | None,
) -> None:
    """Show a run: median and interval, GFLOP/s, error in bounds, ratios, geometric means, ranking."""
    from bench.store import Store, StoreError
    from impls.specs import spec_type
    from reports import tables

    for op in ops:
        spec_type(op)  # raises for one that does not exist
    store = Store(db, must_exist=True)
    if paper:
        from reports.paper import report as paper_report

        trained = store.run(run_id, training=True)
        trainings = list(store.trainings(trained.id))
        if output:
            from reports.training_folder import write_results as write_trainings

            for path in write_trainings(output, trained, trainings):
                click.echo(path)
        else:
            _show(paper_report(trained, trainings), form)
        return
    if scaling:
        from reports.scaling import measured
        from reports.scaling import report as scaling_report

        taken = measured(store)
        if output:
            from reports.scaling_folder import write_results as write_scaling

            for path in write_scaling(output, taken):
                click.echo(path)
        else:
            _show(scaling_report(taken), form)
        return
    if suite and run_id is None:
        run_id = next((r.id for r in reversed(store.runs()) if r.suite == suite), None)
        if run_id is None:
            raise StoreError(f"{db} holds no run of suite {suite}; make one with: layerbench run --suite {suite}")
    found = store.run(run_id)
    rows = [row for _, row in store.rows(found.id) if row.op in (ops or (row.op,))]
    if output:
        from reports.folder import write_results

        for path in write_results(output, found, rows):
            click.echo(path)
        return
    _show(tables.report(found, rows, pivot, with_published), form)


def _show(shown: Report, form: str) -> None:
    """Print a report in one of the formats."""
    from reports import formats

    if form == "table":
        formats.show(shown, _console())
    else:
        click.echo(formats.text(shown, form), nl=False)


@main.command()
@click.option(
    "--experiment",
    "names",
    multiple=True,
    metavar="ID|DATASET[:N]|all",
    help="The paper's: by number, by data set (olivetti, mnist, cifar10), or all; may be repeated.",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME",
    help="A perceptron: mlp-housing, mlp-titanic[-sgd|-adam], mlp-mnist; may be repeated. See docs/mlp.md.",
)
@click.option("--dataset", help="Train --structure on this data set.  [default: digits, without --experiment]")
@click.option("--structure", metavar="TEXT", help='For example "C(3,8,r);M(2);F();D(10,sm);".')
@click.option("--epochs", type=click.IntRange(min=1), help="[default: as published; 10 of --dataset]")
@click.option("--batch", type=click.IntRange(min=1), help="Samples in a batch.  [default: as published; 32]")
@click.option("--batches", type=click.IntRange(min=1), help="Batches in an epoch, in place of --batch.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Train, or profile, only so many steps, each timed by itself."
)
@click.option("--repetitions", type=click.IntRange(min=1), help="[default: as published: 10 of olivetti; 1]")
@click.option(
    "--impl",
    "implementations",
    multiple=True,
    metavar="NAME",
    help="Who computes our layers; or plain, cupy, cupy_copies.  [default: auto; of a preset several]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda: Keras on the GPU, and of a preset the plain perceptron on CuPy.",
)
@click.option("--break-even", is_flag=True, help="Time some steps at several batch sizes: from which on does who pay?")
@click.option(
    "--against", default="keras", show_default=True, help="keras, keras:BACKEND, torch, joined by commas; or none."
)
@click.option(
    "--as-published", is_flag=True, help="Keras as in the paper: Adam's beta_2 0.9, deterministic, one thread."
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Accuracies that differ by fewer percentage points are as good as equal.",
)
@click.option("--threads", type=click.IntRange(min=1), help="For every thread pool.  [default: all usable cores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, order and dropout.")
@click.option("--resume", is_flag=True, help="Go on with the latest training in the store: only what is missing.")
@_store
@click.option("--profile", is_flag=True, help="Show where ours spends a step's time instead, on random images.")
@click.option("--first", is_flag=True, help="With --profile: the first step too, compiler's cache empty and filled.")
@click.option("--csv", "csv_path", type=_FILE, help="Write every epoch or step, or the profile, as CSV too.")
@click.option(
    "--plots",
    type=_FOLDER,
    help="Draw figures there: learning curves; of first repetitions, confusion, mistakes and filters.",
)
@click.option("--weights", type=_FOLDER, help="Save the trained networks there.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    presets: tuple[str, ...],
    dataset: str | None,
    structure: str | None,
    repetitions: int | None,
    implementations: tuple[str, ...],
    device: str,
    break_even: bool,
    against: str,
    as_published: bool,
    margin: float,
    threads: int | None,
    seed: int,
    resume: bool,
    db: str,
    profile: bool,
    first: bool,
    csv_path: Path | None,
    plots: Path | None,
    weights: Path | None,
    **how: int | None,
) -> None:
    """Train the same network with ours and with others, in turns: time, accuracy, loss, and whether they agree.

    Without --experiment and --preset: a small network on the bundled digits. All start from the same weights and get
    the same batches. A repetition is stored when it is finished; --resume goes on after Ctrl-C.

    With --profile: per layer and direction of a training step its time, share, GFLOP/s, and what computed it. A
    structure that says the shape of its images (32x32x3->...) needs no data set then.
    """
    if sum(map(bool, (names, presets, dataset or structure))) > 1:
        raise click.UsageError("give --experiment, --preset, or --dataset and --structure, not both")
    if profile:
        _require_only(ctx, "profile", PROFILE_OPTIONS)
        _profile(names, dataset, structure, how, implementations or ("auto",), threads, first, csv_path, plots)
        return
    if first:
        raise click.UsageError("--first goes with --profile")
    from bench.contest import Contest, check, entrants, missing
    from bench.machine import usable_cores
    from bench.presets import CONTESTANTS, ON_CUDA
    from bench.progress import of_repetition
    from bench.results import TRAINING
    from bench.store import Store
    from reports import contests, formats, training_folder

    chosen = _experiments(names, presets, dataset, structure, how, break_even)
    wanted = [(each, number) for each in chosen for number in range(repetitions or each.repetitions)]
    wished = _new_run(TRAINING, threads, seed, None)
    if presets and not implementations:
        implementations = (*CONTESTANTS, *(ON_CUDA if device == "cuda" else ()))
    cores = threads or usable_cores()
    taking_part = entrants(implementations, against.split(","), cores, as_published, device == "cuda")
    check(chosen, taking_part)
    store = Store(db)
    current = _latest_like(store, wished) if resume else store.start(wished)
    todo = missing(wanted, taking_part, store.trainings(current.id))
    if resume:
        click.echo(f"run {current.id}: {len(wanted) - len(todo)} of {len(wanted)} done, {len(todo)} to go")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: processes end, shared memory is given back
    interrupted = False
    with Contest(taking_part, seed) as contest:
        try:
            for place, (experiment, repetition) in enumerate(todo, start=1):
                with of_repetition(_console(stderr=True), experiment, place, len(todo)) as progress:
                    store.add_trainings(current, contest.run(experiment, repetition, progress))
                for found in contest.learned() if weights or plots else ():
                    if weights:
                        found.save(weights)
                    if plots and repetition == 0:
                        training_folder.write_learned(plots, found)
        except KeyboardInterrupt:
            interrupted = True
    rows = store.trainings(current.id)
    shown = contests.report(current, rows, margin / 100)
    if csv_path:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        csv_path.write_text(formats.text(shown, "csv"), encoding="utf-8")
    formats.show(shown, _console())
    click.echo(f"\nrun {current.id} is in {db}")
    if plots:
        asked_for = {(each.id, str(each.structure), each.plan) for each in chosen}
        own = [row for row in rows if (row.experiment, row.structure, row.plan) in asked_for]
        training_folder.write_curves(plots, own)
        click.echo(f"figures are in {plots}")
    if interrupted:
        click.echo("stopped: finished repetitions are kept; go on with the same command and --resume", err=True)
        ctx.exit(130)
    if any(row.status not in ("OK", "UNAVAILABLE") and not row.competitor for row in rows):
        ctx.exit(1)


@main.command("study")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dataset", default="digits", show_default=True, help="Any with classes.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: the study's own]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, order and split.")
@click.option("--threads", type=click.IntRange(min=1), help="For every thread pool.  [default: all usable cores]")
@click.option("-o", "--output", type=_FOLDER, help="Write figures, tables and every epoch there.")
def study_command(
    names: tuple[str, ...], dataset: str, epochs: int | None, seed: int, threads: int | None, output: Path | None
) -> None:
    """What one choice does to training: initializers, signals, dropout, clipping, stopping, range, schedules, ...

    All of them without NAME. One thing is varied, the rest stays at a baseline, and a part of the training data that is
    held out judges; the test data are not looked at.
    """
    from bench.holdout import hold_out
    from bench.machine import usable_cores
    from bench.profile_training import threads as with_threads
    from bench.watching import of_study
    from reports import formats, study_folder

    chosen = study_folder.known(names)
    data = hold_out(dataset, seed)
    with with_threads(threads or usable_cores()):
        for name in chosen:
            with of_study(_console(stderr=True), name) as watch:
                found = study_folder.conduct(name, data, epochs, seed, watch)
            formats.show(found.report, _console())
            for path in study_folder.write(output, found) if output else ():
                click.echo(path)


@main.command("tune")
@click.option("--dataset", default="digits", show_default=True, help="Any with classes.")
@click.option("--objective", default="accuracy", show_default=True, help="accuracy, loss, or time: to accuracy.")
@click.option("--trials", type=click.IntRange(min=1), default=100, show_default=True, help="In all, over all sittings.")
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True, help="Of a trial, at most.")
@click.option("--activation", default="relu", show_default=True, help="Of the hidden layers.")
@click.option("--optimizer", default="adam", show_default=True, help="sgd, adam, rmsprop, ...")
@click.option(
    "--storage",
    default="sqlite:///layerbench-tune.sqlite",
    show_default=True,
    help="SQLAlchemy URL, or journal:FILE; several processes may share one.",
)
@click.option("--name", default="", help="Of the study.  [default: DATASET-OBJECTIVE]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option("--threads", type=click.IntRange(min=1), help="For every thread pool.  [default: all usable cores]")
@click.option("-o", "--output", type=_FOLDER, help="Write networks, figures, tables and every trial there.")
@click.pass_context
def tune_command(
    ctx: click.Context,
    /,
    trials: int,
    storage: str,
    name: str,
    threads: int | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Search for layers, widths, dropout, rate, weights, clipping and batch with Optuna; a validation part judges.

    The same command goes on with a study that was interrupted, and works on one together with others. The best network
    is trained once more, and again on all training data; only that last one meets the test data.
    """
    from dataclasses import replace

    from bench.holdout import hold_out
    from bench.machine import describe, usable_cores
    from bench.optuna_study import OptunaStudy
    from bench.profile_training import threads as with_threads
    from bench.tuning import OBJECTIVES, Search, Space, finish, implementations
    from bench.watching import of_search
    from reports import formats, tune_folder

    pools = threads or usable_cores()
    search, space = Search(**options), Space()
    if OBJECTIVES[search.objective].timed:
        search = replace(search, place=f"machine {describe()['id']}, threads: {pools}")
        space = Space(implementations=implementations())
    study = OptunaStudy(search, space, storage, name)
    data = hold_out(search.dataset, search.seed)
    with with_threads(pools):
        try:
            with of_search(_console(stderr=True), study, trials) as watch:
                study.run(data, trials, watch)
        except KeyboardInterrupt:
            click.echo(f"stopped: {study.finished} trials are kept; go on with the same command", err=True)
            ctx.exit(130)
        chosen = finish(search, study.best(), data)
    found = tune_folder.Found.of(study, chosen)
    formats.show(found.report, _console())
    for path in tune_folder.write(output, found) if output else ():
        click.echo(path)


@main.command("auto")
@_store
@click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take kept measurements (measurements.csv[.gz]) in place of the store; may be repeated.",
)
@click.option("--regret", is_flag=True, help="Write nothing; show what the table's choices cost, and other rules'.")
@click.option("--output", type=_FILE, help="Write the table there.  [default: this machine's, in the user's cache]")
def auto_command(db: str, results: tuple[Path, ...], regret: bool, output: Path | None) -> None:
    """Make the table by which "auto" chooses implementations, from what this machine measured with this commit.

    First: layerbench run --suite networks --competitor none
    """
    from bench import auto, machine
    from bench.store import Store
    from impls.auto import measured_path, write
    from reports.formats import rich_table
    from reports.network_tables import regret_table

    if results:
        table = auto.from_results(results)
    else:
        here = machine.describe()
        table = auto.from_store(Store(db, must_exist=True), here["id"], here["commit"])
    if regret:
        _print(rich_table(regret_table(auto.regrets(table))))
        return
    if results and output is None:
        raise click.UsageError("kept measurements may be another machine's: say with --output where their table goes")
    path = output or measured_path()
    write(table, path)
    click.echo(f"{path}: {len(table.entries)} problems, {table.origin}")


@main.command("adaptive")
@click.option("--figure", "names", multiple=True, default=("all",), metavar="NAME|all", help="A study, or contest.")
@click.option("-o", "--output", type=_FOLDER, default="out/adaptive")
def adaptive_command(names: tuple[str, ...], output: Path) -> None:
    """Draw every figure and table of docs/adaptive.md: the features of the adaptive models, and their contest."""
    from reports.adaptive_folder import write

    for table in write(names, output):
        _print(table)
    click.echo(f"figures and tables are in {output}")


@main.command("profile")
@click.option("-o", "--output", type=_FOLDER, help="Write page, JSON and figure.")
@click.option("--json", "json_path", type=_FILE, help="Write the figures as JSON.")
@click.option("--db", metavar="STORE", help="Put its latest run with these threads into the roofline figure.")
@click.option("--threads", type=click.IntRange(min=1), help="Beside 1.  [default: all usable cores]")
@click.option("--device", metavar="N|UUID", help="Which GPU, or which MIG slice; see: nvidia-smi -L.")
def profile_command(
    output: Path | None, json_path: Path | None, db: str | None, threads: int | None, device: str | None
) -> None:
    """Measure what this machine can do at most: operations, memory, calls, fresh pages, and the GPU. Under a minute."""
    from bench.ceilings import write_profile
    from bench.machine import describe, usable_cores
    from bench.profile_machine import profile
    from bench.sources import rows_beside
    from bench.store import Store
    from reports import formats, profiles

    count = threads or usable_cores()
    rows = rows_beside(Store(db, must_exist=True), describe(device), count) if db else []
    with _console(stderr=True).status("starting") as status:
        found = profile(count, device, lambda done, of: status.update(f"round {done} of {of}"))
    formats.show(profiles.report(found), _console())
    if json_path:
        write_profile(json_path, found)
    for path in profiles.write(output, found, rows) if output else ():
        click.echo(path)


@main.command("soak")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the faults and their times.")
@click.option("--folder", type=_FOLDER, help="Keep the store there.")
@click.pass_context
def soak_command(ctx: click.Context, minutes: float, seed: int, folder: Path | None) -> None:
    """Kill runs, their workers and their store at random, go on, and prove that every row is there, once.

    Exit status 1 if anything was lost, doubled or malformed, with what it was.
    """
    import tempfile

    from bench.soak import KINDS, soak

    if folder:
        if folder.exists() and any(folder.iterdir()):
            raise click.BadParameter(f"{folder} is not empty", param_hint="--folder")
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, _console(stderr=True).status("starting") as status:

        def progress(outcome: Outcome) -> None:
            status.update(f"{outcome.faults.total()} faults, {outcome.resumes} resumes, {outcome.rows} rows")

        outcome = soak(minutes, seed, folder or Path(made), progress)
    _print(_grid(("fault", "times"), [(kind, str(outcome.faults[kind])) for kind in KINDS]))
    click.echo(f"{outcome.runs} runs, {outcome.resumes} resumes, {outcome.rows} rows: {len(outcome.losses)} losses")
    for loss in outcome.losses:
        click.echo(loss, err=True)
    if outcome.losses:
        ctx.exit(1)


@main.command("cuda-acceptance", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def cuda_acceptance(arguments: tuple[str, ...]) -> None:
    """Check and time everything on this machine's GPU in eight minutes, and write a page about it."""
    from bench.__main__ import accept

    sys.exit(accept(arguments))


@main.command()
@click.argument("base")
@click.argument("new")
@_store
@click.option("--fail-above", type=Percent(), help="Exit status 1 if a case is shown to be slower by more, or missing.")
@click.option("--relative-to", metavar="NAME", help="Times over this one's in the same rounds; or none.")
@click.option("--across-machines", is_flag=True, help="Compare although the machines differ.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "csv", "latex"]), default="table", show_default=True
)
@click.pass_context
def compare(
    ctx: click.Context,
    base: str,
    new: str,
    db: str,
    fail_above: float | None,
    relative_to: str | None,
    across_machines: bool,
    form: str,
) -> None:
    """Compare two runs case by case: faster, slower, same, or can't tell; or two machines' profiles.

    BASE and NEW are each a run's number or a commit in the store (its latest run), OTHER-STORE:NUMBER, or a file: a
    store, what run --json or --csv wrote, pytest-benchmark's JSON; or both are what profile --json wrote. Times are
    taken relative to a competitor that both runs have, since the machine's speed differs from run to run; --relative-to
    names another, or none.
    """
    from bench import sources
    from bench.compare import MARGIN
    from bench.compare import compare as compare_runs
    from reports.comparison import report as comparison_report
    from reports.profiles import comparison as comparison_of_machines

    machines = sources.profiles(base, new)
    if machines:
        if fail_above or relative_to:
            raise click.UsageError("--fail-above and --relative-to are for runs; these are profiles of machines")
        _show(comparison_of_machines(*machines), form)
        return
    before, after = sources.read(base, db), sources.read(new, db)
    if not across_machines:
        sources.require_one_machine(before, after)
    margin = fail_above or MARGIN
    outcome = compare_runs(before, after, relative_to, margin)
    _show(comparison_report(before, after, outcome, margin), form)
    if fail_above and outcome.is_worse:
        ctx.exit(1)


@main.command()
@click.option("--pairs", type=click.IntRange(min=1), default=200, show_default=True, help="Equal pairs.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so many, with what there is.")
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), help="Seconds of timing per pair.  [default: 0.7]"
)
@click.option("--threads", type=click.IntRange(min=1), help="For every thread pool.  [default: all usable cores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all random inputs.")
@click.option("--csv", "csv_path", type=_FILE, help="Write a line for every pair as CSV too.")
@click.pass_context
def selftest(
    ctx: click.Context,
    pairs: int,
    minutes: float | None,
    budget: float | None,
    threads: int | None,
    seed: int,
    csv_path: Path | None,
) -> None:
    """Try the statistics on this machine: equal pairs, and pairs with a slow-down of 1, 2, 5 and 20 percent.

    Says how often what is equal is called different, which differences are found, and what a sample costs beside its
    own time. Ten minutes.
    Exit status 1 if equal pairs are told apart more often than the tool states.
    """
    from math import inf

    from rich.progress import track

    from bench import overhead, selftest
    from reports import formats
    from reports.selftest import report as selftest_report

    this = _new_run("selftest", threads, seed, None)
    wanted = track(selftest.plan(pairs, seed), "pairs", console=_console(stderr=True))
    seconds = budget or selftest.BUDGET_S
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end
    costs = overhead.measure(this.threads)
    trials: list[Any] = []
    interrupted = False
    try:
        for trial in selftest.run(wanted, this.threads, seed, seconds, seconds=60 * minutes if minutes else inf):
            trials.append(trial)
    except KeyboardInterrupt:
        interrupted = True
    if not trials:
        raise click.ClickException("no pair was finished; give it more --minutes")
    shown = selftest_report(this, trials, seconds, costs)
    formats.show(shown, _console())
    if csv_path:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        csv_path.write_text(formats.text(shown, "csv"), encoding="utf-8")
    if interrupted:
        ctx.exit(130)
    if not selftest.keeps_its_word(selftest.findings(trials)):
        ctx.exit(1)


@main.group("datasets")
def datasets_group() -> None:
    """What data sets there are, where their files are, and whether they are sound."""


@datasets_group.command("list")
def datasets_list() -> None:
    """Show every data set: here or not, in which form, and where."""
    import datasets

    lines = [
        (
            e.name,
            "yes" if e.present else "no",
            e.form,
            str(e.path or ""),
            f"{len(e.missing)} files" if e.missing else "",
        )
        for e in datasets.inventory()
    ]
    _print(_grid(("data set", "here", "form", "folder", "files missing"), lines))


@datasets_group.command("fetch")
@click.argument("name")
def datasets_fetch(name: str) -> None:
    """Make sure that a data set is here and sound; download what is missing."""
    import datasets

    entry = datasets.fetch(_known_dataset(name))
    click.echo(f"{entry.name}: {entry.form}, {entry.path or 'bundled'}")


@datasets_group.command("verify")
@click.argument("name", required=False)
@click.option("--all-files", is_flag=True, help="Show the files that are as they should be, too.")
@click.pass_context
def datasets_verify(ctx: click.Context, name: str | None, all_files: bool) -> None:
    """Judge every file by its SHA-256. Exit status 1 if one is altered, or missing from the set that was named."""
    import datasets

    checks = datasets.verify(_known_dataset(name) if name else None)
    shown = [c for c in checks if all_files or c.status != datasets.OK]
    lines = [(c.dataset, c.file, c.form, c.status, c.note or c.found[:16]) for c in shown]
    if lines:
        _print(_grid(("data set", "file", "form", "status", "note"), lines))
    for each in dict.fromkeys(c.dataset for c in checks):
        own = [c.status for c in checks if c.dataset == each]
        click.echo(f"{each}: " + ", ".join(f"{own.count(status)} {status}" for status in dict.fromkeys(own)))
    bad = (datasets.ALTERED, datasets.MISSING) if name else (datasets.ALTERED,)
    if any(c.status in bad for c in checks):
        ctx.exit(1)


def _known_dataset(name: str) -> str:
    import datasets

    if name not in datasets.names():
        raise click.BadParameter(f"unknown data set {name!r}; known: {', '.join(datasets.names())}")
    return name


def _grid(headings: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Any:
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for line in lines:
        grid.add_row(*line)
    return grid


def _new_run(suite: str, threads: int | None, seed: int, device: str | None, **options: Any) -> Run:
    """A run that begins now, not yet in the store. Raises DeviceError for a device that does not exist.

    ``options``: what else must be the same where it is gone on with.
    """
    from datetime import UTC, datetime

    from bench import machine
    from bench.results import Run

    return Run(
        command=shlex.join(["layerbench", *sys.argv[1:]]),
        suite=suite,
        seed=seed,
        threads=threads or machine.usable_cores(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.describe(device),
        options=options,
    )


def _latest_like(store: Store, wished: Run) -> Run:
    """The latest run of this kind. Raises UsageError if it differs in what all rows of a run have in common."""
    from bench.results import TRAINING

    current = store.run(training=wished.suite == TRAINING)
    common = {name: (getattr(current, name), getattr(wished, name)) for name in ("suite", "seed", "threads")}
    for name, key in (("machine", "id"), ("commit", "commit"), ("versions", "versions")):
        common[name] = (current.machine.get(key), wished.machine[key])
    common["GPU"] = (current.machine.get("cuda_device", {}), wished.machine["cuda_device"])
    common |= {name: (stored, wished.options.get(name)) for name, stored in current.options.items()}
    for name, (stored, now) in common.items():
        if stored != now:
            raise click.UsageError(
                f"run {current.id} cannot be gone on with: its {name} is {stored}, now it is {now}; "
                "give the same options, or start a new run without --resume"
            )
    return current


def _experiments(
    names: tuple[str, ...],
    presets: tuple[str, ...],
    dataset: str | None,
    structure: str | None,
    how: dict[str, int | None],
    break_even: bool,
) -> list[Experiment]:
    """What is to be trained, with the options that were given in place of its own. Raises SpecError."""
    from dataclasses import replace

    from bench.experiments import images, own, select
    from bench.presets import select as select_presets
    from bench.presets import sweep
    from impls import SpecError

    if how["batch"] and how["batches"]:
        raise SpecError("give --batch or --batches, not both")
    if break_even and (how["batch"] or how["batches"] or how["epochs"]):
        raise SpecError("--break-even chooses batches and lengths itself: give no --batch, --batches or --epochs")
    changes: dict[str, Any] = {name: value for name, value in how.items() if value}
    if how["batch"]:
        changes["batches"] = None
    chosen = select(names) or select_presets(presets) or (own(dataset or "digits", structure),)
    changed = [replace(experiment, **changes) for experiment in chosen]
    if not break_even:
        return changed
    return [part for each in changed for part in sweep(each, len(images(each.dataset, 0)[0].x_train))]


def _require_only(ctx: click.Context, option: str, allowed: Iterable[str]) -> None:
    """Raises UsageError for an option that was given and means nothing beside another one."""
    given = (p for p in ctx.command.params if ctx.get_parameter_source(p.name or "") is ParameterSource.COMMANDLINE)
    unfit = [p.opts[0] for p in given if p.name not in (option, *allowed)]
    if unfit:
        raise click.UsageError(f"--{option} goes without {', '.join(unfit)}")


def _profile(
    names: tuple[str, ...],
    dataset: str | None,
    structure: str | None,
    how: dict[str, int | None],
    implementations: tuple[str, ...],
    threads: int | None,
    first: bool,
    csv_path: Path | None,
    plots: Path | None,
) -> None:
    """Profile every network with every implementation; print, and write what is asked for."""
    from dataclasses import replace

    from bench import profile_training
    from bench.ceilings import CPU, in_force
    from bench.profile_machine import limits_of, with_ceilings
    from bench.results import TRAINING
    from reports import formats
    from reports.network_tables import profile_report

    run = with_ceilings(_new_run(TRAINING, threads, 0, None))
    limits = in_force(limits_of(run).ceilings, CPU, run.threads)
    problems = profile_training.problems(names, dataset, structure)
    if how["batch"]:
        problems = tuple(replace(problem, batch=how["batch"]) for problem in problems)
    found = {}
    with profile_training.threads(run.threads):
        for problem, name in product(problems, implementations):
            with _console(stderr=True).status(f"{problem.name}, {name}"):
                profile = profile_training.profile_problem(problem, name, how["steps"] or profile_training.STEPS)
            found[problem.name, name] = profile
    shown = profile_report(run, found, limits)
    formats.show(shown, _console())
    if csv_path:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        csv_path.write_text(formats.text(shown, "csv"), encoding="utf-8")
    if plots:
        from reports.training_folder import write_profiles

        for path in write_profiles(plots, found):
            click.echo(path)
    for problem in problems if first else ():
        cold, warm = profile_training.first_steps(str(problem.structure), problem.image_shape, problem.batch)
        click.echo(
            f"{problem.name}: a new process's first step, its network made first: {cold:.1f} s, "
            f"with the compiler's cache {warm:.1f} s"
        )


def _session(
    threads: int | None, seed: int, device: str | None, *, setup_limit_s: float, call_limit_s: float, **how: Any
) -> Any:
    """A session with these limits; ``how``: its state of memory, and its precision."""
    from dataclasses import replace

    from bench.machine import usable_cores
    from bench.measure import Session

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, shared memory is given back
    session = Session(threads or usable_cores(), seed, device=device, **how)
    session.effort = replace(session.effort, plan_s=setup_limit_s, call_s=call_limit_s)
    return session


def _wanted(
    suite: str | None,
    cases: tuple[str, ...],
    ops: tuple[str, ...],
    implementations: tuple[str, ...],
    directions: tuple[str, ...],
    competitors: tuple[str, ...],
    batch: int | None,
    seed: int,
) -> tuple[Suite, Selection, tuple[Job, ...]]:
    """The suite and the jobs that the options describe. Raises SpecError for what cannot be read or does not exist."""
    from bench.jobs import Selection, jobs
    from bench.suites import Suite, load, with_batch
    from impls import OPS, SpecError, parse_case

    if suite and cases:
        raise SpecError("give --suite or --case, not both")
    prefixed = [case if case.partition(":")[0] in OPS or len(ops) != 1 else f"{ops[0]}:{case}" for case in cases]
    chosen = Suite("cases", tuple(dict.fromkeys(map(parse_case, prefixed)))) if cases else load(suite or "quick")
    if batch:
        chosen = with_batch(chosen, batch)
    selection = Selection(ops, implementations, directions, competitors)
    return chosen, selection, jobs(chosen, selection)


def _progress(wanted: Iterable[Job], action: Callable[[Job], list[Row]]) -> list[Row]:
    """Do every job under a progress bar with the time left; the rows of all."""
    from bench.progress import bar

    todo = list(wanted)
    rows: list[Row] = []
    with bar(_console(stderr=True)) as progress:
        task = progress.add_task("starting", total=len(todo))
        for job in todo:
            progress.update(task, description=f"{job.case} {job.direction}")
            rows += action(job)
            progress.advance(task)
        progress.update(task, description="done")
    return rows


def _any_wrong(rows: Iterable[Any]) -> bool:
    from bench.results import FAULTS

    return any(row.status in FAULTS and not getattr(row, "competitor", False) for row in rows)


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def _print(renderable: Any) -> None:
    _console().print(renderable)
