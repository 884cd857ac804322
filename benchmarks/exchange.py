"""Improving a tour by exchanging two or three of its edges, again and again.

Moves are those of Lin and Kernighan (1973) to depth three, over a few likely neighbours of each city (`candidates`);
then a short piece of the tour is disturbed and improved anew, and kept when it is not longer (iterated local search).
Plain lists rather than numpy: each step looks at a few single numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import no_type_check

import numpy as np
from numpy.typing import NDArray

# A move: what it gains, the ends of its edges, and the exchanges of two edges that carry it out.
Pair = tuple[int, int, int, int]
Move = tuple[float, tuple[int, ...], tuple[Pair, ...]]


@no_type_check  # at run time, in tests: its methods are called so often that checking them takes ten times as long
class Tour:
    """A closed tour under improvement; cities are 0..n-1.

    `lengths` (n, n) are symmetric, may be negative, and are infinite from a city to itself; `near` (n, m) holds for
    each city the neighbours to try, nearest first. With `depth` 2 only exchanges of two edges and moves of up to three
    neighbouring cities are tried (2-opt and Or-opt), with 3 all sequential exchanges of three edges.
    """

    def __init__(
        self, lengths: NDArray[np.float64], near: NDArray[np.integer], cities: Sequence[int], *, depth: int = 3
    ) -> None:
        n = self._n = len(lengths)
        self._least = lengths.min(axis=1).tolist()
        self._length = np.ascontiguousarray(lengths).data.cast("B").cast("d")
        self._near = [list(zip(c.tolist(), lengths[i, c].tolist(), strict=True)) for i, c in enumerate(near)]
        self._full = depth > 2
        self._longest = n if self._full else 3
        self._tiny = 1e-10 * max(abs(d) for row in self._near for _, d in row)
        self._cities = list(cities)
        self._place = [0] * n
        for i, city in enumerate(self._cities):
            self._place[city] = i

    @property
    def cities(self) -> tuple[int, ...]:
        """The tour, from any city on."""
        return tuple(self._cities)

    def improve(self, rng: random.Random) -> None:
        """Apply moves until none of those tried shortens the tour."""
        queue = list(range(self._n))
        rng.shuffle(queue)
        self._settle(queue)

    def search(self, rng: random.Random, trials: int, goal: float) -> None:
        """`trials` times disturb a piece of the tour and improve it; what makes the tour longer is taken back.

        Ends early where the tour is no longer than `goal`, such as a lower bound.
        """
        if self._n < 8:
            return
        total = sum(self._length[a * self._n + b] for a, b in pairwise([*self._cities, self._cities[0]]))
        for _ in range(trials):
            if total <= goal + self._tiny:
                return
            cities, place = self._cities[:], self._place[:]
            added, touched = self._disturb(rng)
            added -= self._settle(touched)
            if added > self._tiny:
                self._cities, self._place = cities, place
            else:
                total += added

    def _settle(self, queue: list[int]) -> float:
        """Improve around the cities of the queue, and around what that changes; returns what was gained."""
        gained, waiting = 0.0, set(queue)
        while queue:
            city = queue.pop()
            waiting.discard(city)
            while (move := self._find(city)) is not None:
                gain, ends, pairs = move
                for pair in pairs:
                    self._exchange(*pair)
                gained += gain
                for end in ends:
                    if end not in waiting:
                        waiting.add(end)
                        queue.append(end)
        return gained

    def _disturb(self, rng: random.Random) -> tuple[float, list[int]]:
        """Swap two neighbouring pieces of up to 50 cities; returns the length added and the cities at the ends."""
        n, tour, place, length = self._n, self._cities, self._place, self._length
        most = min(50, (n - 2) // 3)
        one, two = 1 + int(rng.random() * most), 1 + int(rng.random() * most)
        start = int(rng.random() * (n - one - two - 1))
        middle, stop = start + one, start + one + two
        ends = [tour[i] for i in (start, start + 1, middle, middle + 1, stop, (stop + 1) % n)]
        a, b, c, d, e, f = ends
        added = length[a * n + d] + length[e * n + b] + length[c * n + f]
        added -= length[a * n + b] + length[c * n + d] + length[e * n + f]
        piece = tour[middle + 1 : stop + 1] + tour[start + 1 : middle + 1]
        tour[start + 1 : stop + 1] = piece
        for i, city in enumerate(piece, start + 1):
            place[city] = i
        return added, ends

    def _find(self, t1: int) -> Move | None:
        """The first move found that shortens the tour and takes away an edge of city `t1`.

        The names follow the literature: edges (t1, t2), (t3, t4), (t5, t6) go; (t2, t3), (t4, t5) and the last with t1
        come. What has gone so far is always longer than what has come.
        """
        n, tour, place, length = self._n, self._cities, self._place, self._length
        at1 = place[t1]
        for ahead, back, sign in ((1 - n, -1, 1), (-1, 1 - n, -1)):  # an index of -n..-1 is a place too
            t2 = tour[at1 + ahead]
            gone = length[t1 * n + t2]
            for t3, come in self._near[t2]:
                gain = gone - come
                if gain <= self._tiny:
                    break
                if t3 == t1:
                    continue
                at3 = place[t3]
                t4 = tour[at3 + back]
                if t4 != t2:
                    move = self._closing(t1, t2, t3, t4, gain + length[t3 * n + t4], ahead, back, sign)
                    if move is not None:
                        return move
                t4 = tour[at3 + ahead]
                move = self._opening(t1, t2, t3, t4, gain + length[t3 * n + t4], ahead, back, sign)
                if move is not None:
                    return move
        return None

    def _closing(
        self, t1: int, t2: int, t3: int, t4: int, gain: float, ahead: int, back: int, sign: int
    ) -> Move | None:
        """Moves in which t4 lies before t3, so that (t4, t1) closes a tour: two edges, or a third after them."""
        n, tour, place, length, tiny = self._n, self._cities, self._place, self._length, self._tiny
        row = t1 * n
        enough = self._least[t1] + tiny
        first = (t1, t2, t3, t4)
        if gain > enough and gain - length[row + t4] > tiny:
            return gain - length[row + t4], first, (first,)
        if not self._full:
            return None
        start = place[t2]
        turned = (place[t3] - start) * sign % n
        for t5, come in self._near[t4]:
            left = gain - come
            if left <= tiny:
                break
            if t5 == t3:
                continue
            at5 = place[t5]
            # t2..t4 will be turned round: there the city before t5 is the one ahead of it now
            t6 = tour[at5 + (ahead if (at5 - start) * sign % n < turned else back)]
            if t6 == t4:
                continue
            left += length[t5 * n + t6]
            if left > enough and left - length[row + t6] > tiny:
                return left - length[row + t6], (*first, t5, t6), (first, (t1, t4, t5, t6))
        return None

    def _opening(
        self, t1: int, t2: int, t3: int, t4: int, gain: float, ahead: int, back: int, sign: int
    ) -> Move | None:
        """Moves in which t4 lies behind t3: t2..t3 becomes a ring, which t5 and t6 in it open again."""
        n, tour, place, length, tiny = self._n, self._cities, self._place, self._length, self._tiny
        row = t1 * n
        enough = self._least[t1] + tiny
        start = place[t2]
        ring = (place[t3] - start) * sign % n
        for t5, come in self._near[t4]:
            left = gain - come
            if left <= tiny:
                break
            at5 = place[t5]
            within = (at5 - start) * sign % n
            if within > ring or t5 == t3:
                continue
            if min(within + 1, ring - within) > self._longest:
                continue
            t6 = tour[at5 + ahead]  # the pieces t2..t5 and t6..t3 change places
            both = left + length[t5 * n + t6]
            if both > enough and both - length[row + t6] > tiny:
                pairs = (t1, t2, t4, t3), (t1, t3, t5, t6), (t3, t5, t4, t2)
                return both - length[row + t6], (t1, t2, t3, t4, t5, t6), pairs
            if within:
                t6 = tour[at5 + back]  # the pieces t2..t6 and t5..t3 are turned round
                both = left + length[t5 * n + t6]
                if both > enough and both - length[row + t6] > tiny:
                    pairs = (t1, t2, t5, t6), (t2, t5, t4, t3)
                    return both - length[row + t6], (t1, t2, t3, t4, t5, t6), pairs
        return None

    def _exchange(self, a: int, b: int, c: int, d: int) -> None:
        """Edges (a, b) and (c, d) go, (b, c) and (d, a) come."""
        place = self._place
        if (place[a] + 1 - place[b]) % self._n == 0:
            self._reverse(place[b], place[d])
        else:
            self._reverse(place[d], place[b])

    def _reverse(self, start: int, stop: int) -> None:
        """Turn round the cities at places start..stop, or all others where these are fewer: the same tour."""
        n, tour, place = self._n, self._cities, self._place
        count = (stop - start) % n + 1
        if 2 * count > n:
            start, stop, count = (stop + 1) % n, (start - 1) % n, n - count
        if start <= stop:
            piece = tour[start : stop + 1]
            piece.reverse()
            tour[start : stop + 1] = piece
            for i, city in enumerate(piece, start):
                place[city] = i
            return
        for _ in range(count // 2):
            a, b = tour[start], tour[stop]
            tour[start], place[b], tour[stop], place[a] = b, start, a, stop
            start, stop = (start + 1) % n, (stop - 1) % n
