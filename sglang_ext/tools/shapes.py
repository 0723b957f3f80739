"""What a JSON value may look like: the form between a JSON schema and a grammar.

Shapes are exact or wider than the schema they come from, never narrower: a valid value always has
a spelling. What is wider is checked after decoding (`verdicts.py`). Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from sglang_ext.tools.language import Term

__all__ = [
    "ANYTHING",
    "NOTHING",
    "Anything",
    "ArrayShape",
    "Bounds",
    "Choice",
    "Literals",
    "Nothing",
    "NumberShape",
    "ObjectShape",
    "Property",
    "Reference",
    "Shape",
    "StringShape",
    "choice",
    "productive",
]


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""


@dataclass(frozen=True)
class Nothing:
    """No value at all."""


@dataclass(frozen=True)
class Reference:
    """A shape by its name in `NormalSchema.shapes`; how recursion is written."""

    name: str


@dataclass(frozen=True)
class Choice:
    """Any of the options."""

    options: tuple["Shape", ...]


@dataclass(frozen=True)
class Literals:
    """Values written out as JSON by `json.dumps`."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class StringShape:
    """A string; ``term`` is the language of its decoded text, None for any."""

    term: Term | None = None


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; None is unbounded."""

    least: Fraction | None = None
    most: Fraction | None = None
    least_open: bool = False  # the bound itself is outside
    most_open: bool = False


@dataclass(frozen=True)
class NumberShape:
    """A number within ``bounds``; a whole one where ``whole``."""

    whole: bool
    bounds: Bounds = Bounds()


@dataclass(frozen=True)
class ArrayShape:
    """A list: ``prefix`` by position, then ``items``; ``most`` None is unbounded."""

    prefix: tuple["Shape", ...]
    items: "Shape"
    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class Property:
    """A declared property of an object."""

    name: str
    shape: "Shape"
    required: bool


@dataclass(frozen=True)
class ObjectShape:
    """An object: declared properties in their order, then others by the language of their name.

    ``extra`` languages never hold a declared name; an empty ``extra`` closes the object.
    """

    properties: tuple[Property, ...]
    extra: tuple[tuple[Term, "Shape"], ...] = ()


Shape = (
    Anything
    | Nothing
    | Reference
    | Choice
    | Literals
    | StringShape
    | NumberShape
    | ArrayShape
    | ObjectShape
)

ANYTHING = Anything()
NOTHING = Nothing()


def choice(options: Iterable[Shape]) -> Shape:
    """Any of ``options``, simplified: none is `Nothing`, one is itself."""
    flat: dict[Shape, None] = {}
    texts: dict[str, None] = {}
    for option in _flatten(options):
        if isinstance(option, Anything):
            return ANYTHING
        if isinstance(option, Literals):
            texts.update(dict.fromkeys(option.texts))
        else:
            flat[option] = None
    members = [*flat, *([Literals(tuple(texts))] if texts else [])]
    if not members:
        return NOTHING
    return members[0] if len(members) == 1 else Choice(tuple(members))


def _flatten(options: Iterable[Shape]) -> Iterator[Shape]:
    for option in options:
        if isinstance(option, Choice):
            yield from option.options
        elif not isinstance(option, Nothing):
            yield option


def productive(shapes: dict[str, Shape]) -> set[str]:
    """Names of the shapes that some finite value has; the others recur without end."""
    known: set[str] = set()
    while True:
        found = {name for name, shape in shapes.items() if _has_value(shape, known)}
        if found == known:
            return known
        known = found


def _has_value(shape: Shape, known: set[str]) -> bool:
    match shape:
        case Reference(name):
            return name in known
        case Choice(options):
            return any(_has_value(option, known) for option in options)
        case ArrayShape(prefix, items, least, _):
            needed = [*prefix[:least], *([items] if least > len(prefix) else [])]
            return all(_has_value(item, known) for item in needed)
        case ObjectShape(properties):
            return all(_has_value(one.shape, known) for one in properties if one.required)
        case _:
            return not isinstance(shape, Nothing)
