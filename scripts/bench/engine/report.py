#!/usr/bin/env python3
"""What engine.sh measured.

    report.py table FILE NAME LABEL:STEP...   medians of one part, and Lifeboat beside the best of the others
    report.py goals FOLDER                    of all parts that ran: each goal, what was measured, reached or missed

A line of FILE: step, tool, wall s, user s, system s, peak KiB, new KiB, stored KiB.
"""
import os
import statistics
import sys

WALL, USER, SYSTEM, PEAK, NEW, STORED = range(6)
# Not a backup tool: it has no snapshots, and is compared with where a goal names it.
PIPE = "pipe"

# Part, step, what, the factor that must not be exceeded, whose: `peer` is the best of the backup tools.
GOALS = [
    ("files", "first", WALL, 0.90, PIPE),
    ("files", "first", WALL, 0.75, "peer"),
    ("files", "unchanged", WALL, 1.00, "bupstash"),
    ("files", "unchanged", WALL, 0.15, "rustic"),
    ("files", "changed", WALL, 0.50, "peer"),
    ("files", "changed", NEW, 1.00, "peer"),
    ("files", "restore", WALL, 0.80, "peer"),
    ("files", "restore", USER, 1.00, "peer"),
    ("files", "check", WALL, 0.80, "peer"),
    ("files", "first", STORED, 1.01, "peer"),
    ("files", "changed", STORED, 1.01, "peer"),
    ("postgres", "first", WALL, 0.65, "peer"),
    ("postgres", "first", NEW, 1.00, "peer"),
    ("postgres", "second", NEW, 0.20, "peer"),
]
# The most memory that any step of a part may take, in MiB.
PEAKS = [("files", 128), ("postgres", 128), ("redis", 128), ("million", 256), ("stream", 256)]
STEPS = {"first": "first snapshot", "unchanged": "unchanged", "changed": "after 1 %", "restore": "restore", "check": "deep check"}
WHATS = {WALL: "wall", USER: "user CPU", NEW: "new bytes", STORED: "stored bytes"}


def read(path):
    """Step, then tool: one list of numbers for each round."""
    found = {}
    with open(path) as lines:
        for line in lines:
            step, tool, *numbers = line.split()
            found.setdefault(step, {}).setdefault(tool, []).append([float(n) for n in numbers])
    return found


def medians(rounds):
    return [statistics.median(column) for column in zip(*rounds)]


def best(tools, key):
    """The best of the backup tools beside Lifeboat, or nothing."""
    return min((t for t in tools if t not in ("lifeboat", PIPE)), key=lambda t: key(tools[t]), default=None)


def table(path, name, steps):
    found = read(path)
    for label, step in (s.split(":") for s in steps):
        tools = {tool: medians(rounds) for tool, rounds in sorted(found.get(step, {}).items(), key=lambda t: ORDER.index(t[0]))}
        print(f"\n{name}: {label}\n{'':10} {'wall s':>8} {'user s':>8} {'system s':>8} {'peak MiB':>9} {'new MiB':>9}")
        for tool, n in tools.items():
            print(f"{tool:10} {n[WALL]:8.2f} {n[USER]:8.2f} {n[SYSTEM]:8.2f} {n[PEAK] / 1024:9.0f} {n[NEW] / 1024:9.1f}")
        mine = tools.get("lifeboat")
        if not mine:
            continue
        ratios = [("wall", lambda n: n[WALL]), ("CPU", lambda n: n[USER] + n[SYSTEM]), ("user CPU", lambda n: n[USER])]
        if step in ("first", "changed", "second"):
            ratios.append(("new bytes", lambda n: n[NEW]))
        for what, of in ratios:
            peer = best(tools, of)
            if peer:
                print(f"  {what}: {of(mine) / max(of(tools[peer]), 0.01):.2f} × {peer}")
        if PIPE in tools:
            print(f"  wall: {mine[WALL] / max(tools[PIPE][WALL], 0.01):.2f} × {PIPE}")


ORDER = ["lifeboat", "bupstash", "rustic", "restic", "borg", PIPE]


def goal(parts, part, step, what, factor, whose):
    """The goal in words, what was measured, and whether it is reached; nothing where the part or Lifeboat did not run."""
    tools = {tool: medians(rounds) for tool, rounds in parts.get(part, {}).get(step, {}).items()}
    if "lifeboat" not in tools:
        return None
    adjective = {WALL: "fastest peer", USER: "least of a peer", NEW: "best peer", STORED: "smallest peer"}[what]
    words = f"{part}, {STEPS[step] if part == 'files' else step + ' day'}: {WHATS[what]} ≤ {factor:.2f} × {adjective if whose == 'peer' else whose}"
    other = best(tools, lambda n: n[what]) if whose == "peer" else whose
    if other not in tools:
        return words, "nobody to compare with", None
    ratio = tools["lifeboat"][what] / max(tools[other][what], 0.01)
    return words, f"{ratio:.3f} × {other}", ratio <= factor


def peak(parts, part, limit):
    rounds = [n[PEAK] / 1024 for tools in parts.get(part, {}).values() for n in tools.get("lifeboat", [])]
    if not rounds:
        return None
    return f"{part}: peak memory of any step ≤ {limit} MiB", f"{max(rounds):.0f} MiB", max(rounds) <= limit


def goals(folder):
    parts = {part: read(os.path.join(folder, part)) for part in os.listdir(folder)}
    rows = [goal(parts, *g) for g in GOALS] + [peak(parts, *p) for p in PEAKS]
    rows = [row for row in rows if row]
    if not rows:
        return
    print("\ngoals")
    width, of = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    for words, measured, reached in rows:
        print(f"  {words:{width}}  {measured:>{of}}  {'–' if reached is None else 'reached' if reached else 'missed'}")
    judged = [row for row in rows if row[2] is not None]
    print(f"  {sum(row[2] for row in judged)} of {len(judged)} reached")


match sys.argv[1:]:
    case ["table", path, name, *steps]:
        table(path, name, steps)
    case ["goals", folder]:
        goals(folder)
    case _:
        sys.exit(__doc__)
