"""Windows and rotation of each layer, read as the family's class does."""

from collections.abc import Callable

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_NUMBER, MAX_POSITIONS, Fields
from edgelm.spec.families.family import Family, Windows

_SLIDES = {"full_attention": False, "sliding_attention": True, "attention": False}


def layer_windows(fields: Fields, family: Family, rotated: list[bool]) -> list[int | None]:
    """For each layer the number of keys that a query sees, including the current one; None: all.

    Raises:
        BadCheckpoint: a list of the wrong length or with unknown types, or a missing window.
    """
    listed = None if family.mixer or family.parallel_mamba else _listed(fields, len(rotated))
    if family.windows == "none":
        return [None] * len(rotated)
    window = _window(fields, family.windows)
    if family.windows in ("all", "used") or listed is None:
        listed = _DEFAULTS[family.windows](fields, window, rotated)
    if any(listed) and window is None:
        raise BadCheckpoint(
            f"{fields.where}: {sum(listed)} layers have sliding_attention, and sliding_window is "
            "null or disabled by use_sliding_window; set a window, or make them full_attention"
        )
    return [window if slides else None for slides in listed]


def rotated_layers(fields: Fields, family: Family, count: int) -> list[bool]:
    """Which layers rotate their queries and keys (SmolLM3 skips every fourth).

    EXAONE 4's layers follow from their windows instead.

    Raises:
        BadCheckpoint: a list of the wrong length, or an entry that is neither 0 nor 1.
    """
    flags = fields.each_layer("no_rope_layers", count)
    if family.rotation == "theta":
        return [theta != 0 for theta in layer_thetas(fields, family, count)]
    if family.rotation == "typed":
        return [fields.values.get("position_embedding_type") == "rope"] * count
    if family.rotation != "listed":
        return [True] * count
    if flags is not None:
        if not all(isinstance(flag, int) and flag in (0, 1) for flag in flags):
            raise fields.wrong("no_rope_layers", "a list of 0 and 1")
        return [bool(flag) for flag in flags]
    interval = fields.required("no_rope_layer_interval")
    return [(layer + 1) % interval != 0 for layer in range(count)]


def layer_thetas(fields: Fields, family: Family, count: int) -> list[float | None]:
    """The base of each layer's rotation from `layer_rope_theta`, 0 for none; None: the common one.

    Raises:
        BadCheckpoint: a list of the wrong length, or a base that is neither 0 nor above 1.
    """
    thetas = fields.each_layer("layer_rope_theta", count)
    if family.rotation != "theta" or thetas is None:
        return [None] * count
    for theta in thetas:
        numeric = isinstance(theta, int | float) and not isinstance(theta, bool)
        if not numeric or not (theta == 0 or 1 < theta <= MAX_NUMBER):
            raise fields.wrong("layer_rope_theta", "a list of numbers above 1, or 0 for no RoPE")
    return [float(theta) for theta in thetas]


def _listed(fields: Fields, count: int) -> list[bool] | None:
    """Entries of `layer_types`, which are checked even if the class does not read them."""
    kinds = fields.each_layer("layer_types", count)
    if kinds is None:
        return None
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _SLIDES:
            raise BadCheckpoint(
                f"{fields.where}: layer_types has the kind {shown(kind)}, expected "
                f"{' or '.join(list(_SLIDES)[:2])}; other kinds of layers are not supported"
            )
    return [_SLIDES[kind] for kind in kinds]


def _window(fields: Fields, windows: Windows) -> int | None:
    window = fields.integer("sliding_window", most=MAX_POSITIONS)
    if windows in ("upper", "used") and not fields.flag("use_sliding_window"):
        return None
    return window


Default = Callable[[Fields, int | None, list[bool]], list[bool]]


def _all(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    return [window is not None] * len(rotated)


def _alternating(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    return [layer % 2 == 0 for layer in range(len(rotated))]


def _pattern(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    if window is None:
        return [False] * len(rotated)
    pattern = fields.required("sliding_window_pattern")
    return [(layer + 1) % pattern != 0 for layer in range(len(rotated))]


def _all_but_every(count: int) -> Default:
    def default(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
        return [(layer + 1) % count != 0 for layer in range(len(rotated))]

    return default


def _first(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    return [layer % 4 != 0 for layer in range(len(rotated))]


def _upper(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    first = fields.integer("max_window_layers", least=0)
    if first is None:
        raise fields.wrong("max_window_layers", "an integer of at least 0")
    return [window is not None and layer >= first for layer in range(len(rotated))]


def _unrotated(fields: Fields, window: int | None, rotated: list[bool]) -> list[bool]:
    used = fields.flag("use_sliding_window") and window is not None
    return [used and not rotates for rotates in rotated]


_DEFAULTS: dict[Windows, Default] = {
    "all": _all,
    "used": _all,
    "listed": _all,
    "alternating": _alternating,
    "pattern": _pattern,
    "fourth": _all_but_every(4),
    "fifth": _all_but_every(5),
    "sixth": _all_but_every(6),
    "first": _first,
    "upper": _upper,
    "unrotated": _unrotated,
}
