"""The kind `grid`: keyframes that are trained one by one, repaired in between, and a coarse set below the range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netsmith.errors import MorphError
from netsmith.morphing.frames import MOST, Frames, keyframe_widths
from netsmith.morphing.generator import Apart, Courses
from netsmith.morphing.keyframes import divide, fit_keyframes, own_tensors
from netsmith.morphing.preparing import Run, Subject
from netsmith.morphing.repairing import repair, repairable
from netsmith.morphing.settings import Draw, FitSettings
from netsmith.morphing.space import MorphSpace
from netsmith.trace.chain import Chain
from netsmith.training.settings import TrainSettings


class Grid(Frames):
    """Keyframes at a few ratios (`netsmith.morphing.frames.Frames`), and how they come to be."""

    kind = "grid"

    def default_draws(self) -> tuple[Draw, ...]:
        """Leave out full width, which is not fitted, and the coarse set where there is none."""
        below: tuple[Draw, ...] = () if self.coarse is None else ("coarse",)
        if len(self.keyframes) == 1:
            return below or ("random",)
        return ("keyframe", "random", "keyframe", "random", *below)

    @classmethod
    def defaults(
        cls, settings: Mapping[str, Any], model: nn.Module, space: MorphSpace, chain: Chain | None
    ) -> dict[str, Any]:
        """Complete the settings by keyframes that suit the range, `own` tensors and `repaired` layers."""
        own = own_tensors(model, space.groups, chain)
        default = default_keyframes(space)
        if "keyframes" in settings:
            default["inbetweens"] = []
            if _go_below(settings["keyframes"], space.hull[0]):
                default["lowest"] = {}
        repaired = repairable(model, space.groups, settings.get("own", own))
        return {**default, "own": own, "repaired": repaired, **settings}

    @classmethod
    def check_saved(cls, settings: Mapping[str, Any]) -> None:
        """See `Generator.check_saved`."""
        if not {"own", "lowest"} <= set(settings):
            raise ValueError("it is of a version in which keyframes were read in another way: fit it again")
        keyframes = settings.get("keyframes", [])
        if isinstance(keyframes, list) and len(keyframes) > MOST:
            raise ValueError(f"expected at most {MOST} keyframes, got {len(keyframes)}")

    def draw(self, kind: Draw, space: MorphSpace, rng: torch.Generator) -> dict[str, int]:
        """See `Generator.draw`; one keyframe below 1, or widths that are fitted for the coarse set."""
        if kind == "keyframe":
            ratios = self.keyframes[1:]
            return self.widths_at(ratios[int(torch.randint(len(ratios), (), generator=rng))])
        if kind == "coarse":
            # read below the low end: fitted near it, at widths that read the cells at many places
            way = float(torch.rand((), generator=rng))
            return {n: min(space.high[n], round(low * (1 + way / 2))) for n, low in space.low.items()}
        return super().draw(kind, space, rng)

    def check_fitted(self, space: MorphSpace) -> None:
        """See `Generator.check_fitted`."""
        if not any(True for _ in self.parameters()):
            raise MorphError(
                f"a grid has nothing to fit on {space.range_text}: from the base's widths up it repeats the base's "
                "channels and keeps its function. Begin the range below 1, choose generator.kind: nested, or set "
                "training: null"
            )

    def divide(self, images: int, training: TrainSettings, fitting: FitSettings) -> Apart:
        """Divide a training among keyframes and the coarse set. Raises MorphError for draws that would not be drawn."""
        apart = divide(self, images, training, fitting.apart)
        if apart.steps and fitting.draws is not None and not fitting.coarse_alone:
            raise MorphError(
                f"fitting.draws ({', '.join(fitting.draws[:8])}) would not be drawn: the keyframes of a grid are "
                f"trained one by one, and what is left fits its coarse set. Leave draws out, or set fitting.apart: 0 "
                f"to draw widths"
            )
        return apart

    def fit_apart(
        self,
        subject: Subject,
        orders: Mapping[str, Sequence[int]],
        apart: Apart,
        fitting: FitSettings,
        run: Run,
        *,
        ranking: Callable[[], Iterable[Tensor]] | None = None,
    ) -> tuple[Courses, dict[str, tuple[int, ...]]]:
        """Train the keyframes."""
        return fit_keyframes(self, subject, orders, apart, fitting, run, ranking=ranking)

    def repair(self, read: Callable[[Mapping[str, int]], nn.Module], images: Tensor) -> None:
        """Set the factors between keyframes."""
        repair(self, read, images)


def default_keyframes(space: MorphSpace) -> dict[str, Any]:
    """For a grid: keyframes at every eighth down to a quarter, at halves below, and at the low end; the coarse set has
    3/4 of that. What is in between are those that the way down leaves out: each of its steps goes to the narrowest that
    has at least half the channels of the one above. From full width these are halves, and three quarters and odd
    eighths are in between, but where groups of few channels have no half.

    The low end is that of the group that goes lowest: a group of three heads ends at a third where others end at a
    quarter, and a quarter is within the range all the same. No group is narrower in a keyframe than in the range. What
    has the widths of another keyframe is none. A range from the base's width up has one keyframe, the base itself.
    """
    low = space.hull[0]
    lowest = {g.name: min(space.low[g.name], g.width) for g in space.groups}
    if low >= 1 or lowest == space.full:
        return {"keyframes": [1.0], "coarse": None, "lowest": lowest}

    def widths(ratio: float) -> dict[str, int]:
        return keyframe_widths(space.full, ratio, lowest)

    ratios = [*(k / 8 for k in range(7, 1, -1)), *(2.0**-k for k in range(3, 20))]
    found = [1.0]
    for ratio in ratios:
        if ratio > low * 1.2 and widths(ratio) not in (widths(found[-1]), widths(low)):
            found.append(ratio)
    found.append(low)
    steps = [1.0]  # down to the low end
    while steps[-1] > low:
        below = [r for r in found if r < steps[-1]]
        steps.append(min((r for r in below if r >= steps[-1] / 2), default=below[0]))
    between = [r for r in (3 / 4, 7 / 8, 5 / 8, 3 / 8) if r in found and r not in steps]
    return {"keyframes": found, "inbetweens": between, "coarse": 0.75 * low, "lowest": lowest}


def _go_below(keyframes: object, low: float) -> bool:
    """Whether somebody asks for keyframes below the range; what is no list of numbers is refused elsewhere."""
    ratios = keyframes if isinstance(keyframes, (list, tuple)) else ()
    return any(isinstance(r, (int, float)) and r < low for r in ratios)
