"""``python -m campaign``: attacks, counts, and a table of what came of it."""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # before numpy: forks and threads do not mix
os.environ.update(OPENCV_LOG_LEVEL="SILENT", MPLBACKEND="Agg")

from campaign import bombs, disk, fuzz, kills, names
from campaign.cases import FINE, Attack, Kind, Scene, Verdict
from campaign.originals import build, few_reviews
from campaign.processes import in_lanes, warm

SHOWN = 10  # failures that look alike, with what was done

Results = dict[str, list[tuple[int, Verdict]]]


def main() -> int:
    """Run the campaign; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("--times", type=float, default=1, help="multiplies the number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at once")
    parser.add_argument("--only", action="append", metavar="CLASS", help="leave out all others; may be repeated")
    parser.add_argument("--case", type=int, help="of the one class: run it alone and keep its folder")
    parser.add_argument("--list", action="store_true", help="name the classes")
    options = parser.parse_args()
    attacks = [
        attack for module in (fuzz, bombs, names, kills, disk) for attack in module.attacks(options.times)
        if not options.only or attack.name in options.only
    ]  # fmt: skip
    if options.list or not attacks:
        print(*(attack.name for attack in attacks), sep="\n")
        return 0 if attacks else parser.error("there is no such class; --list names them")
    folder = Path(tempfile.mkdtemp(prefix="skiprnn-campaign-"))
    folder.chmod(0o755)  # some commands run as another user
    try:
        results = campaign(attacks, folder, options)
    finally:
        if options.case is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"the case is in {folder / 'cases'}", file=sys.stderr)
    print(table(attacks, results))
    failures = list(listed(results, options.seed))
    print(*failures, sep="\n", end="\n" if failures else "")
    return int(bool(failures))


def campaign(attacks: list[Attack], folder: Path, options: argparse.Namespace) -> Results:
    """What came of each case of the attacks."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    warm()
    originals = folder / "originals"
    originals.mkdir()
    few_reviews()
    tried = [attack for attack in attacks if not attack.skipped]
    build(originals, *dict.fromkeys(name for attack in tried for name in attack.needs))
    say("the undamaged files are made")

    def scene(attack: Attack, case: int | str, prepared: Any = None) -> Scene:
        place = folder / "cases" / f"{attack.name} {case}".replace("/", "-")
        place.mkdir(parents=True)
        place.chmod(0o777)
        return Scene(place, originals, random.Random(f"{options.seed}/{attack.name}/{case}"), prepared)

    def prepare(number: int) -> Any:
        return attacks[number].prepare(scene(attacks[number], "undamaged"))

    numbers = [number for number, attack in enumerate(attacks) if not attack.skipped]
    prepared = dict(in_lanes(prepare, numbers, options.jobs))
    say("what becomes of them is known")

    def try_case(which: tuple[int, int]) -> list[Verdict]:
        attack, case = attacks[which[0]], which[1]
        place = scene(attack, case, prepared[which[0]])
        try:
            return attack.run(case, place)
        finally:
            if options.case is None:
                shutil.rmtree(place.folder, ignore_errors=True)

    chosen = (lambda attack: range(attack.count)) if options.case is None else (lambda attack: [options.case])
    cases = [(number, case) for number in numbers for case in chosen(attacks[number])]
    results: Results = defaultdict(list)
    done: Counter[int] = Counter()
    for (number, case), verdicts in in_lanes(try_case, cases, options.jobs):
        attack = attacks[number]
        results[attack.name] += [(case, verdict) for verdict in verdicts]
        for verdict in verdicts:
            if options.case is not None or verdict.kind not in FINE:
                told = f"{verdict.what}\n    skiprnn {' '.join(verdict.command)}\n    {verdict.kind}: {verdict.detail}"
                say(f"{attack.name}, case {case}: {told:.2000}")
        done[number] += 1
        if done[number] == len(chosen(attack)):
            failed = sum(verdict.kind not in FINE for _, verdict in results[attack.name])
            say(f"{attack.name}: {len(results[attack.name])} tried, {failed} failed")
    return results


def table(attacks: list[Attack], results: Results) -> str:
    """The table in Markdown."""
    rows = [["class of fault", "tried", *Kind], ["---", *["---:"] * (len(Kind) + 1)]]
    for attack in attacks:
        if attack.skipped:
            rows.append([f"{attack.name} (not tried: {attack.skipped})", "0", *["0"] * len(Kind)])
            continue
        counts = Counter(verdict.kind for _, verdict in results[attack.name])
        rows.append([attack.name, str(counts.total()), *(str(counts[kind]) for kind in Kind)])
    total = Counter(verdict.kind for verdicts in results.values() for _, verdict in verdicts)
    rows.append(["**all**", str(total.total()), *(str(total[kind]) for kind in Kind)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _general(detail: str) -> str:
    """What is told of a failure without its numbers, its long names and those of temporary files."""
    return re.sub(r"(x/?){9,}|\d+|\.[a-z0-9_]{8}\.|'[^']*'", "…", detail)[:60]


def listed(results: Results, seed: int) -> list[str]:
    """The failures; those that look alike together."""
    alike: dict[tuple[str, ...], list[tuple[int, Verdict]]] = defaultdict(list)
    for name, verdicts in results.items():
        for case, verdict in verdicts:
            if verdict.kind not in FINE:
                alike[name, verdict.kind, verdict.command[0], _general(verdict.detail)].append((case, verdict))
    lines = []
    for (name, *_), group in alike.items():
        case, verdict = group[0]
        said = [
            f"\n{verdict.kind}, {len(group)} of {name}: {re.sub(r'(x/?){9,}', 'x…', verdict.detail):.200}",
            *(f"  case {number}: {other.what:.110}: {other.command[0]}" for number, other in group[:SHOWN]),
            *([f"  and cases {', '.join(str(number) for number, _ in group[SHOWN:])}"] if group[SHOWN:] else []),
            f"  skiprnn {' '.join(verdict.command)[:300]}",
            f"  python -m campaign --seed {seed} --only '{name}' --case {case}",
        ]
        lines.append("\n".join(said))
    return lines


if __name__ == "__main__":
    sys.exit(main())
