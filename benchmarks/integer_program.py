"""The search as an integer program, for a second opinion and for other solvers: HiGHS (scipy) or CP-SAT (ortools).

One binary variable a choice, one flow variable in [0, 1] a pair of neighbouring choices, one variable a peak. The k
best come one by one: each program forbids what was found before. What a linear row cannot say exactly (a lower bound on
a peak, CP-SAT's whole numbers) is relaxed, checked on the path found, and forbidden when it fails: the result is exact
up to the solver's own tolerances.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from netsmith.errors import MissingDependencyError
from netsmith.search.branch_and_bound import Found
from netsmith.search.k_best import PEAKS, TOTALS, Catalogue, SearchResult
from netsmith.search.space import Floats, Ints, Space, Steps, summed

Number = int | float


@dataclass
class _Program:
    """Minimise `cost @ x` with `low <= rows @ x <= high`, 0 <= x <= `upper`, the first `whole` of x binary."""

    cost: Floats
    rows: sparse.csr_matrix
    low: Floats
    high: Floats
    upper: Floats
    whole: int


class _Rows:
    """Rows of a sparse matrix, collected one after another."""

    def __init__(self) -> None:
        self.data: list[Floats] = []
        self.column: list[Ints] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, columns: Ints, values: Floats, low: float, high: float) -> None:
        self.column.append(columns)
        self.data.append(values)
        self.low.append(low)
        self.high.append(high)

    def matrix(self, width: int) -> sparse.csr_matrix:
        ends = np.concatenate([[0], np.cumsum([len(c) for c in self.column])])
        return sparse.csr_matrix(
            (np.concatenate(self.data), np.concatenate(self.column), ends), shape=(len(self.low), width)
        )


def k_best_by(
    solver: Literal["milp", "cpsat"], stages: Any, costs: Any, resources: Any, budget: Any, k: int, *, mix: bool,
    seconds: Number | None,
) -> SearchResult:  # fmt: skip
    """`netsmith.k_best` by another solver, which may end before it has found anything."""
    catalogue = Catalogue(stages, costs, resources, PEAKS, TOTALS)
    space = catalogue.space(budget, distinct=True, mix=mix)
    return catalogue.result(integer_program(space, k, solver, seconds=seconds), k)


def integer_program(space: Space, k: int, solver: Literal["milp", "cpsat"], *, seconds: Number | None = None) -> Found:
    """The k best paths by solving one integer program after another; `explored` counts the programs."""
    program = _program(space, whole=solver == "cpsat")
    paths: list[Ints] = []
    forbidden: list[Ints] = []
    begin = np.concatenate([[0], np.cumsum(space.widths)])[:-1]
    deadline = None if seconds is None else time.perf_counter() + seconds
    bound, proven, programs = -np.inf, True, 0
    while len(paths) < k:
        left = None if deadline is None else deadline - time.perf_counter()
        if left is not None and left <= 0:
            proven = False
            break
        solve = _solve_milp if solver == "milp" else _solve_cpsat
        x, below, done = solve(program, [begin + p for p in forbidden], left)
        programs += 1
        bound = max(bound, below)
        if x is None or not done:
            proven = done
            break
        path = np.array([int(x[b : b + w].argmax()) for b, w in zip(begin, space.widths, strict=True)])
        forbidden.append(path)
        if space.fits(path[None])[0]:
            paths.append(path)
    found = np.array(paths, np.int64).reshape(len(paths), len(space.cost))
    costs = summed(space.cost, found)
    order = np.argsort(costs, kind="stable")
    return Found(found[order], costs[order], proven, np.inf if proven else bound, programs)


def _program(space: Space, *, whole: bool) -> _Program:
    widths = space.widths
    begin = np.concatenate([[0], np.cumsum(widths)])
    pairs = [a * b for a, b in itertools.pairwise(widths)]
    flows = np.cumsum([begin[-1], *pairs])
    peaks = [peak for limit in space.limits for peak in limit.peaks]
    width = int(flows[-1]) + len(peaks)
    rows = _Rows()
    for s, w in enumerate(widths):
        rows.add(np.arange(begin[s], begin[s] + w), np.ones(w), 1.0, 1.0)
    for s, (a, b) in enumerate(itertools.pairwise(widths)):
        pair = (flows[s] + np.arange(a * b)).reshape(a, b)
        for i in range(a):
            rows.add(np.append(pair[i], begin[s] + i), np.append(np.ones(b), -1.0), 0.0, 0.0)
        for j in range(b):
            rows.add(np.append(pair[:, j], begin[s + 1] + j), np.append(np.ones(a), -1.0), 0.0, 0.0)
    if space.distinct:
        _at_most(rows, np.concatenate(space.group), 1)
    if space.mix:
        _at_most(rows, np.concatenate(space.network), len(widths) - 1)
    upper = np.ones(width)
    _limit_rows(rows, space, flows, upper, whole=whole)
    cost = _spread(space.cost, flows, width)
    return _Program(cost, rows.matrix(width), np.array(rows.low), np.array(rows.high), upper, int(begin[-1]))


def _limit_rows(rows: _Rows, space: Space, flows: Ints, upper: Floats, *, whole: bool) -> None:
    """One row a limit, and for each of its peaks rows that hold the peak's variable above every step taken.

    The variable is then at least the peak, and nothing holds it down: an upper bound on it is exact, a lower bound is
    left out here and checked on the path found. With `whole` it counts whole units, so it is held above less.
    """
    width = len(upper)
    column = int(flows[-1])
    for limit in space.limits:
        values = np.zeros(width) if limit.steps is None else _spread(limit.steps, flows, width)
        for peak in limit.peaks:
            upper[column] = max(float(step.max()) for step in peak)
            for s in range(len(peak)):
                alone = tuple(step if t == s else np.zeros_like(step) for t, step in enumerate(peak))
                at = _spread(alone, flows, width)
                used = np.flatnonzero(at)
                rows.add(
                    np.append(used, column), np.append(-(np.floor(at[used]) if whole else at[used]), 1.0), 0.0, np.inf
                )
            values[column] = 1.0
            column += 1
        used = np.flatnonzero(values)
        low = -np.inf if limit.peaks else limit.low
        if np.isfinite(low) or np.isfinite(limit.high):
            rows.add(used, values[used], low, limit.high)


def _spread(steps: Steps, flows: Ints, width: int) -> Floats:
    """Steps as coefficients: the first on the choices of stage 0, the others on the pairs."""
    values = np.zeros(width)
    values[: steps[0].shape[1]] = steps[0][0]
    for s, step in enumerate(steps[1:]):
        values[flows[s] : flows[s + 1]] = step.ravel()
    return values


def _at_most(rows: _Rows, owner: Ints, most: int) -> None:
    for one in np.unique(owner):
        columns = np.flatnonzero(owner == one)
        rows.add(columns, np.ones(len(columns)), -np.inf, float(most))


def _solve_milp(program: _Program, forbidden: list[Ints], seconds: Number | None) -> tuple[Floats | None, float, bool]:
    """Solution, lower bound, and whether that is the end of the matter."""
    bounded: Any = LinearConstraint  # its stubs know scalar bounds only
    constraints = [bounded(program.rows, program.low, program.high)]
    if forbidden:
        rows = _Rows()
        for columns in forbidden:
            rows.add(columns, np.ones(len(columns)), -np.inf, len(columns) - 1.0)
        constraints.append(bounded(rows.matrix(len(program.cost)), -np.inf, np.array(rows.high)))
    whole = np.zeros(len(program.cost))
    whole[: program.whole] = 1
    box: Any = Bounds
    options: dict[str, Any] = {"mip_rel_gap": 0.0}
    if seconds is not None:
        options["time_limit"] = seconds
    found = milp(
        program.cost,
        integrality=whole,
        bounds=box(0, program.upper),
        constraints=constraints,
        options=options,
    )
    below = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
    if found.status == 2:
        return None, np.inf, True
    return found.x, below, found.status == 0


def _solve_cpsat(program: _Program, forbidden: list[Ints], seconds: Number | None) -> tuple[Floats | None, float, bool]:
    """The same by CP-SAT: rows are scaled to whole numbers and relaxed by what that rounding may cost."""
    try:
        from ortools.sat.python import cp_model
    except ImportError as cause:
        raise MissingDependencyError(
            'the solver "cpsat" needs ortools: pip install "netsmith[solver]", or use solver="exact"'
        ) from cause
    model = cp_model.CpModel()
    x: list[Any] = [
        model.new_bool_var(f"x{i}") if top == 1.0 else model.new_int_var(0, int(np.ceil(top)), f"x{i}")
        for i, top in enumerate(program.upper)
    ]
    rows: Any = program.rows
    for r in range(rows.shape[0]):
        part = slice(rows.indptr[r], rows.indptr[r + 1])
        _add_row(model, [x[c] for c in rows.indices[part]], rows.data[part], program.low[r], program.high[r])
    for columns in forbidden:
        model.add(sum(x[c] for c in columns) <= len(columns) - 1)
    used = np.flatnonzero(program.cost)
    scale = 2.0**46 / max(1e-300, float(np.abs(program.cost).max(initial=1e-300)) * 64)
    weights = np.round(program.cost[used] * scale).astype(int).tolist()
    model.minimize(cp_model.LinearExpr.weighted_sum([x[c] for c in used], weights))
    engine = cp_model.CpSolver()
    engine.parameters.num_workers = 1
    engine.parameters.random_seed = 0
    if seconds is not None:
        engine.parameters.max_time_in_seconds = seconds
    status = engine.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, np.inf, True
    below = engine.best_objective_bound / scale
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, below, False
    return np.array([engine.value(v) for v in x], float), below, status == cp_model.OPTIMAL


def _add_row(model: Any, variables: list[Any], values: Floats, low: float, high: float) -> None:
    whole = bool(np.all(values == np.round(values)) and np.abs(values).max(initial=0) < 2**40)
    scale = 1.0 if whole else 2.0**40 / float(np.abs(values).max())
    numbers = np.round(values * scale).astype(int).tolist()
    slack = 0 if whole else 64  # one half for each variable that is not zero: a path, and a peak
    terms = sum(v * n for v, n in zip(variables, numbers, strict=True))
    if np.isfinite(low):
        model.add(terms >= int(np.floor(low * scale)) - slack)
    if np.isfinite(high):
        model.add(terms <= int(np.ceil(high * scale)) + slack)
