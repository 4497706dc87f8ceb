"""Finding components by name and checking their options against their own signature.

A name is looked up as an import path (`package.module:name`), then among the modules of the room, then among the
entry points of installed packages (group `fedopt.<room>`). A built-in component is the object with the name of its
module, so adding one is adding one file.

Options are the component's parameters: the keyword-only parameters of a function, all parameters of a class. The
names that the engine supplies by itself (a room's *offers*) are not options.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic

from fedopt.types import FedoptError

Component = Callable[..., Any]
C = TypeVar("C", bound=Component)


class ConfigError(FedoptError):
    """Something in the experiment's description is wrong; `where` is the config path of what to change."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class Option(NamedTuple):
    """One option of a component."""

    name: str
    annotation: Any
    default: Any
    """`inspect.Parameter.empty` where the option has to be given."""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        kind = _spelled(self.annotation)
        return f"{self.name}: {kind}" + ("" if self.required else f" = {self.default!r}")


def _spelled(annotation: Any) -> str:
    """A type as a person writes it; constraints (`Annotated`) are left out."""
    if isinstance(annotation, str):
        return annotation
    if annotation is type(None):
        return "none"
    if annotation is Ellipsis:
        return "..."
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _spelled(inner[0])
    if origin in (Union, UnionType):
        return " | ".join(_spelled(part) for part in inner)
    if origin is Literal:
        return " | ".join(repr(value) for value in inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_spelled(part) for part in inner)}]"
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "")


def declare(*, reference: str = "", **facts: Any) -> Callable[[C], C]:
    """Attach facts to a component: its `reference` and what its room asks for (scope, knowledge, requires ...)."""

    def attach(component: C) -> C:
        component.fedopt_facts = {"reference": reference, **facts}  # type: ignore[attr-defined]
        return component

    return attach


def facts(component: Component) -> dict[str, Any]:
    """What `declare` attached, or nothing."""
    return dict(getattr(component, "fedopt_facts", {}))


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the empty string."""
    folded = {name.casefold(): name for name in known}
    hits = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return f" Did you mean '{folded[hits[0]]}'?" if hits else ""


def parameters(component: Component) -> dict[str, Option]:
    """Every parameter that can be given by keyword, with the types as objects; for functions the keyword-only ones."""
    target = component.__init__ if inspect.isclass(component) else component
    try:
        hints = get_type_hints(target, include_extras=True)
    except NameError:  # a name imported under TYPE_CHECKING only
        hints = {}
    wanted: set[Any] = {inspect.Parameter.KEYWORD_ONLY}
    if inspect.isclass(component):
        wanted = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    found = {}
    for p in inspect.signature(component).parameters.values():
        if p.kind in wanted:
            found[p.name] = Option(p.name, hints.get(p.name, Any), p.default)
    return found


def validate(component: Component, given: Mapping[str, Any], where: str, offers: Iterable[str] = ()) -> dict[str, Any]:
    """`given` as keyword arguments for `component`, converted to the annotated types.

    Raises ConfigError for an unknown option (with the nearest known name), a missing one and one of another type.
    """
    offers = set(offers)
    options = {name: o for name, o in parameters(component).items() if name not in offers}
    for name in given:
        if name not in options:
            listing = ", ".join(str(o) for o in options.values()) or "none"
            raise ConfigError(f"{where}.{name}", f"unknown option.{nearest(name, options)} Options: {listing}")
    missing = [o for o in options.values() if o.required and o.name not in given]
    if missing:
        raise ConfigError(f"{where}.{missing[0].name}", f"missing; give it a value of type {missing[0]}")
    return {name: convert(options[name].annotation, value, f"{where}.{name}") for name, value in given.items()}


def convert(annotation: Any, value: Any, where: str) -> Any:
    """`value` as it stands in a config file, checked and converted to the annotated type."""
    if annotation is Any:
        return value
    adapter = pydantic.TypeAdapter(annotation, config=_CONFIG if not _has_own_config(annotation) else None)
    try:
        text = json.dumps(value)
    except TypeError:  # a Python object given through the Python interface
        text = None
    try:
        # strict JSON: "3" is no number and 1 is no truth value, but a list may become a tuple
        return adapter.validate_json(text, strict=True) if text is not None else adapter.validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise ConfigError(where, f"{reason}; {value!r} was given") from None


_CONFIG = pydantic.ConfigDict(arbitrary_types_allowed=True)


def _has_own_config(annotation: Any) -> bool:
    return inspect.isclass(annotation) and (
        issubclass(annotation, pydantic.BaseModel) or hasattr(annotation, "__dataclass_fields__")
    )


class Registry:
    """The components of one room.

    room: the word used in configs, messages and entry-point groups.
    package: the package whose modules are the built-in components.
    offers: names of parameters that the engine supplies.
    """

    def __init__(self, room: str, package: str, offers: Iterable[str] = ()) -> None:
        self.room = room
        self.package = package
        self.offers = frozenset(offers)

    def builtin(self) -> list[str]:
        """Names of the modules of the room."""
        path = sys.modules[self.package].__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and not m.ispkg)

    def external(self) -> dict[str, Any]:
        """Entry points that other packages offer to this room, by name."""
        return {e.name: e for e in entry_points(group=f"fedopt.{self.room}")}

    def names(self) -> list[str]:
        """All names that `get` finds without an import path, sorted."""
        return sorted({*self.builtin(), *self.external()})

    def get(self, name: str, where: str | None = None) -> Component:
        """The component of this name, or a ConfigError with the nearest one."""
        where = where or f"{self.room}.name"
        if ":" in name:
            return _import(name, where)
        if name in self.builtin():
            component: Component = getattr(importlib.import_module(f"{self.package}.{name}"), name)
            return component
        external = self.external()
        if name in external:
            try:
                loaded: Component = external[name].load()
            except Exception as error:
                raise ConfigError(where, f"the entry point {external[name].value} does not load: {error}") from error
            return loaded
        known = self.names()
        raise ConfigError(
            where,
            f"no {self.room} component '{name}'.{nearest(name, known)} Known: {', '.join(known)};"
            f" or give an import path 'package.module:name'",
        )

    def options(self, name: str) -> dict[str, Option]:
        """The options of a component, by name."""
        return {n: o for n, o in parameters(self.get(name)).items() if n not in self.offers}

    def wants(self, name: str) -> frozenset[str]:
        """Which of the room's offers the component names among its parameters."""
        return frozenset(parameters(self.get(name))) & self.offers

    def validate(self, name: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Options for `name`, checked against its signature; see `validate`."""
        return validate(self.get(name, f"{where}.name"), given, where, self.offers)

    def build(self, name: str, options: Mapping[str, Any], where: str) -> Any:
        """What the component of this name makes of its options.

        Raises ConfigError for an unknown name or option, a missing option, one of another type or out of range, and a
        combination that the component refuses with a ValueError.
        """
        given = self.validate(name, options, where)
        try:
            return self.get(name)(**given)
        except ValueError as error:
            raise ConfigError(where, str(error)) from error


def _import(path: str, where: str) -> Component:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(where, f"cannot import '{module_name}' of '{path}': {error}") from error
    if not hasattr(module, attribute):
        raise ConfigError(where, f"'{module_name}' has no '{attribute}'.{nearest(attribute, vars(module))}")
    component: Component = getattr(module, attribute)
    return component
