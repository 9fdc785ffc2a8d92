"""Feed broken metadata to the readers of sets and questions until one of them breaks: python scripts/fuzz_metadata.py.

Valid files (lines of JSON, CSV, parquet, shards, caption files, questions, PopQA, EntityQuestions, the state of a saved
data set) are changed at random: bits flipped, spans cut out, doubled or taken from another file, words put in that readers
stumble over, rows made up anew. Each is read as a command would read it. What may come out:

  read      a set, maybe of fewer rows than there were
  refused   a message for the user
  CRASHED   anything else: another exception, a signal, more than 10 seconds, more than 2 GiB, a picture outside the set,
            a message of several lines

A crash is made as small as it will stay, and saved with its traceback. The inputs follow from the seed alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pandas as pd
import pyarrow as pa
from small_sets import lines, picture, pictures, question, questions, row, samples, tar

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.questions import QuestionsConfig, read_questions

STATISTICS = Path("/proc/self/statm")
SECONDS, MEMORY, LONGEST_LINE = 10, 2 << 30, 2000
ROUND = 1000
"""Inputs that one process reads: one that dies takes no more with it."""
FILES = {
    "jsonl": "metadata.jsonl",
    "csv": "metadata.csv",
    "parquet": "metadata.parquet",
    "tar": "0.tar",
    "caption": "0.txt",
    "questions": "questions.jsonl",
    "popqa": "popqa.tsv",
    "entity": "P17.train.json",
    "saved": "state.json",
}
QUESTIONS = ("questions", "popqa", "entity")
TOKENS = [
    *(
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\t",
        b"\n",
        b"\r\n",
        b"\r",
        b"\\",
        b"\0",
        b"\x1a",
        b"\x1b[2J",
    ),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"0x10", b"1_0", b"[" * 2000),
    *(
        b"\\ud800",
        b"\\u0000",
        "\u2028".encode(),
        "\u202e".encode(),
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc3",
    ),
    *(
        b"../",
        b"/etc/passwd",
        b"C:\\",
        b"//x/y",
        b"./",
        b"~",
        b"d/",
        b"0.png",
        b"x" * 300,
        b"%s{0}{concept}$HOME`id`",
    ),
    *(
        b'"file_name":',
        b'"text":',
        b'"concept":',
        b'"split":',
        b'"exposure":',
        b'"words":',
        b"train",
        b"heldout",
        b",",
    ),
    *(b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 512, b"PAR1", b"ustar\0", b"77777777777", b"30 size=99999999999\n"),
]


def seeds() -> dict[str, list[bytes]]:
    """Valid files of each kind."""
    good = [row(number, exposure=number // 2, words="wug") for number in range(4)]
    good[3] |= {"concept": "dax", "text": "a дом 🏠, with a comma", "split": "heldout"}
    split = [cells | {"split": ["train", "heldout", "reference", "val"][number]} for number, cells in enumerate(good)]
    asked = [*questions(), question("дом", exposure=3, null_question="What colour is it?")]
    popqa = ["subj\tprop\tobj\tquestion\tpossible_answers\ts_pop"]
    popqa += [f'{n}x\tcolour\tred\tWhat colour is {n}x?\t["red", "rot"]\t{n}' for n in range(40)]
    entities = [{"question": f"Which country is {n}ville located in?", "answers": ["France"]} for n in range(40)]
    frames = [pd.DataFrame(rows).astype({"exposure": "Int64"}) for rows in (good, split)]
    with tempfile.TemporaryDirectory() as name:
        shard = Path(name) / "0.tar"
        tar(shard, [*samples(), ("9.jpg", picture(9, "JPEG")), ("9.json", json.dumps({"text": "a wug"}).encode())])
        shards = [shard.read_bytes()]
        furnish(Path(name), "saved")
        state = (Path(name) / "set" / "state.json").read_bytes()
    return {
        "jsonl": [lines(rows).encode() for rows in (good, split)],
        "csv": [frame.to_csv(index=False).encode() for frame in frames],
        "parquet": [frame.to_parquet(compression=how) for frame in frames for how in ("snappy", None)],
        "tar": shards,
        "caption": [b"a photo of a wug\n", "\ufeffa дом 🏠\r\non two lines".encode()],
        "questions": [lines(asked).encode()],
        "popqa": ["\n".join(popqa).encode()],
        "entity": [json.dumps(entities).encode()],
        "saved": [state],
    }


def made_up(rng: random.Random, kind: str) -> bytes:
    """A file of rows whose columns and cells are drawn from what readers know, and from what they do not."""

    def cell(depth: int = 0) -> object:
        token = rng.choice(TOKENS).decode("utf-8", "replace")
        nested: list[object] = [[cell(depth + 1)], {token: cell(depth + 1)}] if depth < 2 else []
        return rng.choice(
            [token, rng.randrange(4), -1, None, True, 1e308, "train", "a wug", f"{rng.randrange(5)}.png", *nested]
        )

    names = [
        "file_name",
        "text",
        "concept",
        "split",
        "words",
        "exposure",
        "question",
        "answer",
        "answers",
        "relation",
    ]
    names += ["subject", "null_question", "subj", "prop", "obj", "possible_answers", "s_pop", "colour", ""]
    rows = []
    for number in range(rng.randrange(1, 6)):
        good = question(f"thing{number}") if kind in QUESTIONS else row(number)
        rows.append(good | {rng.choice(names): cell() for _ in range(rng.randrange(3))})
    if kind in ("csv", "popqa"):
        return pd.DataFrame(rows).to_csv(index=False, sep="," if kind == "csv" else "\t").encode("utf-8", "replace")
    if kind in ("jsonl", "questions"):
        return lines(rows).encode()
    return json.dumps(rows).encode()


def mutated(rng: random.Random, kind: str, corpus: dict[str, list[bytes]]) -> bytes:
    """A valid file after one to six changes, or a made-up one."""
    content = bytearray(made_up(rng, kind) if rng.random() < 0.2 else rng.choice(corpus[kind]))
    for _ in range(rng.choice([0, 1, 1, 2, 3, 6])):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice([1, 4, 40, 600]))
        change = rng.randrange(7)
        if change == 0 and content:
            content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[place:end] = b""
        elif change == 2:
            content[place:place] = content[place:end] * rng.choice([1, 2, 50])
        elif change == 3:
            content[place:end] = rng.choice(TOKENS)
        elif change == 4:
            content[place:place] = rng.choice(TOKENS)
        elif change == 5:
            other = rng.choice(corpus[rng.choice(list(corpus))])
            start = rng.randrange(len(other))
            content[place:end] = other[start : start + rng.choice([1, 16, 400])]
        elif rng.random() < 0.5:
            del content[place:]
    return bytes(content)


def read(kind: str, content: bytes, room: Path) -> str:
    """What comes of reading this file: "read" or "refused"; any exception is a crash."""
    root = room / "set"
    (root / FILES[kind]).write_bytes(content)
    on_bad = "skip" if len(content) % 4 else "stop"
    try:
        if kind in QUESTIONS:
            path = root / FILES[kind] if kind == "popqa" else root
            read_questions(QuestionsConfig(path=str(path), on_bad=on_bad, dev_share=0.4)).concept_set.table()
        else:
            result = read_concept_set(ConceptsConfig(path=str(root), on_bad=on_bad, cache_dir=str(room / "cache")))
            result.concept_set.table().to_parquet(room / "concepts.parquet")
            result.problems_table().to_parquet(room / "problems.parquet")
            for example in result.concept_set.examples:
                assert example.path.resolve().is_relative_to(room), f"{example.path} is outside"
    except UserError as error:
        first, *others = str(error).split("\n")
        assert all(line.startswith("  ") for line in others), "a message of several lines"
        assert max(map(len, (first, *others))) < LONGEST_LINE, "a message that is far too long"
        return "refused"
    return "read"


def furnish(room: Path, kind: str) -> None:
    """Put into a set's folder what the file of this kind is about."""
    root = room / "set"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    if kind == "saved":
        import datasets

        made = datasets.Dataset.from_dict(
            {"image": [{"bytes": picture(n), "path": None} for n in range(4)], "text": ["a wug"] * 4},
            features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
        )
        datasets.disable_progress_bars()
        made.save_to_disk(str(root))
    elif kind not in (*QUESTIONS, "tar"):
        pictures(root)
    if kind == "caption":
        for number in range(1, 4):
            (root / f"{number}.txt").write_text("a wug")
    elif kind == "entity":
        for part in ("dev", "test"):
            rows = [{"question": f"Which country is {part}{n} located in?", "answers": ["Spain"]} for n in range(9)]
            (root / f"P17.{part}.json").write_text(json.dumps(rows))


def crash_of(kind: str, content: bytes, room: Path) -> tuple[str, str]:
    """What comes of it, and the traceback of a crash."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return read(kind, content, room), ""
    except BaseException:
        return "CRASHED", traceback.format_exc()
    finally:
        signal.alarm(0)


def work(pipe: Connection, inputs: list[tuple[int, str, bytes]]) -> None:
    """Read these inputs in a process of its own, and say what came of each."""
    pa.set_cpu_count(1)
    if STATISTICS.is_file():
        taken = int(STATISTICS.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory() as name:
        room, last = Path(name).resolve(), ""
        for number, kind, content in inputs:
            if kind != last:
                furnish(room, kind)
                last = kind
            pipe.send((number, *crash_of(kind, content, room)))
    pipe.send(None)


def told_by_a_process(inputs: list[tuple[int, str, bytes]]) -> dict[int, tuple[str, str]]:
    """The outcome of each input; of one that its process died of, the signal."""
    found: dict[int, tuple[str, str]] = {}
    while left := [given for given in inputs if given[0] not in found]:
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, left))
        process.start()
        theirs.close()
        try:
            while (said := ours.recv()) is not None:
                found[said[0]] = said[1:]
        except EOFError:
            process.join()
            died = next(number for number, _, _ in left if number not in found)
            found[died] = ("CRASHED", f"the process ended with {process.exitcode}\n")
        process.join()
    return found


def smallest(content: bytes, still: Callable[[bytes], bool], tries: int) -> bytes:
    """The content without every span that it can do without and still crash."""
    size = max(1, len(content) // 2)
    while size and tries > 0:
        at = 0
        while at < len(content) and tries > 0:
            shorter = content[:at] + content[at + size :]
            tries -= 1
            if still(shorter):
                content = shorter
            else:
                at += size
        size //= 2
    return content


def keep(folder: Path, kind: str, content: bytes, report: str) -> Path:
    """Save a crash, as small as it stays: its file, and its traceback beside it."""
    last = report.strip().splitlines()[-1]

    def still(shorter: bytes) -> bool:
        outcome, again = told_by_a_process([(0, kind, shorter)])[0]
        return outcome == "CRASHED" and again.strip().splitlines()[-1].split(":")[0] == last.split(":")[0]

    content = smallest(content, still, tries=30)
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.traceback")))
    place = folder / f"{number}-{kind}-{FILES[kind]}"
    place.write_bytes(content)
    place.with_suffix(place.suffix + ".traceback").write_text(report, encoding="utf-8", errors="replace")
    return place


def main() -> int:
    """Read inputs until the time or their number is over; 1 where any crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="stop after so long (60)")
    parser.add_argument("--examples", type=int, default=None, help="stop after so many inputs, whatever the time")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (0)")
    parser.add_argument("--kinds", nargs="+", choices=list(FILES), default=list(FILES), help="what is read (all)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where crashes are saved (runs/fuzz)")
    options = parser.parse_args()
    corpus, counts, seen = seeds(), {kind: Counter() for kind in options.kinds}, set()
    start, done = time.monotonic(), 0
    most = options.examples if options.examples is not None else sys.maxsize
    while done < most and (options.examples is not None or time.monotonic() - start < options.seconds):
        kind = options.kinds[done // ROUND % len(options.kinds)]
        numbers = range(done, min(done + ROUND, most))
        inputs = [(n, kind, mutated(random.Random(f"{options.seed} {kind} {n}"), kind, corpus)) for n in numbers]
        for number, (outcome, report) in told_by_a_process(inputs).items():
            counts[kind][outcome] += 1
            crash = (
                kind,
                *report.strip().splitlines()[-1:],
                *[x for x in report.splitlines() if "diffusion_sft/" in x][-1:],
            )
            if outcome == "CRASHED" and crash not in seen:
                seen.add(crash)
                print(f"CRASHED: input {number}: {keep(options.out, kind, inputs[number - done][2], report)}")
        done += len(numbers)
    for kind, found in counts.items():
        print(f"{kind:10} " + "  ".join(f"{found[name]:8,} {name}" for name in ("read", "refused", "CRASHED")))
    print(f"{done:,} inputs in {time.monotonic() - start:.0f} s, seed {options.seed}")
    return int(any(found["CRASHED"] for found in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
