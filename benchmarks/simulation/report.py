"""What came of a run, in words and as a picture."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from math import ceil
from pathlib import Path

from benchmarks.simulation.demand import Scenario
from benchmarks.simulation.world import World
from shared.scheduling import TURN_S


def summary(scenario: Scenario, world: World, bound_s: float) -> dict[str, str]:
    """Figures by what they say."""
    seen, devices = world.seen, len(scenario.devices)
    waits = sorted(seen.waits)
    apart = sorted(spread for spread, _, _ in seen.apart) or [0.0]
    least = loads_at_least(scenario, seen.finished_at)
    cost = decision_cost(world)
    return {
        "jobs, devices, failures": f"{seen.jobs:,}, {devices:,}, {seen.failures}",
        "last arrival, last job done (s)": f"{scenario.submissions[-1].at:,.0f}, {seen.finished_at:,.0f}",
        "devices at work; loading": f"{seen.work_s / devices / seen.finished_at:.1%}; "
        f"{seen.load_s / devices / seen.finished_at:.1%}",
        "loads; no fewer could have done": f"{seen.loads:,}; {least:,}",
        "a lane waited: median, 99 %, worst (s)": f"{statistics.median(waits):.1f}, "
        f"{waits[int(len(waits) * 0.99)]:.1f}, {waits[-1]:.1f}",
        "a job waited: mean, median, 99 %, worst (s)": _of_jobs(seen.job_waits),
        f"turns taken within the age bound of {bound_s:g} s": f"{sum(w <= bound_s for w in waits) / len(waits):.2%}",
        "tenants apart: median, 99 %, worst (s)": f"{statistics.median(apart):.0f}, "
        f"{apart[int(len(apart) * 0.99)]:.0f}, {apart[-1]:.0f}",
        "fair queueing on so many devices allows (s)": f"{_allowed(scenario, world):,.0f}",
        "one decision, by lanes that wait (ms)": ", ".join(f"{lanes}: {ms:.2f}" for lanes, ms in cost),
    }


def _of_jobs(waits: list[tuple[float, int]]) -> str:
    waits = sorted(waits)
    until = list(accumulate(n for _, n in waits))
    mean = sum(waited * n for waited, n in waits) / until[-1]
    shares = (waits[bisect_left(until, share * until[-1])][0] for share in (0.5, 0.99, 1.0))
    return ", ".join(f"{waited:,.0f}" for waited in (mean, *shares))


def loads_at_least(scenario: Scenario, makespan_s: float) -> int:
    """No schedule can do with fewer: one load serves one device, and no longer than everything takes."""
    fastest = max(device.speed for device in scenario.devices)
    work = Counter[str]()
    for one in scenario.submissions:
        work[one.model.name] += one.jobs * one.real_s / fastest
    return sum(max(1, ceil(seconds / makespan_s)) for seconds in work.values())


def _allowed(scenario: Scenario, world: World) -> float:
    """SFQ(D): a turn, and a window of each of the devices that share a queue, twice."""
    most = max(Counter(queue for device in scenario.devices for queue in device.queues).values())
    return TURN_S + 2 * (most + 1) * world.longest_window_s


def decision_cost(world: World) -> list[tuple[int, float]]:
    """(lanes that wait, milliseconds) for powers of two."""
    by_size: dict[int, list[float]] = {}
    for lanes, seconds in world.seen.decisions:
        if lanes:
            by_size.setdefault(1 << (lanes - 1).bit_length(), []).append(seconds)
    return [(size, 1000 * statistics.median(taken)) for size, taken in sorted(by_size.items())]


def plot(ours: World, arrival: World, bound_s: float, path: Path) -> None:
    """Work done over time, waits, and the cost of a decision, as a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = 1500, 470
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    runs = ((ours, "#1f5fa8", "this scheduler"), (arrival, "#c2571a", "arrival order, LRU"))

    def panel(left: int, title: str, right_label: str, top_label: str) -> tuple[int, int, int, int]:
        box = (left, 60, left + 420, 380)
        draw.rectangle(box, outline="#999999")
        draw.text((left, 30), title, "black", font)
        draw.text((left + 420, 386), right_label, "#444444", small, anchor="ra")
        draw.text((left + 4, 63), top_label, "#444444", small)
        return box

    def line(box: tuple[int, int, int, int], points: list[tuple[float, float]], color: str, dash: bool = False) -> None:
        x0, y0, x1, y1 = box
        drawn = [(x0 + x * (x1 - x0), y1 - min(1.0, y) * (y1 - y0)) for x, y in points]
        if dash:
            for k in range(0, 40, 2):
                (ax, ay), (bx, by) = drawn
                draw.line([ax + (bx - ax) * k / 40, ay, ax + (bx - ax) * (k + 1) / 40, by], fill=color, width=1)
        else:
            draw.line(drawn, fill=color, width=3)

    end = max(world.seen.finished_at for world, _, _ in runs)
    work = max(world.seen.work_s for world, _, _ in runs)
    box = panel(30, "Work done over time", f"{end:,.0f} s", f"{work:,.0f} device seconds")
    for world, color, _ in runs:
        line(box, [(at / end, done / work) for at, done in world.seen.progress[::20]], color)
    longest = max(world.seen.waits[-1] if world.seen.waits else 0 for world, _, _ in runs)
    longest = max(longest, *(sorted(world.seen.waits)[int(len(world.seen.waits) * 0.999)] for world, _, _ in runs))
    box = panel(520, "How long a lane waited (share of turns)", "100 % of turns", f"{longest:,.0f} s")
    for world, color, _ in runs:
        waits = sorted(world.seen.waits)
        line(
            box, [(k / len(waits), waits[k] / longest) for k in range(0, len(waits), max(1, len(waits) // 400))], color
        )
    line(box, [(0, bound_s / longest), (1, bound_s / longest)], "#555555", dash=True)
    draw.text((524, 376 - 320 * bound_s / longest - 12), f"age bound, {bound_s:g} s", "#555555", small)
    cost = decision_cost(ours)
    most = max(ms for _, ms in cost)
    box = panel(1010, "One decision, by lanes that wait", f"{cost[-1][0]} lanes", f"{most:.2f} ms")
    line(box, [(lanes / cost[-1][0], ms / most) for lanes, ms in cost], runs[0][1])
    for k, (_, color, name) in enumerate(runs):
        draw.rectangle((30 + 260 * k, 425, 50 + 260 * k, 441), fill=color)
        draw.text((58 + 260 * k, 424), name, "black", font)
    picture.save(path, optimize=True)
