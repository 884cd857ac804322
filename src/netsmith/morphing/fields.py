"""What the manifests of morphable artifacts, and of networks read from them, must hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from netsmith import limits
from netsmith.artifacts.manifest import Fields, PreprocessFields, Text
from netsmith.morphing.kinds import GENERATORS
from netsmith.morphing.space import Drawn, MorphSpace
from netsmith.widths.groups import Axis, Setting, WidthGroup

Width = Annotated[int, Field(ge=1, le=limits.WIDTH)]
Whole = Annotated[int, Field(ge=-limits.INTEGER, le=limits.INTEGER)]


class AxisFields(Fields):
    """An axis; whether it lies in the network is seen when that is there."""

    tensor: Text
    dim: Annotated[int, Field(ge=0, le=limits.DIMENSIONS)]
    start: Annotated[int, Field(ge=0, le=limits.INTEGER)] = 0
    repeat: Width = 1
    tiles: Width = 1
    fan_in: bool = False


class SettingFields(Fields):
    """A number of a module that follows the width."""

    module: Text
    attribute: Text
    per_channel: Whole
    fixed: Whole


class GroupFields(Fields):
    """A width group."""

    name: Text
    width: Width
    kind: Text
    axes: list[AxisFields]
    settings: list[SettingFields]

    def group(self) -> WidthGroup:
        """The group itself: the inverse of `dataclasses.asdict`."""
        axes = tuple(Axis(a.tensor, a.dim, a.start, a.repeat, a.tiles, a.fan_in) for a in self.axes)
        settings = tuple(Setting(s.module, s.attribute, s.per_channel, s.fixed) for s in self.settings)
        return WidthGroup(self.name, self.width, self.kind, axes, settings)


class SpaceFields(Fields):
    """The morph space."""

    mode: Text
    groups: Annotated[list[GroupFields], Field(min_length=1)]
    low: dict[str, Width]
    high: dict[str, Width]
    drawn: Drawn = "ratio"

    @model_validator(mode="after")
    def _a_range_for_each(self) -> SpaceFields:
        names = {g.name for g in self.groups}
        if len(names) < len(self.groups) or set(self.low) != names or set(self.high) != names:
            raise ValueError("low and high must have a width for every group, and every group a name of its own")
        empty = [name for name in self.low if self.low[name] > self.high[name]]
        if empty:
            raise ValueError(f"the range of '{empty[0][:80]}' is empty")
        return self

    def space(self) -> MorphSpace:
        """The morph space itself."""
        return MorphSpace(self.mode, tuple(g.group() for g in self.groups), dict(self.low), dict(self.high), self.drawn)


class GeneratorFields(Fields):
    """What the generator is; its settings are checked by its kind."""

    kind: Text
    settings: dict[str, Any]

    @model_validator(mode="after")
    def _as_saved(self) -> GeneratorFields:
        if self.kind in GENERATORS:  # another is refused where it is made
            GENERATORS[self.kind].check_saved(self.settings)
        return self


class MorphFields(Fields):
    """Of the kind `morph`."""

    base: dict[str, Any]
    folded: bool
    augmented: bool | None = None
    space: SpaceFields
    generator: GeneratorFields
    preprocess: PreprocessFields


class SampledFields(Fields):
    """Of the kind `sampled`: how a network was made of its base, and again of what came of that."""

    base: dict[str, Any]
    folded: bool
    groups: list[GroupFields]
    widths: dict[str, Width]
    preprocess: PreprocessFields | None = None
    input_size: Annotated[list[Width], Field(min_length=1, max_length=limits.DIMENSIONS)] | None = None

    @model_validator(mode="after")
    def _foldable(self) -> SampledFields:
        if self.folded and self.shape is None:
            raise ValueError("a network whose batch norms are folded needs an input_size")
        return self

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one input, where it is known."""
        size = self.input_size or (self.preprocess.input_size if self.preprocess else None)
        return None if size is None else tuple(size)
