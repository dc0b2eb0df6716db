"""Faults in the network: settings and wiring that other ports get wrong, with the right weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import MaxPoolSame
from tests.mutations.case import Case, Part

Undo = ExitStack
Change = Callable[[nn.Module, ExitStack], None]


@dataclass(frozen=True)
class NetworkMutant:
    """Modules that compute something else.

    Attributes:
        kind: of fault.
        part: index of the part that it is in.
        changes: module paths in the part, and what is done to each; undone by the stack.
        named: layers that must be named, and no other.
        equivalent: why the function does not change, where it does not; then it may be named or not.
    """

    kind: str
    part: int
    changes: tuple[tuple[str, Change], ...]
    named: frozenset[str]
    equivalent: str = ""
    where: str = field(default="", compare=False)

    @contextmanager
    def applied(self, part: Part) -> Iterator[None]:
        with ExitStack() as undo:
            for path, change in self.changes:
                change(_holder(part.module, path), undo)
            yield

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}"


class _Slot(nn.Module):
    """A module in its parent, so that it can be replaced: not registered anywhere."""

    def __init__(self, parent: nn.Module, name: str) -> None:
        super().__init__()
        object.__setattr__(self, "parent", parent)
        object.__setattr__(self, "name", name)


def _holder(root: nn.Module, path: str) -> nn.Module:
    """The module itself; a path ending in "=" gives its place in its parent."""
    if not path.endswith("="):
        return root.get_submodule(path)
    parent, _, name = path[:-1].rpartition(".")
    return _Slot(root.get_submodule(parent), name)


def replaced_by(make: Callable[[], nn.Module]) -> Change:
    def change(slot: nn.Module, undo: ExitStack) -> None:
        parent, name = slot.parent, slot.name
        assert isinstance(parent, nn.Module) and isinstance(name, str)
        before = getattr(parent, name)
        undo.callback(setattr, parent, name, before)
        setattr(parent, name, make())

    return change


def with_setting(**settings: Any) -> Change:
    def change(module: nn.Module, undo: ExitStack) -> None:
        for name, value in settings.items():
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)

    return change


def on_input(function: Callable[[Tensor], Tensor]) -> Change:
    def change(module: nn.Module, undo: ExitStack) -> None:
        hook = module.register_forward_pre_hook(lambda _m, inputs: (function(inputs[0]), *inputs[1:]))
        undo.callback(hook.remove)

    return change


def on_output(function: Callable[[Tensor], Tensor]) -> Change:
    def change(module: nn.Module, undo: ExitStack) -> None:
        undo.callback(module.register_forward_hook(lambda _m, _i, output: function(output)).remove)

    return change


def _padded(before: int, after: int, stride: int) -> Change:
    """The same convolution with other amounts of padding before and after."""

    def change(module: nn.Module, undo: ExitStack) -> None:
        with_setting(padding=(0, 0), stride=(stride, stride))(module, undo)
        on_input(lambda x: F.pad(x, (before, after, before, after)))(module, undo)

    return change


def network_mutants(case: Case) -> Iterator[NetworkMutant]:
    """Every one, in the network's order."""
    for index, part in enumerate(case.parts[32]):
        name = {point.module: point.name for point in part.points}
        modules = dict(part.module.named_modules())
        for path in name:
            for kind, change, equivalent in _of_module(case, modules[path], path, index):
                where = part.path(path)
                slot = f"{path}=" if kind in _REPLACING else path
                yield NetworkMutant(kind, index, ((slot, change),), frozenset({name[path]}), equivalent, where)
        yield from _of_part(case, part, index, name, modules)


_REPLACING = {"ReLU missing", "LeakyReLU instead of ReLU", "pool padded symmetrically", "pool without padding",
              "pool in ceil mode", "pool padded with zeros", "average pool"}  # fmt: skip


class _ZeroPadded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1)), 3, stride=2)


def _of_module(case: Case, module: nn.Module, path: str, part: int) -> Iterator[tuple[str, Change, str]]:
    if isinstance(module, nn.BatchNorm2d):
        yield "epsilon 1e-5", with_setting(eps=1e-5), ""
        yield "epsilon 2e-3", with_setting(eps=2e-3), ""
        yield "statistics of the batch", with_setting(training=True, momentum=0.0), ""
        relu_follows = case.arch == "xception" and path in ("bn1", "bn2", "bn3", "bn4")
        relu_follows |= case.arch != "xception" and (part == 0 or part == len(case.parts[32]) - 2)
        yield "ReLU too many", on_output(Tensor.relu), "a doubled ReLU" if relu_follows else ""
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        stride = module.stride[0]
        total = 2 * int(module.padding[0])
        if total:  # the original's stem is not padded
            yield "padding before, not after", _padded(total, 0, stride), ""
            yield "padding after, not before", _padded(0, total, stride), ""
        wider = int(module.padding[0]) + 1
        yield "dilation 2", with_setting(dilation=(2, 2), padding=(wider, wider)), ""
        other = 3 - stride
        yield f"stride {other}", with_setting(stride=(other, other)), ""
    elif isinstance(module, nn.Conv2d) and module.stride[0] == 2:
        yield "stride 1", with_setting(stride=(1, 1)), ""
    elif isinstance(module, nn.ReLU):
        first = part == 1 and path in ("stack.act1",) and case.arch != "xception"
        why = "the stem's ReLU comes before it, so its input is never negative" if first else ""
        yield "ReLU missing", replaced_by(nn.Identity), why
        yield "LeakyReLU instead of ReLU", replaced_by(lambda: nn.LeakyReLU(0.01)), why
        yield "doubled ReLU", on_output(Tensor.relu), "a doubled ReLU"
    elif isinstance(module, MaxPoolSame):
        yield "pool padded symmetrically", replaced_by(lambda: nn.MaxPool2d(3, 2, padding=1)), ""
        yield "pool without padding", replaced_by(lambda: nn.MaxPool2d(3, 2)), ""
        yield "pool in ceil mode", replaced_by(lambda: nn.MaxPool2d(3, 2, ceil_mode=True)), ""
        yield "pool padded with zeros", replaced_by(_ZeroPadded), ""
        yield "average pool", replaced_by(lambda: nn.AvgPool2d(3, 2, padding=1)), ""
    elif isinstance(module, nn.Linear):
        yield "outputs shifted by one class", on_output(lambda x: x.roll(1, -1)), ""
        yield "background kept", on_output(lambda x: F.pad(x, (1, 0))), ""
        yield "softmax too many", on_output(lambda x: x.softmax(-1)), ""
    elif path.endswith("global_pool"):
        yield "maximum instead of average", on_input(lambda x: x.amax((2, 3), keepdim=True)), ""


def _of_part(
    case: Case, part: Part, index: int, name: dict[str, str], modules: dict[str, nn.Module]
) -> Iterator[NetworkMutant]:
    """Faults that take more than one module: moved ReLUs and strides, and where the shortcut starts."""
    relu = Tensor.relu

    def mutant(kind: str, changes: Any, named: set[str], equivalent: str = "") -> NetworkMutant:
        where = part.path(changes[0][0].removesuffix("="))
        return NetworkMutant(kind, index, tuple(changes), frozenset(named), equivalent, where)

    if "" not in modules or not part.prefix or part.prefix in ("stem", "head"):
        return
    if "" in name:  # a unit that ends in a sum
        shortcut = next((name[path] for path in ("shortcut.conv", "skip") if path in name), name[""])
        first = "the stem's ReLU comes before it, so its input is never negative" if index == 1 else ""
        yield mutant("shortcut after the ReLU", [("", on_input(relu))], {shortcut}, first)
        yield mutant("ReLU after the sum", [("", on_output(relu))], {name[""]})
    for n in (1, 2, 3):
        act, norm = f"stack.act{n}", f"stack.conv{n}.bn_dw"
        if act in name:
            first = index == 1 and n == 1
            changes = [(f"{act}=", replaced_by(nn.Identity)), (norm, on_output(relu))]
            yield mutant("ReLU moved past the depthwise", changes, {name[norm]} if first else {name[act], name[norm]})
    depthwise, pointwise = "stack.conv3.conv_dw", "stack.conv3.conv_pw"
    if depthwise in modules and modules[depthwise].stride == (2, 2):
        moved = [(depthwise, with_setting(stride=(1, 1))), (pointwise, with_setting(stride=(2, 2)))]
        why = "the same pixels in the end: seen only in the shapes between"
        yield mutant("stride moved to the pointwise", moved, {name[depthwise], name[pointwise]}, why)
        earlier = "stack.conv1.conv_dw"
        moved = [(depthwise, with_setting(stride=(1, 1))), (earlier, with_setting(stride=(2, 2)))]
        yield mutant("stride moved to the first depthwise", moved, {name[depthwise], name[earlier]})
