#!/usr/bin/env python3
"""Reads a run's events with TensorBoard's own reader and compares them with metrics.jsonl.

    pip install tensorboard && python3 scripts/check_events.py runs/first
"""

import json
import math
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = sys.argv[1]
events = EventAccumulator(run, size_guidance={"scalars": 0})
events.Reload()
found = {
    (tag, event.step): event.value
    for tag in events.Tags()["scalars"]
    for event in events.Scalars(tag)
}
wanted = {}
with open(f"{run}/metrics.jsonl", encoding="utf-8") as file:
    for line in file:
        record = json.loads(line)
        step = record.pop("step")
        record.pop("epoch")
        for key, value in record.items():
            group, name = ("eval", key[5:]) if key.startswith("eval_") else ("train", key)
            wanted[f"{group}/{name}", step] = value
assert found.keys() == wanted.keys(), set(found) ^ set(wanted)
for key, value in wanted.items():
    # Events are of single precision, and JSON has no NaN.
    same = math.isnan(found[key]) if value is None else math.isclose(found[key], value, rel_tol=1e-6)
    assert same, (key, found[key], value)
print(f"{len(wanted)} figures of {len({step for _, step in wanted})} steps are the same")
