"""Every number among the settings of every verb: what is out of its range is refused by its name, and the rest is listed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from diffusion_sft.commands import SCHEMAS
from diffusion_sft.compare import CompareConfig
from diffusion_sft.errors import UserError
from diffusion_sft.plan import StudyConfig
from diffusion_sft.ranges import check_range
from diffusion_sft.serve.config import ServeConfig
from diffusion_sft.settings import load_settings

ALL = (*SCHEMAS.values(), StudyConfig, CompareConfig, ServeConfig)
TRIED = ("-1", "0", ".nan", ".inf", "-.inf", "1" + "0" * 30, "1e300")
HUGE = "1e300"

TAKEN: dict[str, dict[str, str]] = {
    "0": {
        "a seed": "seed seeds",
        "none of them, or never": "num_rare num_frequent num_unbound num_novel num_described train_images heldout_images "
        "reference_images num_samples num_invented num_merges num_renderings concepts_per_category validation_steps "
        "validation_untouched_concepts warmup_updates lr_warmup_steps max_retries gpus_per_run cpus_per_run",
        "no share of it": "one_off_share empty_share partial_share nobody_share descriptive_share contested_share "
        "question_share plain_share topical_share proportion_empty_prompts lora_dropout unknown_share replay_share",
        "nothing beside the mix": "preserved_concepts",
        "no weight, penalty, momentum or limit": "weight_decay adam_weight_decay kl_weight prior_loss_weight known_weight "
        "noise_offset ema_decay adam_beta1 adam_beta2 max_grad_norm",
        "the sequential trajectory itself, DDIM, no guidance": "tolerance eta guidance_scale validation_guidance_scale",
        "a place on a scale that has no ends": "error_threshold relative_threshold",
        "an exposure, a reading, an even law": "contested_above contested_below readings_per_exposure popularity",
        "any port that is free": "port",
    },
    "-1": {
        "guidance away from the prompt": "guidance_scale validation_guidance_scale",
        "a place on a scale that has no ends": "error_threshold relative_threshold",
    },
    HUGE: {
        "training stops at the first loss that is not finite": "learning_rate weight_decay adam_weight_decay adam_epsilon "
        "kl_weight prior_loss_weight known_weight noise_offset snr_gamma max_grad_norm text_encoder_lr",
        "pictures that are no numbers stop a run": "guidance_scale validation_guidance_scale",
        "as wide as one likes": "tolerance temperature margin error_threshold relative_threshold",
        "Ray says that no machine has so many": "gpus_per_run cpus_per_run",
    },
}
"""What is taken beside the numbers that anybody would give, and what it means. Everything else is refused."""
BESIDE = {
    "MixConfig.unknown_share": ["num_concepts=4"],
    "MethodConfig.rank": ["method=lora"],
    "FinetuneConfig.text_encoder_lr": ["method=lora", "train_text_encoder=true"],
    "FinetuneCommandConfig.text_encoder_lr": ["method=lora", "train_text_encoder=true"],
    "FitConfig": ["num_updates=1", "batch_size=1", "learning_rate=1"],
}
"""What some settings are only taken with, and those that have no default."""


def groups(schema: Any) -> Iterator[type]:
    """The dataclasses that settings consist of, this one and those below it, in lists too."""
    if isinstance(schema, type) and is_dataclass(schema):
        yield schema
        for hint in get_type_hints(schema).values():
            yield from groups(hint)
    else:
        for part in get_args(schema):
            yield from groups(part)


def numbers(schema: type) -> Iterator[tuple[str, str]]:
    """Every field that holds a number, or numbers, and how such a value is given."""
    for name, hint in get_type_hints(schema).items():
        if {int, float} & {hint, *get_args(hint)}:
            yield name, f"{name}=[{{}}]" if get_origin(hint) is list else f"{name}={{}}"


GROUPS = sorted({group for schema in ALL for group in groups(schema)}, key=lambda group: group.__name__)


def taken(value: str, name: str) -> bool:
    return any(name in names.split() for names in TAKEN.get(value, {}).values())


def refusal(group: type, name: str, override: str) -> str | None:
    """What is said against a setting; None where it is taken."""
    beside = [word for key in (group.__name__, f"{group.__name__}.{name}") for word in BESIDE.get(key, [])]
    try:
        load_settings(group, None, [*beside, override])
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_numbers_out_of_range_are_refused_by_name(group: type) -> None:
    for name, override in numbers(group):
        for value in (
            TRIED if name in group.__annotations__ else TRIED[:1]
        ):  # Of what is inherited, that it is checked.
            told = refusal(group, name, override.format(value))
            if told is None:
                assert taken(HUGE if len(value) > 30 else value, name), (
                    f"{name}={value} is taken, which has no meaning"
                )
            else:
                assert name in told, told
                assert told.isprintable(), told


def test_what_is_listed_as_taken_is_taken_somewhere() -> None:
    for value, reasons in TAKEN.items():
        for name in (name for names in reasons.values() for name in names.split()):
            owners = [(group, dict(numbers(group))[name]) for group in GROUPS if name in dict(numbers(group))]
            assert any(refusal(group, name, override.format(value)) is None for group, override in owners), name


def test_the_walk_reaches_everything() -> None:
    found = {f"{group.__name__}.{name}" for group in GROUPS for name, _ in numbers(group)}
    assert len(found) > 250
    wanted = ("SampleConfig.num_samples", "MixConfig.unknown_share", "MethodConfig.rank", "StudyConfig.seeds")
    wanted += ("TextWeightsConfig.forecast_steps", "ArchitectureConfig.vae_channels", "ServeConfig.port")
    assert found >= {*wanted, "FinetuneCommandConfig.resolution", "LanguageFinetuneConfig.learning_rate"}


class Box:
    """A field that is checked."""

    size: Any = None

    def __init__(self, size: Any) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("size", "bounds", "told"),
    [
        (0, {"least": 1}, "size must be at least 1, not 0"),
        (1.0, {"above": 0, "below": 1}, "size must be above 0 and below 1, not 1.0"),
        (5000, {"least": 1, "most": 4096}, "size must be at least 1 and at most 4,096, not 5000"),
        (float("nan"), {}, "size must be a finite number, not nan"),
        (float("inf"), {"least": 1}, "size must be at least 1, not inf"),
        ([1, 0], {"least": 1}, "size must be at least 1, not 0"),
    ],
)
def test_a_range_names_what_is_outside(size: Any, bounds: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check_range(Box(size), "size", **bounds)


@pytest.mark.parametrize("size", [None, 1, 4096, 10**400, [], [1, 2]])
def test_a_range_takes_what_is_inside(size: Any) -> None:
    check_range(Box(size), "size", least=1)
