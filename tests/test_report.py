"""The report: what it says follows the tables, what it shows is whole, and nothing foreign gets out of its place."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from synthetic_run import MIXES, NAMES, synthetic_run

from diffusion_sft.errors import UserError
from diffusion_sft.files import read_json, read_table, write_json, write_table
from diffusion_sft.records import CATEGORIES, SHOWN_IMAGES, ConceptSet
from diffusion_sft.report import grids, page
from diffusion_sft.report.changes import Change, learning_change
from diffusion_sft.report.figures import exposure_panel
from diffusion_sft.report.findings import findings, headline
from diffusion_sft.report.mix_run import SHOWN_EVALUATIONS, thinned
from diffusion_sft.report.page import REPORT, write_report
from diffusion_sft.report.run import read_run
from diffusion_sft.report.svg import COLOURS, inline_svg
from diffusion_sft.report.wording import Estimate, cut, difference, number, printable, reading, seconds, share

SECTIONS = ["answer", "buckets", "exposure", "learning", "fid", "accuracy", "samples", "terms", "methods"]
VOID = {"meta", "img", "br", "hr", "link", "input", "area", "base", "col", "embed", "source", "track", "wbr"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://example.org/x.png onerror=alert(1)>',
    "x" * 10_000,
    "شجرة \u202egnp.exe",
    "🦊" * 20,
    "$\\frac{1}{0}$ {{ 7*7 }} {% raw %} %s",
    "a\x00b\x07\ud800c",
    "</style></svg><b>",
)


class Page(HTMLParser):
    """A page taken apart; raises where an element is closed that is not the open one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.scripts: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.text = text
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        assert len(given) == len(attrs), f"an attribute twice: {attrs}"
        assert not [name for name in given if name.startswith("on")], f"an event handler: {attrs}"
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "data") and value]
        if tag == "img":
            self.images.append(given)
        if tag == "script":
            self.scripts.append(given)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"closed but never opened: {tag}"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def prose(self) -> str:
        """All text, blanks made plain and single."""
        return " ".join(" ".join(self.words).split())


def check_whole(path: Path, sections: Sequence[str] = SECTIONS) -> Page:
    """Parse a page and hold it to what every page must keep; returns it."""
    read = Page(path.read_text(encoding="utf-8"))
    # The page's own scripts, inside it, and the data that they read; which ones run is said by the policy.
    assert [script for script in read.scripts if script and script.get("type") != "application/json"] == []
    assert "default-src 'none'" in html.unescape(read.text)
    assert "iframe" not in read.tags
    assert sorted(read.ids) == sorted(set(read.ids))
    assert [name for name in sections if name not in read.ids] == []
    for link in read.links:
        if link.startswith("#"):
            assert link[1:] in read.ids, f"{link} leads nowhere"
        elif not link.startswith("data:image/webp;base64,"):
            assert ":" not in link
            assert (path.parent / unquote(link)).is_file(), f"{link} leads nowhere"
    still = re.sub(r"<script.*?</script>", "", read.text, flags=re.DOTALL)
    assert "@import" not in still
    assert "url(http" not in still
    for image in read.images:
        assert image["alt"]
        assert image["src"]
        assert image["src"].startswith("data:")
    return read


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConceptSet]:
    """A whole synthetic run and its concept set; no test changes it."""
    return synthetic_run(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def whole(study: tuple[Path, ConceptSet]) -> Page:
    """The report of the whole synthetic run."""
    return check_whole(write_report(*study, title="A made-up study"))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, ConceptSet]:
    """A run of twelve concepts and two mixes, to take things away from."""
    return synthetic_run(tmp_path, names=NAMES[:12], mixes=(MIXES[0], MIXES[2]))


def test_the_page_shows_every_part(whole: Page, study: tuple[Path, ConceptSet]) -> None:
    drawings = [tag for tag in whole.tags if tag == "svg"]
    marks = whole.text.count('class="mark"')
    dynamics = len(MIXES) + 2 + 2
    assert len(drawings) - marks == 4 + 3 * len(MIXES) + 3 * len(MIXES) + len(MIXES) + dynamics
    assert len(whole.images) == 40 + 2 * grids.GRID_CONCEPTS * SHOWN_IMAGES * (2 + len(MIXES))
    for category, count in read_table(study[0] / "buckets/concepts.parquet")["category"].value_counts().items():
        assert f"{category} {count} concepts" in whole.prose
    for words in ("AUROC 0.980 [0.940, 1.000]", "Raw FIDs of two buckets must never be compared", "A made-up study"):
        assert words in whole.prose
    for key, value in (
        ("finetune.method", "full"),
        ("torch", "2.6.0"),
        ("cpu", "2 cores"),
        ("base", "9f86d081884c7d65"),
    ):
        assert f"{key} {value}" in whole.prose
    assert (study[0] / REPORT).stat().st_size < 6_000_000
    assert "Missing" not in whole.prose


def test_the_page_depends_on_the_run_alone(whole: Page, study: tuple[Path, ConceptSet]) -> None:
    assert write_report(*study, title="A made-up study").read_text(encoding="utf-8") == whole.text


def test_every_number_of_a_cell_is_the_tables(whole: Page, study: tuple[Path, ConceptSet]) -> None:
    measures = read_table(study[0] / "evaluate/measures.parquet")
    row = measures.query("model == 'unknown-100' and bucket == 'unknown' and metric == 'fid_change'").iloc[0]
    value, ends = reading(Estimate(value=row["value"], low=row["low"], high=row["high"]), signed=True)
    assert f"{value} {ends} better".replace("\u00a0", " ") in whole.prose
    assert ends == f"[{row['low']:.1f},\u00a0{row['high']:.1f}]".replace("-", "−")


def test_parts_that_are_missing_are_named(small: tuple[Path, ConceptSet]) -> None:
    run, concept_set = small
    (run / "evaluate/measures.parquet").unlink()
    (run / "finetune/unknown-100/evaluations.parquet").write_bytes(b"not a table")
    write_table(run / "evaluate/concept_accuracy.parquet", pd.DataFrame({"model": ["base"]}))
    (run / "evaluate/unknown-100/generated.json").write_text("{")
    (run / "finetune/unknown-000/finetune.json").unlink()
    shutil.rmtree(run / "probe")
    (run / "study.json").unlink()
    for path in (run / "evaluate/base/images").glob("*/0000.png"):
        path.write_bytes(path.read_bytes()[:200])
    text = check_whole(write_report(run, concept_set, title="t")).prose
    for words in (
        "evaluate/measures.parquet: not written by this run",
        "finetune/unknown-100/evaluations.parquet: is not a readable table",
        "evaluate/concept_accuracy.parquet: has no column concept, bucket",
        "evaluate/unknown-100/generated.json: is not a readable list of pictures",
        "finetune/unknown-000/finetune.json: not written by this run",
        "probe/scores.parquet: not written by this run",
        "study.json: not written by this run",
    ):
        assert words in text
    assert "no picture" in text
    assert "could not be read: 0000.png: is damaged or cut off" in text


def test_an_empty_run_is_a_page_of_missing_parts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    text = check_whole(write_report(tmp_path / "run", ConceptSet(concepts=(), examples=()), title="t")).prose
    assert "stays open: no mix of this run is recorded as trained on Unknown concepts" in text
    assert text.count("not written by this run") >= 8
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere", ConceptSet(concepts=(), examples=()), title="t")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = [name.encode("utf-8", "replace").decode() if "\ud800" in name else name for name in HOSTILE]
    run, concept_set = synthetic_run(tmp_path, names=names, mixes=("mix é#?&",))
    study = read_json(run / "study.json") | {"<script>key": {"</style>": HOSTILE[0], "n": [HOSTILE[1], 10**400]}}
    (run / "study.json").write_text(json.dumps(study))
    measures = read_table(run / "evaluate/measures.parquet")
    hostile = measures.assign(note=f"warning: {HOSTILE[0]}", extractor=HOSTILE[7])
    write_table(run / "evaluate/measures.parquet", hostile.replace({"bucket": {"all": HOSTILE[0]}}))
    buckets = read_json(run / "buckets/buckets.json") | {"rule": HOSTILE[1], "warnings": [f"`{HOSTILE[0]}`"]}
    write_json(run / "buckets/buckets.json", buckets)
    read = check_whole(write_report(run, concept_set, title=HOSTILE[0] + HOSTILE[6]))
    assert read.tags.count("title") == 1 + read.text.count("<title>") - 1
    assert HOSTILE[0] in read.prose
    assert HOSTILE[2] not in read.text
    assert cut(HOSTILE[2]) in read.prose
    assert "49" not in {word for word in read.words if "7*7" in word}
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in read.text)
    assert len(read.images) == sum(1 for tag in read.tags if tag == "img")


def test_larger_sets_are_cut_and_say_so(small: tuple[Path, ConceptSet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CARDS", 3)
    monkeypatch.setattr("diffusion_sft.report.cells.ROWS", 5)
    monkeypatch.setattr(page, "PICTURE_BYTES", 10_000)
    read = check_whole(write_report(*small, title="t"))
    assert "the 3 of the highest gain shown" in read.prose
    assert "The first 5 of 12 rows; the CSV has all of them." in read.prose
    assert "pictures left out, to keep this page small" in read.prose
    assert sum(len(image["src"] or "") for image in read.images) < 10_000 + 5_000


def test_pictures_outside_the_models_folder_are_not_taken(small: tuple[Path, ConceptSet]) -> None:
    folder = small[0] / "evaluate/base"
    listed = read_json(folder / "generated.json")
    listed["images"][0]["file"] = "../../../set/train/0-0.png"
    write_json(folder / "generated.json", listed)
    found = grids.generated_pictures(folder)
    assert list(found[listed["images"][0]["concept"]]) == [1]


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (64, 128), (100, 100), (300, 128)])
def test_pictures_keep_their_pixels_or_are_shrunk(tmp_path: Path, side: int, shown: int) -> None:
    Image.new("RGB", (side, side // 2)).save(tmp_path / "a.png")
    picture = grids.Album(budget=10_000).picture(tmp_path / "a.png", "a")
    assert picture is not None
    assert (picture.width, picture.height) == (shown, shown // 2)
    assert picture.crisp == (side <= 64)


def test_exposure_may_be_unknown_and_numbers_may_be_lacking(small: tuple[Path, ConceptSet]) -> None:
    run, concept_set = small
    concepts = read_table(run / "buckets/concepts.parquet")
    concepts["exposure"] = pd.array([pd.NA] * len(concepts), dtype="Int64")
    concepts.loc[:3, "gain_nats"] = np.nan
    write_table(run / "buckets/concepts.parquet", concepts)
    write_json(run / "buckets/buckets.json", read_json(run / "buckets/buckets.json") | {"exposure": None})
    measures = read_table(run / "evaluate/measures.parquet")
    measures.loc[measures["metric"].isin(["fid", "kid_change"]), ["value", "low", "high"]] = np.nan
    measures.loc[measures["metric"] == "fid", "note"] = "not measured: fewer than 4 images on a side"
    write_table(run / "evaluate/measures.parquet", measures)
    text = check_whole(write_report(run, concept_set, title="t")).prose
    assert "not recorded" in text
    assert "not measured: fewer than 4 images on a side" in text
    assert "AUROC says" not in text
    assert "nan" not in text.lower().split()


BETTER, WORSE, SAME = (
    Estimate(value=0.3, low=0.1, high=0.5),
    Estimate(value=-0.3, low=-0.5, high=-0.1),
    Estimate(value=0.3, low=-0.1, high=0.7),
)


@pytest.mark.parametrize(
    ("change", "lower_is_better", "outcome", "words"),
    [
        (BETTER, False, "better", "It rose (+30\u00a0points [+10,\u00a0+50])."),
        (BETTER, True, "worse", "It rose (+30\u00a0points [+10,\u00a0+50]), which is worse."),
        (WORSE, False, "worse", "It fell (−30\u00a0points [−50,\u00a0−10])."),
        (WORSE, True, "better", "It fell (−30\u00a0points [−50,\u00a0−10]), which is better."),
        (SAME, False, "same", "It did not change beyond its interval (+30\u00a0points [−10,\u00a0+70])."),
        (
            Estimate(value=0.3),
            False,
            "unclear",
            "It is given without an interval, so there is no verdict (+30\u00a0points).",
        ),
    ],
)
def test_the_verb_follows_sign_and_interval(
    change: Estimate, lower_is_better: bool, outcome: str, words: str
) -> None:
    said = Change(what="It", change=change, lower_is_better=lower_is_better)
    assert said.outcome == outcome
    assert said.sentence == words


def test_the_difference_of_two_shares_is_newcombes() -> None:
    # Newcombe (1998), table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339
    first, second = (
        stats.binomtest(correct, count).proportion_ci(method="wilson") for correct, count in ((48, 80), (56, 70))
    )
    found = difference(
        Estimate(value=48 / 80, low=first.low, high=first.high),
        Estimate(value=56 / 70, low=second.low, high=second.high),
    )
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_verdict_follows_the_tables(small: tuple[Path, ConceptSet]) -> None:
    run, _ = small
    assert headline(read_run(run))[0].startswith("Fine-tuning taught the model concepts it did not know")
    assert "4 became worse" in headline(read_run(run))[0]

    path = run / "finetune/unknown-100/evaluations.parquet"
    rows = read_table(path)
    unchanged = pd.concat([rows[rows["update"] == 0].assign(update=update) for update in (0, 400)])
    write_table(path, pd.concat([rows[rows["role"] == "trained"], unchanged[unchanged["role"] != "trained"]]))
    assert headline(read_run(run))[0].startswith(
        "Fine-tuning fitted pictures of concepts that were not known, but no"
    )
    assert "2 became worse" in headline(read_run(run))[0]

    write_table(path, rows[rows["role"] != "heldout"])
    (run / "evaluate/measures.parquet").unlink()
    assert "stays open; of 3 readings" in headline(read_run(run))[0]
    write_table(path, rows[rows["role"] == "trained"])
    assert headline(read_run(run))[0].endswith("what that cost was not measured.")


def test_changes_are_read_at_the_first_and_the_last_evaluation(study: tuple[Path, ConceptSet]) -> None:
    run = read_run(study[0])
    mix = next(mix for mix in run.mixes if mix.name == "unknown-100")
    assert mix.evaluations is not None
    change = learning_change(mix, "heldout", "Unknown")
    assert change is not None
    rows = mix.evaluations.query("role == 'heldout' and category == 'Unknown'").set_index("update")["accuracy"]
    assert change.change.value == pytest.approx(rows[400] - rows[0])
    assert learning_change(mix, "heldout", "HighlyKnown") is None
    assert [mix.name for mix in run.mixes] == list(MIXES)
    assert math.isclose(mix.unknown_share, 1.0)
    assert {finding.heading for finding in findings(run)} >= set(MIXES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1234.5, "1,234"),
        (-0.04567, "−0.0457"),
        (0.00001234, "1.23e−05"),
        (2.5e7, "2.50e+07"),
        (math.nan, "–"),
        (None, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_intervals_decide_the_decimals() -> None:
    assert reading(Estimate(value=0.368, low=-4.53, high=5.27), signed=True) == ("+0.4", "[−4.5,\u00a0+5.3]")
    assert reading(Estimate(value=0.0214, low=0.0171, high=0.0250)) == ("0.0214", "[0.0171,\u00a00.0250]")
    assert reading(Estimate(value=1234.5, low=1100.0, high=1400.0)) == ("1,234", "[1,100,\u00a01,400]")
    assert reading(Estimate(value=0.98765)) == ("0.988", "")
    assert (share(0.999), share(-0.001, signed=True), share(math.nan)) == ("100\u00a0%", "0\u00a0points", "–")


def test_durations() -> None:
    said = [seconds(value).replace("\u00a0", " ") for value in (0.04, 9.94, 41.5, 99.4, 99.6, 302.4, 5969.0, 9000.0)]
    assert said == ["0.0 s", "9.9 s", "42 s", "99 s", "2 min", "5 min", "99 min", "2.5 h"]


def test_foreign_text_is_made_printable() -> None:
    assert printable("a\x00\x9f\ud800\u202eb\n\tشä🦊") == "a\ufffd\ufffd\ufffd\ufffdb\n\tشä🦊"
    assert cut("x" * 61) == "x" * 59 + "…"
    assert cut("x" * 60) == "x" * 60


def test_drawings_share_a_page_without_sharing_ids() -> None:
    def drawn(identity: str) -> tuple[str, list[ElementTree.Element]]:
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        axes.scatter(range(30), range(30), color=COLOURS["Unknown"], gid="points")
        svg = inline_svg(figure, identity, 'a "description" <b>', {"points": [f"<{i}>" for i in range(30)]})
        return svg, list(ElementTree.fromstring(svg).iter())

    (first, elements), (second, others) = drawn("one"), drawn("two")
    ids = [{e.get("id") for e in found if e.get("id")} for found in (elements, others)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for found, own in ((elements, ids[0]), (others, ids[1])):
        targets = {e.get("href", "#")[1:] for e in found} | {
            value[5:-1] for e in found for value in e.attrib.values() if value.startswith("url(#")
        }
        assert targets - {""} <= own
    titles = [e.text for e in elements if e.tag.endswith("}title")]
    assert titles == [f"<{i}>" for i in range(30)]
    assert "var(--Unknown, #d55e00)" in first
    assert "<style" not in first
    assert "<text" in first
    assert "http" not in first.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert first.replace("one-", "two-") == second


def test_the_stylesheet_knows_every_colour() -> None:
    style = (Path(page.__file__).parent / "style.css").read_text(encoding="utf-8")
    light, dark = style.split("prefers-color-scheme: dark", maxsplit=1)
    for label, colour in COLOURS.items():
        name = f"--{label}" if label in CATEGORIES else f"--bucket-{label}"
        assert f"{name}: {colour};" in light
        assert f"{name}: #" in dark
    assert "url(" not in style


def test_colours_differ_for_colour_blind_eyes() -> None:
    """Every pair of category colours stays apart for full deuteranopia and protanopia (Machado et al., 2009)."""
    confusions = {
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
    }
    values: dict[str, Any] = {
        label: np.array([int(COLOURS[label][i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2 for label in CATEGORIES
    }
    for matrix in confusions.values():
        seen = {label: np.clip(np.array(matrix) @ value, 0, 1) ** (1 / 2.2) for label, value in values.items()}
        gaps = [np.abs(seen[a] - seen[b]).max() for a in CATEGORIES for b in CATEGORIES if a < b]
        assert min(gaps) > 0.15


@pytest.mark.parametrize("rule", ["error", "relative", "gain"])
def test_the_exposure_panel_shows_what_the_rule_went_by(rule: str) -> None:
    concepts = pd.DataFrame(
        {
            "concept": ["blorp", "wug"],
            "category": ["HighlyKnown", "Unknown"],
            "exposure": pd.array([900, 0], dtype="Int64"),
            f"known_{rule}": [True, False],
            "error_nats": [5.0, 6.0],
            "relative_error": [0.5, 1.0],
            "gain_nats": [4.0, 0.0],
            "gain_se_nats": 0.1,
        }
    )
    plain = exposure_panel(concepts, rule, "").svg
    reconstructed = concepts.assign(
        reconstruction_error=[0.25, 0.5],
        reconstruction_relative=[0.5, 1.0],
        reconstruction_gain=[0.125, 0.0],
        reconstruction_gain_se=0.01,
    )
    assert "reconstruction" not in plain
    assert f"reconstruction {rule}" in exposure_panel(reconstructed, rule, "").svg


def test_of_thousands_of_evaluations_the_first_the_last_and_the_stops_are_shown() -> None:
    table = pd.DataFrame({"update": np.repeat(np.arange(0, 5000, 5), 2), "role": ["trained", "heldout"] * 1000})
    shown = thinned(table, {"early_stop_update": 1235, "converged_update": None})
    updates = shown["update"].unique()
    assert SHOWN_EVALUATIONS <= len(updates) <= SHOWN_EVALUATIONS + 1
    assert {0, 1235, 4995} <= set(updates)
    assert len(shown) == 2 * len(updates)
    few = table[table["update"] < 100]
    pd.testing.assert_frame_equal(thinned(few, {}), few)
