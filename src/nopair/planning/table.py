"""A plan for people to read."""

from rich.console import Console
from rich.table import Table

from nopair.planning.cards import CARDS, Throughput
from nopair.planning.plan import GIB, RESERVE, Plan


def print_plan(plan: Plan, speed: Throughput | None, console: Console) -> None:
    """Memory by stage and owner, operations by stage and part, and what each switch would change."""
    for line in _head(plan):
        console.print(line, markup=False, highlight=False)
    console.print(_memory(plan))
    console.print(_operations(plan, speed))
    if speed is not None:
        console.print(_whole_run(plan, speed), highlight=False)
    if plan.switches:
        console.print(_switches(plan))
    console.print("All numbers are computed from the architectures; none is measured.", highlight=False)


def _head(plan: Plan) -> list[str]:
    peak = plan.peak_bytes / GIB
    fitting = [name for name, card in CARDS.items() if plan.fits(card.gib)]
    shared = f", each of {plan.ranks} processes" if plan.ranks > 1 else ""
    counts = ", ".join(f"{name} {_short(count)}" for name, count in plan.parameters.items())
    trained = ", ".join(f"{name} {_short(count)}" for name, count in plan.trainable.items())
    cache = f"disk for data.cache: {plan.cache_bytes / GIB:.1f} GiB at most, less where photos or words come again"
    export = f"host memory at export: {plan.export_bytes / GIB:.2f} GiB, for the editor that is written"
    return [
        f"{plan.recipe}: peak {peak:.2f} GiB{shared}",
        f"fits, with {RESERVE:.0%} left alone: {', '.join(fitting) or 'none of the known cards'}",
        f"parameters: {counts}; trained: {trained}",
        *([export] if plan.export_bytes else []),
        *([cache] if plan.cache_bytes else []),
    ]


def _memory(plan: Plan) -> Table:
    table = Table(title="GiB at the worst moment", title_justify="left")
    table.add_column("of")
    for stage in plan.stages:
        table.add_column(stage.name, justify="right")
    names = dict.fromkeys(name for stage in plan.stages for name in sorted(stage.owners))
    largest = {name: max(stage.owners.get(name, 0) for stage in plan.stages) for name in names}
    for name in sorted(names, key=lambda each: -largest[each]):
        table.add_row(name, *(_gib(stage.owners.get(name, 0)) for stage in plan.stages))
    table.add_row("all", *(_gib(stage.peak_bytes) for stage in plan.stages), style="bold")
    return table


def _operations(plan: Plan, speed: Throughput | None) -> Table:
    table = Table(title="TFLOP of a step", title_justify="left")
    table.add_column("by")
    for stage in plan.stages:
        table.add_column(stage.name, justify="right")
    names = dict.fromkeys(name for stage in plan.stages for name in stage.flops)
    for name in names:
        table.add_row(name, *(_tera(stage.flops.get(name, 0)) for stage in plan.stages))
    table.add_row("all", *(_tera(stage.total_flops) for stage in plan.stages), style="bold")
    if speed is not None:
        seconds = [speed.seconds(stage.total_flops) for stage in plan.stages]
        label = f"estimated s at {_speed(speed)}"
        table.add_row(label, *(f"{value:.2f}" for value in seconds))
    return table


def _whole_run(plan: Plan, speed: Throughput) -> str:
    steps = " + ".join(f"{plan.steps[name]:,} {name}" for name in plan.step_flops)
    hours = plan.hours(speed)
    about = f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"
    return f"whole run: {steps} steps, about {about} h at {_speed(speed)} (a guess)"


def _speed(speed: Throughput) -> str:
    return f"{speed.efficiency:.0%} of {speed.tflops:g} TFLOP/s"


def _switches(plan: Plan) -> Table:
    table = Table(title="With one switch changed", title_justify="left")
    table.add_column("switch")
    table.add_column("peak GiB", justify="right")
    table.add_column("change", justify="right")
    table.add_column("TFLOP of a npedit step", justify="right")
    for one in plan.switches:
        change = (one.peak_bytes - plan.peak_bytes) / GIB
        table.add_row(" ".join(one.changes), _gib(one.peak_bytes), f"{change:+.2f}", _tera(one.flops))
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.3g}"


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
