"""Input that nobody should hand in: each ends in one line that names the place, and reads nothing that it should not."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from taught import TABLE, taught

from diffusion_sft import cli
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.concepts.captions import read_caption
from diffusion_sft.concepts.images import UnreadableImage, load_image
from diffusion_sft.errors import UserError
from diffusion_sft.files import read_json, read_object
from diffusion_sft.finetune.labels import concept_labels
from diffusion_sft.generating import GenerateConfig
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.tokens import token_counter
from diffusion_sft.parsing import Problem, problems_table
from diffusion_sft.plan import StudyConfig
from diffusion_sft.settings import load_settings


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"'])
def test_json_that_is_no_object_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"config\.json: JSON, but no object"):
        read_object(file)


@pytest.mark.parametrize("content", [b"9" * 5000, b"[" * 100_000, b"\xff\xfe", b"{"])
def test_json_that_no_parser_takes_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        read_json(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"config\.json: cannot be read \(Is a directory\)"):
        read_json(file)


LABELS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "another category": (
        lambda t: t.assign(category=["Foo", *t.category[1:]]),
        "category 'Foo' is none of HighlyKnown",
    ),
    "no category": (lambda t: t.assign(category=[None, *t.category[1:]]), "category 'nan' is none of"),
    "another bucket": (lambda t: t.assign(bucket=["\x1b[2J", *t.bucket[1:]]), r"bucket '\\x1b\[2J' is none of known"),
    "a concept twice": (lambda t: pd.concat([t, t[:1]]), "concept 'blorp' stands in it twice"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_checked_before_anything_is_trained(case: str) -> None:
    change, told = LABELS[case]
    _, concept_set = taught()
    with pytest.raises(UserError, match=told):
        concept_labels(change(TABLE), concept_set)


PIPELINES: dict[str, tuple[str, str, str]] = {
    "a list for an index": ("model_index.json", "[]", r"model_index\.json: JSON, but no object"),
    "a number for a network": ("unet/config.json", "5", r"unet.config\.json: JSON, but no object"),
    "nothing for a text encoder": (
        "text_encoder/config.json",
        "null",
        r"text_encoder.config\.json: JSON, but no object",
    ),
    "no timesteps": (
        "scheduler/scheduler_config.json",
        '{"_class_name": "DDIMScheduler", "num_train_timesteps": 0}',
        "base",
    ),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_a_pipeline_with_other_json_is_refused_in_one_line(case: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    file, text, told = PIPELINES[case]
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=told) as error:
        DiffusionLearner.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "index", [{"weight_map": [1]}, {"a": 1}, {"weight_map": {"a": ["x"]}}, {"weight_map": {"a": "../x.safetensors"}}]
)
def test_an_index_of_shards_is_looked_through(index: dict[str, Any], tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not an index of safetensors shards beside it"):
        DiffusionLearner.load(folder)


def test_captions_are_not_counted_without_a_tokenizer(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    assert token_counter(str(folder), None)("a photo") > 2
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="missing or unreadable; a tokenizer needs"):
        token_counter(str(folder), None)


def test_postscript_is_never_interpreted(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UnreadableImage, match="is not an image of a kind that can be read"):
        load_image(file)
    with pytest.raises(UserError, match="is not an image of a kind"):
        read_concept_set(ConceptsConfig(path=str(_folder(tmp_path / "set", file))))


def _folder(folder: Path, image: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(image, folder / "x.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "x.png", "text": "a wug"}) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA", "JPEG2000"])
def test_the_kinds_of_images_that_people_have_are_read(kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "x", kind)
    assert load_image(tmp_path / "x").size == (8, 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_for_a_caption_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"its caption file a\.txt is no plain file"):
        read_caption(tmp_path / "a.txt")


def test_a_cell_with_half_a_character_for_a_name_is_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": "a.png", "text": "a wug", "split": "heldout", "k\ud800": "v"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"line 1, a\.png: 'k\\ud800' is not valid UTF-8 text"):
        read_concept_set(ConceptsConfig(path=str(tmp_path)))


def test_problems_go_into_tables_as_text(tmp_path: Path) -> None:
    table = problems_table([Problem(where="metadata.csv line 2", file="\udcff.png", reason="is \x1b[2J empty")])
    table.to_parquet(tmp_path / "problems.parquet")
    assert list(table.iloc[0]) == ["metadata.csv line 2", "\\udcff.png", "is \\x1b[2J empty"]


@pytest.mark.parametrize("header", [{"GNU.sparse.map": "x"}, {"GNU.sparse.realsize": "x"}, {"size": "9" * 23}])
def test_a_shard_with_an_impossible_header_is_named(header: dict[str, str], tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pixels, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for key, pax in (("a", {}), ("b", header)):
            for suffix, content in (("png", pixels.getvalue()), ("txt", b"a wug")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.pax_headers = len(content), dict(pax)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"0\.tar"):
        read_concept_set(ConceptsConfig(path=str(tmp_path), layout="webdataset", cache_dir=str(tmp_path / "cache")))


def test_parquet_that_python_has_no_values_for_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    when = pa.array([2**62], pa.timestamp("us"))
    table = pa.table({"file_name": ["a.png"], "text": ["a wug"], "when": when})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet: not a readable parquet file"):
        read_concept_set(ConceptsConfig(path=str(tmp_path)))


@pytest.mark.parametrize("override", ["learners={}", "mixes={}", "concepts.sets={}", "seed=[=1", "[=1"])
def test_settings_of_another_shape_are_one_line(override: str) -> None:
    with pytest.raises(UserError) as error:
        load_settings(StudyConfig, None, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "num_images=0",
        "num_inference_steps=-1",
        "num_inference_steps=0",
        "batch_size=0",
        "prompts=[]",
        "guidance_scale=nan",
    ],
)
def test_nothing_is_drawn_of_nothing(override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0]):
        load_settings(GenerateConfig, None, [override])


def test_a_saved_data_set_may_name_no_files_but_its_own(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": [picture], "text": ["a wug"]}, features=features)
    for name in ("one", "other"):
        made.save_to_disk(str(tmp_path / name))
    read = ConceptsConfig(path=str(tmp_path / "one"), layout="datasets", cache_dir=str(tmp_path / "cache"))
    assert len(read_concept_set(read).concept_set.examples) >= 1
    state = tmp_path / "one" / "state.json"
    content = json.loads(state.read_text())
    (file,) = (tmp_path / "other").glob("*.arrow")
    content["_data_files"] = [{"filename": f"../other/{file.name}"}]
    state.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"state\.json: names a file outside the data set"):
        read_concept_set(read)


def test_an_image_cell_may_not_name_the_users_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    token = Path(datasets.config.HF_CACHE_HOME).expanduser() / "token"
    from diffusion_sft.concepts.hugging_face import _bytes_of

    with pytest.raises(ValueError, match="lies outside the data set"):
        _bytes_of({"path": str(token)}, tmp_path)


def test_weights_that_are_no_numbers_are_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_pipeline, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"unet: conv_in\.bias holds NaN or infinite weights"):
        DiffusionLearner.load(folder)


def test_a_world_of_fewer_than_none_is_refused() -> None:
    for override in ("world.num_rare=-1", "world.heldout_images=-2"):
        with pytest.raises(UserError, match="must be at least 0"):
            load_settings(StudyConfig, None, [override])


def test_an_error_does_not_drive_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def hostile(*_: Any) -> int:
        raise UserError("concept 'd\x1b[2Jog': has no image\n  second line")

    monkeypatch.setattr(cli, "_run", hostile)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "diffusion-sft: concept 'd\\x1b[2Jog': has no image\n  second line\n"


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    assert cli.main(["world", f"output_dir={tmp_path / 'file' / 'world'}"]) == 2
    assert capsys.readouterr().err.endswith("choose another folder, or change what may be done in it\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "override",
    ["evaluate.guidance_scale=nan", "probe.samples.guidance_scale=.inf", "mixes=[{name: a, unknown_share: .nan}]"],
)
def test_a_number_that_is_none_is_no_setting(override: str) -> None:
    with pytest.raises(UserError, match="finite|unknown_share"):
        load_settings(StudyConfig, None, [override])


def test_settings_do_not_look_into_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("title: ${oc.env:HOME}\n")
    with pytest.raises(UserError, match="asks for something outside the settings"):
        load_settings(StudyConfig, file, [])
    file.write_text("output_dir: runs/${title}\ntitle: mine\n")
    assert load_settings(StudyConfig, file, []).output_dir == "runs/mine"


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    for read in (
        lambda: DiffusionLearner.load(path),
        lambda: read_concept_set(ConceptsConfig(path=path)),
        lambda: token_counter(path, None),
    ):
        with pytest.raises(UserError, match="no path that can be there") as error:
            read()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 250
