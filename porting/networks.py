"""The network that a verification runs: this project's, or any of the user's with the same keys."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from porting.errors import Defect, ErrorKind, PortingError
from porting.plan import Plan
from porting.rules import TracePoint
from porting.weights_file import OTHER_NAMES


@dataclass(frozen=True)
class UserNetwork:
    """A network of the user's own, with the file's weights.

    Attributes:
        create: makes it anew.
        points: what can be compared in it, with its own module paths.
        unseen: activations of the reference that no module of it computes by itself.
    """

    create: Callable[[], nn.Module]
    points: tuple[TracePoint, ...]
    unseen: tuple[str, ...]


def user_network(spec: str, plan: Plan, state: Mapping[str, Tensor]) -> UserNetwork:
    """The network that `MODULE:FACTORY` makes, for `porting.verify --network`.

    The factory is called with `num_classes` where it takes that, else with nothing.

    Raises:
        PortingError: missing (no such module or factory), or mismatch (its keys or shapes are not the file's).
    """
    factory = _factory(spec)
    takes = _takes_classes(factory)

    def create() -> nn.Module:
        try:
            model: Any = factory(num_classes=plan.classes) if takes and plan.classes else factory()
        except TypeError as error:
            raise _unusable(spec, f"cannot be called: {error}", "to be called with nothing, or num_classes") from None
        except Exception as error:  # the user's own code: whatever it raises is what there is to say
            raise _unusable(spec, f"raises {type(error).__name__}: {error}", "a network") from None
        if not isinstance(model, nn.Module):
            raise _unusable(spec, f"gives a {type(model).__name__}", "a torch.nn.Module")
        names = _other_names(model)
        own = {_renamed(key, names): value for key, value in state.items()}
        try:
            model.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise _unusable(spec, " ".join(str(error).split())[:400], "the keys and shapes of the file") from None
        return model.float().eval()

    model = create()
    names = _other_names(model)
    points, unseen = _visible(model, [replace(p, module=_renamed(p.module, names)) for p in plan.table.points])
    if not points or points[-1].name != plan.table.points[-1].name:
        raise _unusable(spec, f"has no module {plan.table.points[-1].module}", "one that gives the network's output")
    return UserNetwork(create, tuple(points), tuple(unseen))


def _factory(spec: str) -> Callable[..., Any]:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise _unusable(spec, "no MODULE:FACTORY", "for example timm.models.xception:legacy_xception")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's own code, too
        found_instead = f"cannot be imported: {error or type(error).__name__}"
        remedy = "Check the name, and that it is on PYTHONPATH."
        raise PortingError(ErrorKind.MISSING, spec, [found_instead], remedy) from None
    if not callable(found):
        raise _unusable(spec, "not something to call", "a function or class that makes the network")
    factory: Callable[..., Any] = found
    return factory


def _takes_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return False
    return any(p.name == "num_classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _other_names(model: nn.Module) -> dict[str, str]:
    """This project's names of modules to the network's own, where they differ."""
    return {ours: theirs for theirs, ours in OTHER_NAMES.items() if hasattr(model, theirs)}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    head, _, rest = key.partition(".")
    return names.get(head, head) + (f".{rest}" if rest else "")


def _visible(model: nn.Module, points: Sequence[TracePoint]) -> tuple[list[TracePoint], list[str]]:
    """The points that a module of the network shows, and the names of the others."""
    modules = dict(model.named_modules())
    seen: list[TracePoint] = []
    unseen = []
    for point in points:
        norm = seen[-1].module if seen else ""
        if point.module in modules:
            seen.append(point)
        elif {f"{norm}.drop", f"{norm}.act"} <= modules.keys():
            # timm's BatchNormAct2d: the batch norm's own output passes through `drop`, and `act` follows.
            seen[-1] = replace(seen[-1], module=f"{norm}.drop")
            seen.append(replace(point, module=f"{norm}.act"))
        else:
            unseen.append(point.name)
    return seen, unseen


def _unusable(spec: str, found: str, expected: str) -> PortingError:
    return PortingError(
        ErrorKind.MISMATCH, spec, [Defect("--network", found, expected)], "Give a network with the file's keys."
    )
