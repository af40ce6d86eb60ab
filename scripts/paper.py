#!/usr/bin/env python3
"""What scripts/paper.sh needs between two commands of oddgrad. Python's standard library only.

    paper.py few ROWS COUNT                  at most so many of the rows, evenly spaced
    paper.py chats ARCHIVE LONGEST TRAIN HELDOUT
                                             the chats of llamafactory's source archive whose prompt and longer
                                             answer have at most LONGEST characters: every fifth held out, the
                                             others to train on
    paper.py prompts ROWS                    the prompts of preference rows, as `generate --prompts` reads them
    paper.py pair FIRST SECOND               rows of two answers to each prompt, of two files of `generate --json`
    paper.py score ROWS                      a judge for `judge --command`: minus the number of characters that
                                             stand between the answer and the chosen one (0: exactly right)
    paper.py curves NAME METRICS             held-out curves of a run as a table
    paper.py figure NAME METRICS [odds]      the same curves as an SVG, with those of the log odds ratio beside them
    paper.py table ROWS FOLDER BASE OTHER…   won, tied and lost against BASE, from FOLDER/NAME.answers.jsonl and
                                             FOLDER/NAME.judged.jsonl
"""

import hashlib
import io
import json
import os
import sys
import tarfile


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def say(row):
    print(json.dumps(row, ensure_ascii=False))


def key(prompt):
    """A prompt, text or messages, as a key."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def asked(row):
    """The prompt of a preference row: text where it is one message of the user, else messages."""
    messages = row["prompt"]
    return messages[0]["content"] if [m["role"] for m in messages] == ["user"] else messages


def right_answers(path):
    return {key(asked(row)): row["chosen"][0]["content"] for row in rows_of(path)}


def few(rows, count):
    all_rows, count = rows_of(rows), int(count)
    count = min(count, len(all_rows))
    for at in range(count):
        say(all_rows[at * len(all_rows) // count])


CHATS_SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def chats(archive, longest, train, heldout):
    with open(archive, "rb") as file:
        data = file.read()
    found = hashlib.sha256(data).hexdigest()
    if found != CHATS_SHA256:
        sys.exit(f"error: {archive} has SHA-256 {found}, not {CHATS_SHA256}: remove it and start again")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        rows = json.load(tar.extractfile("llamafactory-0.9.5/data/dpo_en_demo.json"))

    def message(turn):
        return {"role": ROLES[turn["from"]], "content": turn["value"]}

    def length(row):
        answers = [len(row[side]["value"]) for side in ("chosen", "rejected")]
        return sum(len(turn["value"]) for turn in row["conversations"]) + max(answers)

    short = [row for row in rows if length(row) <= int(longest)]
    kept = [
        {
            "prompt": [message(turn) for turn in row["conversations"]],
            "chosen": [message(row["chosen"])],
            "rejected": [message(row["rejected"])],
        }
        for row in short
    ]
    parts = [[row for at, row in enumerate(kept) if at % 5 != 4], kept[4::5]]
    for path, part in zip((train, heldout), parts):
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        print(f"{path}: {len(part)} of {len(rows)} chats", file=sys.stderr)


def distance(a, b):
    """Levenshtein's: characters to insert, remove or replace."""
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        this = [i]
        for j, y in enumerate(b, 1):
            this.append(min(last[j] + 1, this[-1] + 1, last[j - 1] + (x != y)))
        last = this
    return last[-1]


def prompts(rows):
    for row in rows_of(rows):
        say({"prompt": asked(row)})


def pair(first, second):
    """Equal and empty answers are left to `table`: there is nothing to ask a judge."""
    for a, b in zip(rows_of(first), rows_of(second), strict=True):
        assert a["prompt"] == b["prompt"], "the files answer other prompts"
        if differ(a["text"], b["text"]):
            say({"prompt": a["prompt"], "answers": [a["text"], b["text"]]})


def differ(a, b):
    return bool(a.strip() and b.strip()) and a != b


def score(rows):
    question = json.load(sys.stdin)
    print(-distance(question["answer"].strip(), right_answers(rows)[key(question["prompt"])].strip()))


CURVES = ["eval_logps/chosen", "eval_logps/rejected", "eval_log_odds_chosen"]


def evaluations(metrics):
    return [record for record in rows_of(metrics) if all(key in record for key in CURVES)]


def curves(name, metrics):
    print(f"\n{name}, held-out rows (log-probs per token):\n")
    print("| step | chosen | rejected | log odds ratio |\n|---|---|---|---|")
    for record in evaluations(metrics):
        print(f"| {record['step']} | " + " | ".join(f"{record[key]:.3f}" for key in CURVES) + " |")


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 320, 56, 56, 16, 44


def panel(records, title, lines):
    """Curves of (key, label, colour) over the steps, on axes of their own."""
    steps = [record["step"] for record in records]
    values = [record[key] for record in records for key, _, _ in lines]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def x(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - steps[0]) / (steps[-1] - steps[0] or 1)

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    out = [f'<text x="{LEFT}" y="20" font-weight="bold">{title}</text>']
    for tick in range(5):
        value = low + (high - low) * tick / 4
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for step in steps[:: max(1, len(steps) // 8)]:
        out.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    for at, (key, label, colour) in enumerate(lines):
        points = " ".join(f"{x(record['step']):.1f},{y(record[key]):.1f}" for record in records)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{LEFT + 100 * at}" y="40" fill="{colour}">{label}</text>')
    return "\n".join(out)


def figure(name, metrics, odds=None):
    records = evaluations(metrics)
    answers = [(CURVES[0], "chosen", "#1b7f4b"), (CURVES[1], "rejected", "#c23b3b")]
    panels = [panel(records, f"{name}: log-prob per token, held out", answers)]
    if odds:
        panels.append(panel(records, "log odds ratio, held out", [(CURVES[2], "", "#2b5fb3")]))
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    for at, drawn in enumerate(panels):
        print(f'<g transform="translate({WIDTH * at})">\n{drawn}\n</g>')
    print("</svg>")


def said(answer):
    """An answer as text, which is a message where the prompt is a conversation."""
    return answer if isinstance(answer, str) else answer[0]["content"]


def table(rows, folder, base, *others):
    right = right_answers(rows)
    answers = {name: rows_of(f"{folder}/{name}.answers.jsonl") for name in (base, *others)}

    def exact(name):
        return sum(a["text"].strip() == right[key(a["prompt"])].strip() for a in answers[name])

    print(f"\nAnswers to {len(right)} held-out prompts, against those of {base}; a tie counts one half:\n")
    print("| | won | tied | the same | lost | one empty | win rate | exactly right |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| {base} | | | | | | | {exact(base)} |")
    for name in others:
        judged = f"{folder}/{name}.judged.jsonl"
        judged = {key(row["prompt"]): row for row in rows_of(judged)} if os.path.exists(judged) else {}
        won = tied = same = lost = empty = 0
        for a, b in zip(answers[base], answers[name], strict=True):
            if a["text"] == b["text"]:
                same += 1
            elif not differ(a["text"], b["text"]):
                empty += 1
            elif key(a["prompt"]) not in judged:
                sys.exit(f"error: {name}: no decision about {a['prompt']!r}")
            elif judged[key(a["prompt"])]["choice"] == "tie":
                tied += 1
            elif said(judged[key(a["prompt"])]["chosen"]) == b["text"]:
                won += 1
            else:
                lost += 1
        count = won + tied + same + lost
        rate = f"{100 * (won + (tied + same) / 2) / count:.1f} %" if count else "–"
        print(f"| {name} | {won} | {tied} | {same} | {lost} | {empty} | {rate} | {exact(name)} |")


COMMANDS = {
    "few": few,
    "chats": chats,
    "prompts": prompts,
    "pair": pair,
    "score": score,
    "curves": curves,
    "figure": figure,
    "table": table,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
