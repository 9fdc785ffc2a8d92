"""The settings of a study, and how much work they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from .buckets import BucketConfig
from .concepts import ConceptsConfig
from .evaluate import EvaluateConfig
from .finetune.config import FinetuneConfig, LanguageFinetuneConfig
from .finetune.mix import MixConfig
from .probe import LanguageProbeConfig, ProbeConfig
from .questions import QuestionsConfig
from .ranges import MOST_PIXELS, check_range
from .records import DIFFUSION, LEARNERS
from .solve.config import PictureSolveConfig, TextSolveConfig
from .world.population import WorldConfig

Tuning = TypeVar("Tuning", bound=FinetuneConfig)
LOCAL, RAY = "local", "ray"


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method of fine-tuning and what goes with it; what is None here is as in `finetune`."""

    method: Literal["full", "cross_attention", "lora"] = "full"
    learning_rate: float | None = None
    rank: int | None = None
    """Of the adapters of lora."""
    mixes: list[str] = field(default_factory=list)
    """The mixes that are taught with it; empty: all."""

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0)
        check_range(self, "rank", least=1)
        if self.rank is not None and self.method != "lora":
            raise ValueError(f"rank={self.rank} is for lora, not for {self.method}")

    @property
    def name(self) -> str:
        """What runs and tables call it: lora-rank4 where a rank is given, else the method."""
        return self.method if self.rank is None else f"{self.method}-rank{self.rank}"


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where runs go with executor=ray, and what each of them reserves."""

    address: str | None = None
    """null starts Ray on this machine for as long as the study takes; auto, or host:port, joins a cluster that is up,
    on a machine of that cluster. All machines need the same folders and the same installation."""
    gpus_per_run: float | None = None
    """A fraction lets several runs share a GPU, 0 keeps them on CPUs; null is 1 where the cluster has GPUs, else 0."""
    cpus_per_run: float = 1.0
    """What a run reserves. It uses as many threads as the study itself (OMP_NUM_THREADS), so that its numbers are the
    same."""
    max_retries: int = 3
    """How often a run whose process or machine died is started again; it goes on from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:
            raise ValueError(f"address={self.address}: give auto, or host:port, and start the study in the cluster")
        check_range(self, "gpus_per_run", "cpus_per_run", "max_retries", least=0)
        if self.gpus_per_run and self.gpus_per_run > 1 and self.gpus_per_run % 1:
            raise ValueError(f"gpus_per_run={self.gpus_per_run}: a fraction of one GPU, or whole ones")


@dataclass(frozen=True, kw_only=True)
class LanguageStudyConfig:
    """The language model's half of a study; every word means what it means in the diffusion half."""

    base: str = "data/world-lm"
    """A causal language model: a folder in transformers' layout, or a Hub id."""
    revision: str | None = None
    device_map: str | None = None
    """auto spreads a base that one GPU cannot hold while it is probed; fine-tuning takes one device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the base while it is probed; auto is bfloat16 on a GPU and float32 on a CPU."""
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    """The facts; without a path those of the embedded world are written into the output folder."""
    probe: LanguageProbeConfig = field(default_factory=LanguageProbeConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    mixes: list[MixConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """As the study's own."""
    methods: list[MethodConfig] = field(default_factory=list)
    """As the study's own, of which these are independent."""
    finetune: LanguageFinetuneConfig = field(default_factory=LanguageFinetuneConfig)
    solve: TextSolveConfig = field(default_factory=TextSolveConfig)

    def __post_init__(self) -> None:
        check_range(self, "seeds", least=0)
        _check_mixes(self.mixes, self.seeds)
        _check_methods(self.methods, self.finetune, self.mixes)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: a base, a concept set, and what is done with them. `base` and `concepts.path` are all it needs."""

    title: str = "What does the base know, and what does teaching it the rest cost?"
    output_dir: str = "runs/study"
    learners: list[str] = field(default_factory=lambda: [DIFFUSION])
    """diffusion, llm or both: whose half of the study is run. The language model's settings are under `llm`, its files
    in the output folder's `llm`."""
    base: str = "data/world-base"
    """A Stable Diffusion pipeline: a folder in the diffusers layout, a Hub id, or a single .safetensors file."""
    single_file_config: str | None = None
    """For a single .safetensors file as base: a pipeline folder with its configurations and tokenizer."""
    revision: str | None = None
    variant: str | None = None
    """Of the weight files, for example fp16."""
    resolution: int | None = None
    """Pixels of a side; unset means the base's own."""
    cache_dir: str | None = None
    """Where encoded images and captions are kept from run to run, by content; null keeps them in memory
    alone, up to 4 GiB; what does not fit is encoded again."""
    device: str = "auto"
    """auto takes CUDA where there is any; else as torch names devices."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the networks outside training; auto is bfloat16 on a GPU and float32 on a CPU."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Of torch.compile, for the UNet outside training (for training there is finetune.compile_mode)."""
    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)
    """The concept set; without a path the embedded world of `world` is written into the output folder."""
    world: WorldConfig = field(default_factory=WorldConfig)
    readout: str | None = None
    """A classifier of the concepts' attributes, which then judges pictures; unset means the nearest concept among
    real pictures, by the extractor's features."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    mixes: list[MixConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """Each mix is drawn and taught once with each of these; empty: once, with finetune.seed."""
    methods: list[MethodConfig] = field(default_factory=list)
    """Each mix is taught with each of these, for example [{method: full}, {method: lora, learning_rate: 1.0e-4}]; empty:
    with finetune.method. The first is the one that is forecast and that the learners are compared by."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    solve: PictureSolveConfig = field(default_factory=PictureSolveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    figures: bool = True
    """Write every drawing of the report as PNG and PDF too, into `figures/`; about 0.2 seconds each."""
    llm: LanguageStudyConfig = field(default_factory=LanguageStudyConfig)
    executor: Literal["local", "ray"] = "local"
    """Who fine-tunes and draws: this process, one run after another, or Ray, as many at once as there is room for."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        check_range(self, "resolution", least=1, most=MOST_PIXELS)
        check_range(self, "seeds", least=0)
        _check_mixes(self.mixes, self.seeds)
        _check_methods(self.methods, self.finetune, self.mixes)
        check_learners(self.learners)
        if self.executor == RAY and ":" in self.device:
            raise ValueError(f"device={self.device}: with executor=ray each run is given its GPU; set device=auto")
        own = self.llm
        _check_push("", self.finetune, planned_runs(self.mixes, self.seeds, 0, self.methods))
        _check_push("llm.", own.finetune, planned_runs(own.mixes, own.seeds or self.seeds, 0, own.methods))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One fine-tuning run of a study: a mix with a method and a seed, and the name of all three."""

    name: str
    mix: MixConfig
    seed: int
    method: MethodConfig | None = None
    """None: as the study's `finetune` says."""

    def settings(self, config: Tuning) -> Tuning:
        """The study's settings of fine-tuning as they are for this run."""
        return replace(_with_method(config, self.method), seed=self.seed)

    def method_name(self, config: FinetuneConfig) -> str:
        """What the tables call its method."""
        return config.method if self.method is None else self.method.name


def planned_runs(
    mixes: Sequence[MixConfig], seeds: Sequence[int], seed: int, methods: Sequence[MethodConfig] = ()
) -> list[PlannedRun]:
    """Every mix with every method and every seed, mix by mix.

    Without seeds once, with `seed`; without methods once. What a study does not vary is not in the runs' names.
    """
    runs = []
    for mix in mixes:
        for method in methods or (None,):
            if method is not None and method.mixes and mix.name not in method.mixes:
                continue
            name = mix.name if method is None else f"{mix.name}-{method.name}"
            for each in seeds or [seed]:
                own = f"{name}-seed{each}" if seeds else name
                runs.append(PlannedRun(name=own, mix=mix, seed=each, method=method))
    return runs


def check_learners(learners: Sequence[str]) -> None:
    """Raise ValueError unless these are some of `LEARNERS`, each once."""
    if not learners or not set(learners) <= set(LEARNERS) or len(set(learners)) < len(learners):
        raise ValueError(f"learners: some of {', '.join(LEARNERS)}, each once, not {list(learners)}")


def _check_mixes(mixes: Sequence[MixConfig], seeds: Sequence[int]) -> None:
    names = [mix.name for mix in mixes]
    if "base" in names or len(set(names)) < len(names):
        raise ValueError(f"mixes need names that differ from each other and from 'base', not {names}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {list(seeds)} holds one twice")


def _check_methods(methods: Sequence[MethodConfig], config: FinetuneConfig, mixes: Sequence[MixConfig]) -> None:
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(
            f"methods: {', '.join(names)}: runs are named after their methods, so each may be there once"
        )
    there = [mix.name for mix in mixes]
    for method in methods:
        _with_method(config, method)  # Refuses what does not go together.
        for name in method.mixes:
            if name not in there:
                raise ValueError(f"methods: {method.name}: there is no mix {name}, but {', '.join(there) or 'none'}")


def _check_push(half: str, config: FinetuneConfig, runs: Sequence[PlannedRun]) -> None:
    if config.push_to_hub and len(runs) > 1:
        raise ValueError(
            f"{half}finetune.push_to_hub: several runs would overwrite one repository; push one mix at a time"
        )


def _with_method(config: Tuning, method: MethodConfig | None) -> Tuning:
    """The settings with what the method gives."""
    if method is None:
        return config
    given = {name: value for name, value in vars(method).items() if value is not None and name != "mixes"}
    return replace(config, **given)
