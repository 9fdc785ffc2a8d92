"""Settings that nobody should hand in: files that are none, keys and values that do not exist, and what cannot go together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from bad_bases import plain, whole
from bad_inputs import BadInput
from PIL import Image

Make = Callable[[Path], Sequence[str]]


def file(content: bytes | str, *words: str, verb: str = "study") -> Make:
    """A verb with a file of settings of this content."""

    def make(folder: Path) -> Sequence[str]:
        settings = folder / "settings.yaml"
        settings.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return [verb, str(settings), f"output_dir={folder / 'out'}", *words]

    return make


def study(*words: str) -> Make:
    """A study with these settings."""
    return plain("study", *words, "output_dir={}/out")


def finetune(*words: str) -> Make:
    """A fine-tuning run with these settings."""
    return plain("finetune", "pretrained_model_name_or_path={}/base", "concepts.path={}", "output_dir={}/out", *words)


def pretrain(*words: str) -> Make:
    """A base of one's own with these settings."""
    return plain("pretrain", "output_dir={}/out", *words)


def drawn(*words: str) -> Make:
    """Pictures with these settings."""
    return plain("generate", "pretrained_model_name_or_path={}/base", "output_dir={}/out", *words)


def a_folder(folder: Path) -> Sequence[str]:
    """A folder in the place of settings."""
    (folder / "settings.yaml").mkdir()
    return ["study", str(folder / "settings.yaml")]


def a_pipe(folder: Path) -> Sequence[str]:
    """A pipe in the place of settings, which would be read for ever."""
    os.mkfifo(folder / "settings.yaml")
    return ["study", str(folder / "settings.yaml")]


def a_loop(folder: Path) -> Sequence[str]:
    """A link to itself in the place of settings."""
    (folder / "settings.yaml").symlink_to(folder / "settings.yaml")
    return ["study", str(folder / "settings.yaml")]


def two_files(folder: Path) -> Sequence[str]:
    """Two files of settings."""
    for name in ("a.yaml", "b.yaml"):
        (folder / name).write_text("seeds: [1]\n")
    return ["study", str(folder / "a.yaml"), str(folder / "b.yaml")]


def output_is_a_file(folder: Path) -> Sequence[str]:
    """A file where a folder should be made."""
    (folder / "out").write_text("mine")
    return ["world", f"output_dir={folder / 'out'}"]


def output_below_a_file(folder: Path) -> Sequence[str]:
    """A folder to be made inside a file."""
    (folder / "out").write_text("mine")
    return ["compare", f"output_dir={folder / 'out' / 'deeper'}"]


def output_loops(folder: Path) -> Sequence[str]:
    """A link to itself where a folder should be made."""
    (folder / "out").symlink_to(folder / "out")
    return ["world", f"output_dir={folder / 'out' / 'deeper'}"]


def no_checkpoint(folder: Path) -> Sequence[str]:
    """To go on after a checkpoint that is not there."""
    base = shutil.copytree(whole("sd1"), folder / "base")
    (folder / "set").mkdir()
    rows = []
    for number, split in enumerate(("train", "heldout", "reference")):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(folder / "set" / f"{split}.png")
        rows.append({"file_name": f"{split}.png", "text": "a wug", "concept": "wug", "split": split})
    (folder / "set" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["finetune", f"pretrained_model_name_or_path={base}", f"concepts.path={folder / 'set'}"]
    return [*words, f"output_dir={folder / 'out'}", "resume_from_checkpoint=checkpoint-70", "report_to=null"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine levels of ten: a billion values where its aliases are written out."""

FILES: list[tuple[str, Make, str]] = [
    ("no file", plain("study", "{}/nowhere.yaml"), r"nowhere\.yaml: no such configuration file"),
    ("a folder", a_folder, "is a folder, not a configuration file"),
    ("a pipe", a_pipe, "is no plain file, not a configuration file"),
    ("a link to itself", a_loop, "no such configuration file"),
    ("two files", two_files, "one configuration file at most, not"),
    ("a name longer than names are", plain("study", "x" * 5000), "no such configuration file"),
    ("broken YAML", file("seeds: [1\n"), r"settings\.yaml: not valid YAML"),
    ("a tab for an indent", file("probe:\n\tseed: 1\n"), "not valid YAML"),
    ("a list", file("- 1\n- 2\n"), "expected a mapping of keys to values at the top"),
    ("a word", file("hello\n"), r"settings\.yaml: "),
    ("bytes that are no text", file(bytes(range(256))), "not UTF-8 text|not valid YAML"),
    ("zero bytes", file(b"seeds: [1]\n\0\0\0"), "not valid YAML"),
    ("Latin-1", file("title: Büste\n".encode("latin-1")), "not UTF-8 text"),
    ("UTF-16", file("seeds: [1]\n".encode("utf-16")), "is UTF-16; save it as UTF-8"),
    ("a megabyte", file("# x\n" * (1 << 19)), "bytes, which is no configuration file"),
    ("a key twice", file("title: a\ntitle: b\n"), "not valid YAML .*duplicate key title"),
    (
        "a program in a tag",
        file("title: !!python/object/apply:os.system ['touch {}/trace']\n"),
        "not valid YAML .*could not determine a constructor",
    ),
    ("a tag that nobody knows", file("title: !wonder x\n"), "not valid YAML"),
    ("aliases that grow without end", file(BOMB), "more than 20,000 values"),
    ("an alias inside itself", file("a: &a [*a]\n"), "stands inside itself"),
    ("an alias of nothing", file("title: *nothing\n"), "undefined alias"),
    ("nesting without end", file("title: " + "[" * 5000 + "]" * 5000), "nested more than 40 levels deep"),
    ("a list for a key", file("? [a, b]\n: 1\n"), r"settings\.yaml: "),
    ("a date for a number", file("seeds: [2020-01-01]\n"), r"settings\.yaml: "),
    ("a number for a key", file("1: 2\n"), "no setting 1; the keys here are"),
    ("an interpolation that goes round", file("title: ${base}\nbase: ${title}\n"), r"settings\.yaml: "),
    ("an interpolation of nothing", file("title: ${nothing}\n"), "nothing"),
    ("the environment", file("title: ${oc.env:HOME}\n"), "asks for something outside the settings"),
    ("a decoder of YAML in YAML", file("title: ${oc.decode:x}\n"), "asks for something outside the settings"),
    ("a brace that does not close", file("title: ${base\n"), r"settings\.yaml: "),
    (
        "a value that is still to be given",
        file("title: ???\n"),
        r"title: \?\?\? stands for a value that is still to be given",
    ),
    ("a null where text belongs", file("title: null\n"), "title"),
    ("half a character", file('title: "\\ud800"\n'), r"not valid YAML|title must be UTF-8 text"),
    ("a null character in a path", file('base: "a\\0b"\n'), "base must be UTF-8 text without null characters"),
]
KEYS: list[tuple[str, Make, str]] = [
    (
        "a key with a letter wrong",
        study("probe.num_drawss=8"),
        r"no setting probe\.num_drawss; did you mean probe\.num_draws\?",
    ),
    ("a key that is nothing like one", study("zzzz=1"), "no setting zzzz; the keys here are"),
    ("a key of another verb", drawn("max_train_steps=5"), "no setting max_train_steps"),
    ("a group for a value", study("probe=5"), "probe"),
    ("a value for a group", study("seeds.x=5"), "seeds"),
    ("no key", study("=5"), "override '=5': expected key=value"),
    ("dots alone", study("...=5"), r"override '\.\.\.=5': expected key=value"),
    ("brackets that do not close", study("seeds=[1"), r"override 'seeds=\[1'"),
    ("aliases in an override", study("seeds=&a [*a]"), "stands inside itself"),
    ("a token", study("hub_token=secret"), "override of a token: no setting hub_token"),
    ("an unknown verb", plain("studdy"), "invalid choice: 'studdy'"),
    ("no verb", plain(), "the following arguments are required: VERB"),
    ("half a verb", plain("cache"), "the following arguments are required: ACTION"),
    ("an unknown option", plain("study", "--wonder"), "unrecognized arguments: --wonder"),
    ("an option without its value", plain("study", "--out"), "expected one argument"),
    (
        "another tool's name beside ours",
        file("network_dim: 4\nrank: 8\n", verb="finetune"),
        "network_dim and rank are the same setting; give one of them",
    ),
]
VALUES: list[tuple[str, Make, str]] = [
    ("words for a number", study("probe.seed=many"), "probe.seed: Value 'many'"),
    ("half a count", study("probe.batch_size=1.5"), "probe.batch_size"),
    ("a list for a number", study("probe.batch_size=[1]"), "probe.batch_size"),
    ("an unknown choice", study("buckets.rule=guess"), "buckets.rule"),
    ("a type that is none", study("dtype=float13"), "dtype"),
    ("an unknown method", finetune("method=magic"), "method"),
    ("an unknown optimizer", finetune("optimizer=sgdd"), "optimizer"),
    ("an unknown learner", study("learners=[gan]"), "learners: some of diffusion, llm, each once"),
    ("a learner twice", study("learners=[llm,llm]"), "learners: some of diffusion, llm, each once"),
    ("pictures of no pixels", study("resolution=0"), "resolution must be at least 1 and at most 16,384, not 0"),
    ("pictures of no pixels to train on", finetune("resolution=0"), "resolution must be at least 1"),
    (
        "pictures of a million pixels a side",
        study("resolution=1000000"),
        "resolution must be at least 1 and at most 16,384",
    ),
    ("a batch of none", study("probe.samples.batch_size=0"), "probe.samples: batch_size must be at least 1, not 0"),
    ("a seed below zero", study("buckets.seed=-1"), "buckets: seed must be at least 0, not -1"),
    ("one of the seeds below zero", study("seeds=[1,-2]"), "seeds must be at least 0, not -2"),
    ("a seed twice", study("seeds=[1,1]"), "holds one twice"),
    ("NaN for a rate", finetune("learning_rate=nan"), "learning_rate"),
    ("infinity for a norm", finetune("max_grad_norm=.inf"), "max_grad_norm must be"),
    (
        "an integer of a hundred digits",
        study("probe.num_draws=1" + "0" * 99),
        "num_draws must be an integer of at most 64 bits",
    ),
    (
        "a rate of nothing",
        study("methods=[{learning_rate: 0}]"),
        r"methods\[0\]: learning_rate must be above 0, not 0",
    ),
    (
        "a rank of nothing",
        study("methods=[{method: lora, rank: 0}]"),
        r"methods\[0\]: rank must be at least 1, not 0",
    ),
    ("a quantile of one", study("buckets.error_quantile=1"), "error_quantile must be above 0 and below 1, not 1"),
    ("a strength of two", study("probe.reconstruction.strength=2"), "strength must be above 0 and at most 1"),
    ("odd draws", study("probe.num_draws=7"), "num_draws must be at least 1 and even"),
    (
        "ten thousand steps of a sampler",
        drawn("num_inference_steps=10000"),
        "num_inference_steps must be at least 1 and at most 1,000",
    ),
    ("fewer GPUs than none", study("ray.gpus_per_run=-1"), "ray: gpus_per_run must be at least 0"),
    ("one GPU and a half", study("ray.gpus_per_run=1.5"), "a fraction of one GPU, or whole ones"),
    ("more names than the world has looks", study("world.num_rare=1000"), "must be at most 600"),
    ("updates without end", pretrain("autoencoder.num_updates=0"), "autoencoder: num_updates must be at least 1"),
    (
        "a rate of learning that is none",
        pretrain("denoiser.learning_rate=-1"),
        "denoiser: learning_rate must be above 0",
    ),
    ("a share above one", pretrain("corpus.empty_share=2"), "corpus: empty_share must be at least 0 and at most 1"),
    (
        "a corpus for fewer exposures than there are",
        pretrain("corpus.num_items=64", "denoiser.num_updates=1"),
        "as many as the world's exposures",
    ),
    (
        "a vocabulary that ids have no bits for",
        pretrain("llm.architecture.vocab_size=100000"),
        "vocab_size must be at least 259 and at most 65,536",
    ),
    (
        "heads that do not divide a width",
        pretrain("llm.architecture.num_attention_heads=7"),
        "hidden_size .192. must be an even multiple",
    ),
    (
        "groups that do not divide channels",
        pretrain("architecture.norm_num_groups=7"),
        "vae_channels must be multiples of norm_num_groups",
    ),
    (
        "a text longer than positions",
        pretrain("llm.sequence_length=100000"),
        "sequence_length must be at least 2 and at most 512",
    ),
    ("a port that is none", plain("serve", "{}", "port=70000"), "port must be from 0 to 65535"),
    ("an address that others reach", plain("serve", "{}", "address=0.0.0.0"), "answers on loopback alone"),
    ("a device that is not there", drawn("device=cuda:99"), "device=cuda:99: no device of this machine"),
    ("a device that is none", drawn("device=toaster"), "device=toaster: no device of this machine"),
    ("a device that holds nothing", drawn("device=meta"), "device=meta: holds no numbers"),
    ("a device of no name", pretrain("device=toaster"), "device=toaster: no device of this machine"),
    ("no prompts", drawn("prompts=[]"), "prompts must not be empty"),
    (
        "a template without its braces",
        study("probe.answers.templates=[a photo]"),
        "has no {} for the concept's words",
    ),
    ("a template with other braces", finetune("caption_templates=['{x}']"), "may contain {caption} and {concept}"),
]
TOGETHER: list[tuple[str, Make, str]] = [
    (
        "to stop at convergence that is never looked for",
        finetune("stopping=convergence"),
        "convergence needs evaluations; set validation_steps",
    ),
    (
        "adaptive draws without common noise",
        study("probe.adaptive.enabled=true", "probe.estimator=naive"),
        "adaptive.enabled compares captions under common noise",
    ),
    (
        "a warm-up longer than the run",
        finetune("lr_scheduler=cosine", "lr_warmup_steps=5000"),
        "must be below max_train_steps",
    ),
    ("DoRA without LoRA", finetune("use_dora=true"), "use_dora needs method=lora"),
    (
        "a text encoder that is not trained",
        finetune("text_encoder_lr=1e-5"),
        "text_encoder_lr needs train_text_encoder",
    ),
    ("one file of adapters", finetune("method=lora", "save_single_file=true"), "save_single_file needs method=full"),
    ("to push to nowhere", finetune("push_to_hub=true"), "push_to_hub needs hub_model_id"),
    (
        "buckets from large to small",
        finetune("min_bucket_reso=512", "max_bucket_reso=256"),
        "must not exceed max_bucket_reso",
    ),
    ("pictures for a language model", plain("sft", "snr_gamma=5"), "snr_gamma is for pictures"),
    ("cross-attention of a language model", plain("sft", "method=cross_attention"), "a language model has none"),
    ("a rank without LoRA", study("methods=[{rank: 4}]"), "rank=4 is for lora, not for full"),
    ("one method twice", study("methods=[{method: full}, {method: full}]"), "each may be there once"),
    ("two mixes of one name", study("mixes=[{name: a}, {name: a}]"), "mixes need names that differ"),
    ("a mix that is called base", study("mixes=[{name: base}]"), "differ from each other and from 'base'"),
    ("a mix that leads out of its folder", study("mixes=[{name: ../x}]"), "letters, digits and . _ . - only"),
    ("two sizes of a mix", study("mixes=[{num_concepts: 1, num_examples: 1}]"), "not both"),
    ("shares without a size", study("mixes=[{unknown_share: 0.5}]"), "need a fixed size"),
    ("shares that are not all", study("mixes=[{num_concepts: 4, shares: {Unknown: 0.4}}]"), "mixes"),
    (
        "one repository for several runs",
        study("seeds=[1,2]", "mixes=[{name: a}]", "finetune.push_to_hub=true", "finetune.hub_model_id=a/b"),
        "several runs would overwrite one repository",
    ),
    (
        "a GPU of one's own with Ray",
        study("executor=ray", "device=cuda:1"),
        "each run is given its GPU; set device=auto",
    ),
    (
        "a path and several sets",
        study("concepts.path={}", "concepts.sets=[{path: b}]"),
        "path and sets are both given",
    ),
    (
        "nothing left to train on",
        study("concepts.heldout_share=0.6", "concepts.reference_share=0.5"),
        "nothing is left to train on",
    ),
    ("ancestral noise without its solver", drawn("eta=1"), "eta=1.0 needs one of the parallel solvers"),
    ("a window without its solver", drawn("window=4"), "window=4 belongs to solver=picard"),
    ("a classifier without its name", study("evaluate.extractor=torchvision"), "torchvision_model names the model"),
    ("updates that read the corpus twice", pretrain("denoiser.batch_size=65"), "must equal corpus.num_items"),
    (
        "a single file's settings for a folder",
        lambda folder: [
            "generate",
            f"pretrained_model_name_or_path={shutil.copytree(whole('sd1'), folder / 'base')}",
            "single_file_config=x",
        ],
        "no setting single_file_config",
    ),
    ("no base", plain("finetune", "concepts.path={}", "output_dir={}/out"), "pretrained_model_name_or_path is empty"),
    (
        "no questions",
        plain("sft", "pretrained_model_name_or_path={}", "output_dir={}/out"),
        "questions.path is empty",
    ),
    ("no cache", plain("cache", "verify"), "cache_dir is empty"),
    (
        "a checkpoint that is not there",
        no_checkpoint,
        "resume_from_checkpoint=checkpoint-70: not in .* which has no checkpoint",
    ),
]
PLACES: list[tuple[str, Make, str]] = [
    (
        "a file for the output",
        output_is_a_file,
        r"output_dir=.*: nothing can be written to .*out \(Not a directory\)",
    ),
    ("an output inside a file", output_below_a_file, r"nothing can be written to .*out \(Not a directory\)"),
    ("an output behind a link to itself", output_loops, "nothing can be written to"),
    (
        "an output where no folder can be made",
        plain("world", "output_dir=/proc/nowhere/out"),
        "output_dir=/proc/nowhere/out: nothing can be written to /proc",
    ),
    ("no output", plain("world", "--out", ""), "output_dir"),
    ("blanks for an output", plain("world", "output_dir='  '"), "output_dir is empty: give the folder to write to"),
    ("an output whose name is too long", plain("world", "output_dir={}/" + "x" * 300), "nothing can be written to"),
    ("an output whose name is no UTF-8", plain("world", "output_dir=\udcff"), "not UTF-8 text"),
    ("an output for the live view", plain("serve", "{}", "--out", "x"), "serve writes nothing"),
]

CASES: list[BadInput] = [
    BadInput(group=group, name=name, make=make, told=told)
    for group, rows in (
        ("Files of settings", FILES),
        ("Keys and words", KEYS),
        ("Values", VALUES),
        ("Settings that do not go together", TOGETHER),
        ("Places to write to", PLACES),
    )
    for name, make, told in rows
]
