"""The ``MOSAIC`` block of a training config: its keys, what they mean, and what they accept.

The table is the dataclasses below. :func:`add_mosaic_config` turns it into yacs nodes,
:func:`resolve_settings` turns a node (or a plain dictionary, for a LazyConfig) back into a
checked :class:`MosaicSettings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional, Union

# A rule says what it accepts, and whether a value is that.
Rule = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _between(low: float, high: float) -> Rule:
    return f"a number in {low:g}..{high:g}", lambda v: _is_number(v) and low <= v <= high


def _at_least(low: int) -> Rule:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return f"an integer >= {low}", check


def _limit(bits: int) -> Rule:
    """A limit of the bank: what its file can hold, or -1."""
    most = 2**bits - 1

    def check(value: Any) -> bool:
        return _at_least(-1)[1](value) and value <= most

    return f"an integer in -1..2^{bits} - 1", check


def _one_of(*names: str) -> Rule:
    return "one of " + ", ".join(repr(n) for n in names), lambda v: v in names


def _some_of(*names: str) -> Rule:
    def check(value: Any) -> bool:
        return (
            isinstance(value, (list, tuple)) and len(value) > 0 and all(v in names for v in value)
        )

    return "a list of at least one of " + ", ".join(repr(n) for n in names), check


_FLAG: Rule = ("True or False", lambda v: isinstance(v, bool))
_TEXT: Rule = ("a string", lambda v: isinstance(v, str))
_NAME: Rule = ("a string that is not empty", lambda v: isinstance(v, str) and v != "")
_NAMES: Rule = (
    "a list of category names",
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(n, str) for n in v),
)
_WORDS: Rule = (
    "a list of strings",
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(n, str) for n in v),
)
_RANKS: Rule = (
    "a list of local ranks >= 0",
    lambda v: isinstance(v, (list, tuple)) and all(_at_least(0)[1](n) for n in v),
)
_FRACTIONS: Rule = (
    "[low, high] with 0 <= low <= high <= 1",
    lambda v: (
        isinstance(v, (list, tuple))
        and len(v) == 2
        and all(_is_number(n) for n in v)
        and 0 <= v[0] <= v[1] <= 1
    ),
)


def _key(default: Any, rule: Rule, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"rule": rule, "doc": doc})


@dataclasses.dataclass(frozen=True)
class PasteSettings:
    """``MOSAIC.PASTE``: bank instances on real images, as X-Paste does it."""

    enabled: bool = _key(False, _FLAG, "Paste bank instances on real images.")
    stage: str = _key(
        "before",
        _one_of("before", "after"),
        "Paste on the image as it was read, or on what the mapper made of it.",
    )
    probability: float = _key(1.0, _between(0, 1), "Share of the images that are pasted on.")
    on_mosaics: bool = _key(False, _FLAG, "Paste on mosaics, too.")
    min_instances: int = _key(0, _at_least(0), "Fewest instances per image.")
    max_instances: int = _key(
        20, _at_least(0), "The number is uniform over MIN_INSTANCES..MAX_INSTANCES, exclusive."
    )
    mode: str = _key(
        "class_balanced",
        _one_of("class_balanced", "uniform"),
        "Draw a category first, then an instance of it; or uniformly over instances.",
    )
    categories: tuple[str, ...] = _key((), _NAMES, "Only these categories; empty: all in stock.")
    size: str = _key(
        "category",
        _one_of("category", "natural", "range"),
        "As large as real objects of the category; as in the mosaic; or within SIZE_RANGE.",
    )
    size_range: tuple[float, float] = _key(
        (0.05, 0.3), _FRACTIONS, "For SIZE 'range': sqrt(area / image area), low and high."
    )
    aspect_jitter: float = _key(
        0.2, _between(0, 0.9), "Width over height changes by up to this share."
    )
    flip: float = _key(0.5, _between(0, 1), "Probability of a horizontal flip.")
    vertical_flip: float = _key(0.0, _between(0, 1), "Probability of a vertical flip.")
    rotation: float = _key(0.0, _between(0, 180), "Turned by up to this many degrees either way.")
    blend: tuple[str, ...] = _key(
        ("hard",),
        _some_of("hard", "alpha", "gaussian", "poisson"),
        "How edges are blended; one of the list for each instance.",
    )
    outside: float = _key(
        0.25, _between(0, 0.95), "Share of an instance's box that may leave the image."
    )
    box_tolerance: float = _key(
        10.0,
        _between(0, 1e9),
        "A covered object stays when its box moved by at most this many pixels ...",
    )
    keep_area: int = _key(300, _at_least(0), "... or when it keeps more than this many pixels.")


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """``MOSAIC.ENGINE``: the process that fills the bank beside the training."""

    spawn: bool = _key(False, _FLAG, "Start an engine with the training and end it with it.")
    device: str = _key(
        "cuda:0", _NAME, "Where it runs. '{local_rank}' stands for the rank on this machine."
    )
    duty: float = _key(
        0.3,
        ("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1),
        "Share of time that it may keep the device busy.",
    )
    model: str = _key("embedded", _NAME, "A diffusers-layout directory, or 'embedded'.")
    python: str = _key("", _TEXT, "Python of the environment that has the engine; empty: this one.")
    local_ranks: tuple[int, ...] = _key(
        (0,), _RANKS, "Ranks of each machine that start one; the default is one per machine."
    )
    args: tuple[str, ...] = _key((), _WORDS, "More arguments for `mosaicbank engine`.")


@dataclasses.dataclass(frozen=True)
class LimitSettings:
    """``MOSAIC.LIMITS``: bounds of the bank; 0 is none, -1 leaves what the bank has."""

    max_bytes: int = _key(
        -1, _limit(63), "Most bytes of records; 0: no limit, -1: as the bank has it."
    )
    max_per_category: int = _key(
        -1, _limit(63), "Most mosaics and most instances of one category; 0 and -1 as above."
    )
    max_uses: int = _key(
        -1,
        _limit(32),
        "A record that was used so often is retired; 0: never, -1: as the bank has it. For a bank "
        "that an engine keeps stocked: one without runs dry.",
    )

    def given(self) -> dict[str, int]:
        """The limits to set."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value >= 0}


@dataclasses.dataclass(frozen=True)
class MosaicSettings:
    """``MOSAIC``: everything; see the README's table."""

    enabled: bool = _key(False, _FLAG, "Use mosaicbank at all.")
    bank: str = _key(
        "output/bank",
        _NAME,
        "The bank's directory, on a local disk; made when missing. '{machine}' stands for the "
        "machine's number.",
    )
    mix_ratio: float = _key(
        0.1,
        _between(0, 1),
        "Share of drawn samples that are mosaics: of categories that the bank holds or a running "
        "engine draws. While there is none, samples are real.",
    )
    categories: tuple[str, ...] = _key(
        (), _NAMES, "Categories that mosaics are drawn for; empty: all, by rarity."
    )
    slot_weights: str = _key(
        "live",
        _one_of("live", "fixed"),
        "How slots weigh categories: with the demand board and the supply, read as each epoch "
        "begins and every 128 samples of a rank; or as they were at the start of the run.",
    )
    match: str = _key(
        "id_and_name",
        _one_of("id_and_name", "name"),
        "How the bank's categories are found in the dataset: ids and names must agree, or names "
        "alone.",
    )
    aliases: tuple[str, ...] = _key(
        (),
        _WORDS,
        "Names, definitions or prompts under which the engine's model draws categories: "
        "'category=name', or JSON or TOML files (`--aliases` of `mosaicbank engine`).",
    )
    rejected_regions: str = _key(
        "fill",
        _one_of("fill", "keep"),
        "Mosaic regions that have no label: painted over, or left as they are.",
    )
    seed: int = _key(-1, _at_least(-1), "Of the sample stream; -1: cfg.SEED, or else random.")
    reproducible: bool = _key(
        True, _FLAG, "Seed the mapper per sample, so that no sample depends on its worker."
    )
    log_period: int = _key(20, _at_least(1), "Iterations between scalars.")
    picture_period: int = _key(500, _at_least(0), "Iterations between pictures; 0: none.")
    feedback: bool = _key(
        True, _FLAG, "Write per-category AP into the bank's feedback/ after each evaluation."
    )
    paste: PasteSettings = dataclasses.field(default_factory=PasteSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    limits: LimitSettings = dataclasses.field(default_factory=LimitSettings)


def _nested(field: dataclasses.Field[Any]) -> Optional[Any]:
    """The class of a nested block, None for a plain key."""
    factory = field.default_factory
    return None if factory is dataclasses.MISSING else factory


def describe(settings: Any = MosaicSettings, prefix: str = "MOSAIC.") -> Iterator[tuple[str, ...]]:
    """The rows of the config table: key, default, accepted values, meaning."""
    for field in dataclasses.fields(settings):
        name = prefix + field.name.upper()
        nested = _nested(field)
        if nested is None:
            accepted, _ = field.metadata["rule"]
            yield name, repr(_plain(field.default)), accepted, field.metadata["doc"]
        else:
            yield from describe(nested, name + ".")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _defaults(settings: Any) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(settings):
        nested = _nested(field)
        values[field.name.upper()] = _plain(field.default) if nested is None else _defaults(nested)
    return values


def add_mosaic_config(cfg: Any) -> None:
    """Add the ``MOSAIC`` block with its defaults to a Detectron2 config node, in place.

    An unknown key below ``MOSAIC`` is refused by :func:`resolve_settings`, which says which
    keys there are.
    """
    from detectron2.config import CfgNode

    def node(values: dict[str, Any]) -> Any:
        # New keys are let in so that the refusal can name the known ones.
        made = CfgNode(new_allowed=True)
        for name, value in values.items():
            made[name] = node(value) if isinstance(value, dict) else value
        return made

    cfg.MOSAIC = node(_defaults(MosaicSettings))


def _refuse_unknown(where: str, name: str, known: list[str]) -> None:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"\n  did you mean {close[0]}?" if close else ""
    raise ValueError(f"{where}{name}: expected one of {', '.join(known)}, got {name!r}{hint}")


def _resolve(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name.upper(): field for field in dataclasses.fields(cls)}
    for name in values:
        if str(name).upper() not in fields:
            _refuse_unknown(where, str(name), list(fields))
    given = {str(name).upper(): value for name, value in values.items()}
    resolved = {}
    for name, field in fields.items():
        nested = _nested(field)
        if nested is not None:
            block = given.get(name, {})
            if not isinstance(block, Mapping):
                raise ValueError(f"{where}{name}: expected a block of keys, got {block!r}")
            resolved[field.name] = _resolve(nested, block, f"{where}{name}.")
            continue
        value = given.get(name, field.default)
        if isinstance(field.default, tuple) and not isinstance(value, str):
            # Lists of yacs and of OmegaConf.
            value = tuple(value) if hasattr(value, "__iter__") else value
        if isinstance(field.default, float) and isinstance(value, int):
            value = value if isinstance(value, bool) else float(value)
        accepted, check = field.metadata["rule"]
        if not check(value):
            raise ValueError(f"{where}{name}: expected {accepted}, got {_plain(value)!r}")
        resolved[field.name] = value
    return cls(**resolved)


def resolve_settings(
    values: Union[MosaicSettings, Mapping[str, Any], None] = None,
) -> MosaicSettings:
    """Check a ``MOSAIC`` block.

    Args:
        values: ``cfg.MOSAIC``, or a nested mapping with the same keys in either case, of which
            all have defaults.

    Raises:
        ValueError: an unknown key or an impossible value; names the accepted ones.
    """
    if isinstance(values, MosaicSettings):
        return values
    settings: MosaicSettings = _resolve(MosaicSettings, values or {}, "MOSAIC.")
    paste = settings.paste
    if paste.min_instances > paste.max_instances:
        raise ValueError(
            "MOSAIC.PASTE.MIN_INSTANCES: expected at most MAX_INSTANCES "
            f"({paste.max_instances}), got {paste.min_instances}"
        )
    if paste.categories and paste.mode != "class_balanced":
        raise ValueError(
            "MOSAIC.PASTE.MODE: expected 'class_balanced' where CATEGORIES are given, got "
            f"{paste.mode!r}"
        )
    return settings


# What our loader can draw real images like, of Detectron2's samplers.
SAMPLERS = ("RepeatFactorTrainingSampler", "TrainingSampler")


def validate(cfg: Any) -> MosaicSettings:
    """Check a whole training config: the ``MOSAIC`` block, and that the rest goes with it.

    Raises:
        ValueError: something is impossible; says what was expected.
    """
    if "MOSAIC" not in cfg:
        raise ValueError("cfg.MOSAIC: expected the block of add_mosaic_config(cfg), got none")
    settings = resolve_settings(cfg.MOSAIC)
    if not settings.enabled:
        return settings
    if cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN: expected one of {', '.join(SAMPLERS)} with "
            f"MOSAIC.ENABLED, got {cfg.DATALOADER.SAMPLER_TRAIN!r}"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            "MODEL.LOAD_PROPOSALS: expected False with MOSAIC.ENABLED (a mosaic has no "
            "precomputed proposals), got True"
        )
    if settings.paste.enabled and settings.paste.stage == "after":
        check_after(cfg.INPUT.FORMAT)
    return settings


def check_after(image_format: str) -> None:
    """Refuse image formats that cannot be pasted on after the mapper."""
    if image_format not in ("RGB", "BGR"):
        raise ValueError(
            "INPUT.FORMAT: expected 'RGB' or 'BGR' with MOSAIC.PASTE.STAGE 'after', got "
            f"{image_format!r}\n  MOSAIC.PASTE.STAGE: 'before' goes with every format"
        )
