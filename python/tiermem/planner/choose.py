"""The cheapest homes and caches of every table at given prices.

A table chooses two homes at most, the split between them, whether its rows lie by rank, and how long each
cache above keeps its rows. At given prices of bytes and of device time tables do not depend on one another.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tiermem.planner.arrays import Arrays
from tiermem.planner.costs import STAGES, RowCosts
from tiermem.planner.geometry import renumbering_bytes
from tiermem.planner.master import Column, Prices
from tiermem.planner.problem import Assignment

__all__ = ["Chooser", "Chosen", "Menu"]

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class _Option:
    """One way to place a table, but for its split."""

    homes: tuple[int, int]
    by_rank: bool
    window: float | None
    """Batches for which memory keeps its rows; `None`: no longer than they are in flight."""
    middle: int = 0
    """Tier of rows that caches too; 0: none."""
    middle_window: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The choices of all tables."""

    price: float
    assignment: Assignment
    column: Column
    """What it uses, in the linear costs."""
    options: npt.NDArray[np.int64]
    """Number of the option of each table, int64 [T]."""
    splits: npt.NDArray[np.int64]
    """Segments of its first part, int64 [T]."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """The M cheapest options of each table, the cheapest first."""

    options: npt.NDArray[np.int64]
    """int64 [T, M]."""
    splits: npt.NDArray[np.int64]
    """int64 [T, M]: segments of the first part."""
    prices: Floats
    """float64 [T, M]; infinite if there is none."""
    bytes: Floats
    """float64 [T, M, K]."""


class Chooser:
    """Chooses for all tables of a problem.

    Args:
        arrays: the problem.
        costs: what a row costs.
        windows: for how many batches memory may keep rows; without any it caches nothing.
        middle_windows: the same for tiers of rows below memory.
    """

    def __init__(
        self,
        arrays: Arrays,
        costs: RowCosts,
        windows: Sequence[float],
        middle_windows: Sequence[float] = (),
    ) -> None:
        self.arrays = arrays
        self.costs = costs
        self.tiers = len(arrays.tiers)
        self.ahead = float(arrays.problem.prefetch_distance)
        self.windows = [each for each in windows if each > self.ahead] if arrays.tiers[0].has_cache else []
        self.middle_windows = middle_windows
        self.row_bytes = arrays.row_bytes[:, None].astype(np.float64)
        self.rows = arrays.edges
        self.numbers = renumbering_bytes(arrays.rows).astype(np.float64)[:, None]
        self.options = list(self._options())
        # What many options share. The caches go with the chooser.
        self._bytes = functools.cache(self._bytes_of)
        self._rows = functools.cache(self._rows_of)
        self._middle_rows = functools.cache(self._middle_rows_of)

    def _options(self) -> Iterator[_Option]:
        pairs = [(home, home) for home in range(self.tiers)]
        for homes in itertools.chain(pairs, itertools.combinations(range(self.tiers), 2)):
            tier = self.arrays.tiers[homes[1]]
            is_single = homes[0] == homes[1]
            if not is_single:
                ranks: tuple[bool, ...] = (True,)
            else:
                ranks = (False,) if homes[1] == 0 or tier.is_byte or tier.is_log else (False, True)
            windows = [None, *self.windows] if homes[1] > 0 else [None]
            for by_rank, window in itertools.product(ranks, windows):
                yield _Option(homes, by_rank, window)
            for middle in range(1, homes[1]):
                between = self.arrays.tiers[middle]
                if between.has_cache and between.is_byte and (is_single or homes[0] == 0):
                    for window, deeper in itertools.product(self.windows, self.middle_windows):
                        if deeper <= window:
                            continue
                        yield _Option(homes, not is_single, window, middle, deeper)

    def choose(self, prices: Prices) -> Chosen:
        """The cheapest option and split of each table."""
        price, split = self._offers(prices)
        best = price.argmin(axis=0)
        table = np.arange(self.arrays.tables)
        return self.chosen(float(price[best, table].sum()), best, split[best, table])

    def whole(self, home: npt.NDArray[np.int64], *, cached: bool) -> Chosen:
        """Whole tables at these homes, cached by memory for the first of the windows or not at all."""
        window = self.windows[0] if cached and self.windows else None
        wanted = [_Option((int(each), int(each)), False, window if each else None) for each in home]  # noqa: FBT003
        options = np.array([self.options.index(each) for each in wanted], dtype=np.int64)
        return self.chosen(0.0, options, np.zeros(len(home), dtype=np.int64))

    def menu(self, prices: Prices, count: int) -> Menu:
        """The cheapest options of each table, each at its cheapest split."""
        price, split = self._offers(prices)
        picked = np.argsort(price, axis=0, kind="stable")[:count].T
        table = np.arange(self.arrays.tables)[:, None]
        price, split = price[picked, table], split[picked, table]
        nbytes = np.zeros((*picked.shape, self.tiers))
        for number, rows, columns in self._places(picked, price):
            for tier, each in self._bytes(self.options[number]).items():
                nbytes[rows, columns, tier] = each[rows, split[rows, columns]]
        return Menu(picked, split, price, nbytes)

    def busy(self, menu: Menu) -> tuple[Floats, Floats]:
        """For how long each place of a menu keeps stages busy by reads and by writes, [T, M, K, G] each."""
        shape = (*menu.options.shape, self.tiers, len(STAGES))
        reads, writes = np.zeros(shape), np.zeros(shape)
        for number, rows, columns in self._places(menu.options, menu.prices):
            used = self._used(self.options[number], rows, menu.splits[rows, columns])
            reads[rows, columns], writes[rows, columns] = used[1], used[2]
        return reads, writes

    def _places(
        self, options: npt.NDArray[np.int64], prices: Floats
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Each option, and where in a menu it stands."""
        for number in np.unique(options):
            rows, columns = np.nonzero((options == number) & np.isfinite(prices))
            yield int(number), rows, columns

    def _offers(self, prices: Prices) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Price and split of each option for each table, [O, T]."""
        tables = self.arrays.tables
        least = np.empty((len(self.options), tables))
        splits = np.zeros(least.shape, dtype=np.int64)
        weights = self._weights(prices)

        @functools.cache
        def row_prices(window: float | None, home: int, by_rank: bool) -> Floats:  # noqa: FBT001 (a key)
            """Price of the misses of the first segments, float64 [T, S + 1]; the same for many options."""
            read, written = self._rows(window, home, by_rank)
            of_read = np.einsum("tsg,tg->ts", read, weights[0][:, home])
            priced: Floats = of_read + np.einsum("tsg,tg->ts", written, weights[1][:, home])
            return priced

        for number, option in enumerate(self.options):
            price = self._price(option, prices, weights, row_prices)
            if option.homes[0] == option.homes[1]:
                least[number] = price[:, 0]
            else:
                # Both parts have rows.
                price = np.where((self.rows > 0) & (self.rows < self.rows[:, -1:]), price, np.inf)
                splits[number] = price.argmin(axis=1)
                least[number] = price[np.arange(tables), splits[number]]
        return least, splits

    def _weights(self, prices: Prices) -> tuple[Floats, Floats, Floats, Floats]:
        """Price of each stage of a row that is read, written, read from and written to a cache: [T, K, G]."""
        costs = self.costs
        write = costs.write * prices.writes + costs.write_reads * prices.reads
        if not self.arrays.problem.training:
            write = np.zeros_like(write)
        return (
            costs.read * prices.reads,
            write,
            costs.slot_read * prices.reads,
            costs.slot_write * prices.writes,
        )

    def _price(
        self,
        option: _Option,
        prices: Prices,
        weights: tuple[Floats, Floats, Floats, Floats],
        row_prices: Callable[[float | None, int, bool], Floats],
    ) -> Floats:
        """By split, float64 [T, S + 1]."""
        price = np.zeros(self.rows.shape)
        for tier, nbytes in self._bytes(option).items():
            price = price + prices.bytes[tier] * nbytes
        first, second = option.homes
        missed = row_prices(option.middle_window if option.middle else option.window, second, option.by_rank)
        price = price + (missed[:, -1:] if first == second else _rest(missed))
        if 0 < first < second:
            price = price + row_prices(option.window, first, option.by_rank)
        if option.middle:
            read_rows, written_rows = self._middle_rows(option)
            price = price + read_rows * weights[2][:, option.middle].sum(axis=1)[:, None]
            price = price + written_rows * weights[3][:, option.middle].sum(axis=1)[:, None]
        return price

    def _bytes_of(self, option: _Option) -> dict[int, Floats]:
        """Bytes of homes, new numbers and caches by tier, each [T, S + 1] by split."""
        first, second = option.homes
        per_row, found = self.arrays.home_bytes_per_row, {}
        found[second] = per_row[:, second, None] * _rest(self.rows)
        found[first] = found.get(first, 0.0) + per_row[:, first, None] * self.rows
        memory = found.get(0, 0.0) + self.numbers * option.by_rank
        if option.window is not None:
            kept = self._held(option.window) - self._held(self.ahead)
            memory = memory + np.maximum(_below(kept, first), 0.0) * self.row_bytes
        found[0] = memory + np.zeros(self.rows.shape)
        if option.middle:
            kept = self._held(option.middle_window) - self._held(option.window or 0.0)
            middle = np.maximum(_below(kept, first), 0.0) * self.row_bytes
            found[option.middle] = found.get(option.middle, 0.0) + middle
        return found

    def _held(self, window: float) -> Floats:
        return _prefix(self.arrays.held_at(window))

    def _missed(self, option: _Option) -> Iterator[tuple[int, Floats, Floats]]:
        """Rows read from and written to each home, in the shares that they cost each stage: [T, S + 1, G]."""
        window = option.middle_window if option.middle else option.window
        first, second = option.homes
        read, written = self._rows(window, second, option.by_rank)
        if first == second:
            yield second, read[:, -1:] + np.zeros_like(read), written[:, -1:] + np.zeros_like(written)
            return
        yield second, read[:, -1:] - read, written[:, -1:] - written
        if first > 0:
            yield first, *self._rows(option.window, first, option.by_rank)

    def _rows_of(self, window: float | None, home: int, by_rank: bool) -> tuple[Floats, Floats]:  # noqa: FBT001 (a key)
        """Misses of the first segments, in the shares that reading and writing them costs: [T, S + 1, G]."""
        arrays = self.arrays
        misses = arrays.misses_at(self.ahead if window is None else window)
        if by_rank:
            shared = self.costs.sharing(home, misses, arrays.segment_rows)
        else:
            whole = misses.sum(axis=1, keepdims=True), arrays.segment_rows.sum(axis=1, keepdims=True)
            shared = np.broadcast_to(self.costs.sharing(home, *whole), (*misses.shape, len(STAGES)))
        read = _prefix(misses[..., None] * shared)
        if arrays.tiers[home].is_log:
            return read, _prefix(np.broadcast_to(misses[..., None], shared.shape))
        return read, read

    def _middle_rows_of(self, option: _Option) -> tuple[Floats, Floats]:
        """Rows read from and written to the cache below memory, by split."""
        first = option.homes[0]
        above = _below(_prefix(self.arrays.misses_at(option.window or 0.0)), first)
        below = _below(_prefix(self.arrays.misses_at(option.middle_window)), first)
        # What leaves it dirty is read to be written down.
        return (above if self.arrays.problem.training else above - below), above

    def _used(
        self, option: _Option, at: npt.NDArray[np.int64], split: npt.NDArray[np.int64]
    ) -> tuple[Floats, Floats, Floats]:
        """What an option uses of tables `at`: bytes [n, K], stages of reads and writes [n, K, G]."""
        costs = self.costs
        nbytes = np.zeros((len(at), self.tiers))
        reads = np.zeros((len(at), self.tiers, len(STAGES)))
        writes = np.zeros_like(reads)
        for tier, each in self._bytes(option).items():
            nbytes[:, tier] += each[at, split]
        for tier, read, written in self._missed(option):
            reads[:, tier] += read[at, split] * costs.read[at, tier]
            if self.arrays.problem.training:
                reads[:, tier] += written[at, split] * costs.write_reads[at, tier]
                writes[:, tier] += written[at, split] * costs.write[at, tier]
        if option.middle:
            read_rows, written_rows = self._middle_rows(option)
            reads[:, option.middle] += read_rows[at, split, None] * costs.slot_read[at, option.middle]
            writes[:, option.middle] += written_rows[at, split, None] * costs.slot_write[at, option.middle]
        return nbytes, reads, writes

    def chosen(
        self, price: float, option_of: npt.NDArray[np.int64], split_of: npt.NDArray[np.int64]
    ) -> Chosen:
        """What an option (a number) and a split (segments of the first part) for each table come to."""
        arrays = self.arrays
        shape = (arrays.tables, 2)
        home = np.zeros(shape, dtype=np.int64)
        cached = np.zeros((*shape, self.tiers), dtype=np.bool_)
        exclusive = np.zeros(shape, dtype=np.bool_)
        renumbered = np.zeros(arrays.tables, dtype=np.bool_)
        nbytes = np.zeros(self.tiers)
        reads = np.zeros((self.tiers, len(STAGES)))
        writes = np.zeros_like(reads)
        for number in np.unique(option_of):
            option = self.options[number]
            at = np.flatnonzero(option_of == number)
            home[at] = option.homes
            renumbered[at] = option.by_rank
            for part in (0, 1):
                cached[at, part, 0] = option.window is not None and option.homes[part] > 0
                if 0 < option.middle < option.homes[part]:
                    cached[at, part, option.middle] = True
                    exclusive[at, part] = True
            used_bytes, used_reads, used_writes = self._used(option, at, split_of[at])
            nbytes += used_bytes.sum(axis=0)
            reads += used_reads.sum(axis=0)
            writes += used_writes.sum(axis=0)
        rows = self.rows[np.arange(arrays.tables), split_of].astype(np.int64)
        assignment = Assignment(
            renumbered=renumbered,
            split_rows=rows,
            home=home,
            cached=cached,
            exclusive=exclusive,
            cache_bytes=self._cache_bytes(option_of, split_of),
        )
        return Chosen(price, assignment, Column(nbytes, reads, writes), option_of, split_of)

    def _cache_bytes(
        self, option_of: npt.NDArray[np.int64], split_of: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """What the caches should have by the choices; memory's at least a row of each width."""
        found = np.zeros(self.tiers)
        for number in np.unique(option_of):
            option = self.options[number]
            at = np.flatnonzero(option_of == number)
            split = split_of[at]
            if option.window is not None:
                kept = self._held(option.window) - self._held(self.ahead)
                kept = np.maximum(_below(kept, option.homes[0]), 0.0) * self.row_bytes
                found[0] += kept[at, split].sum()
            if option.middle:
                kept = self._held(option.middle_window) - self._held(option.window or 0.0)
                kept = np.maximum(_below(kept, option.homes[0]), 0.0) * self.row_bytes
                found[option.middle] += kept[at, split].sum()
        found[0] = max(found[0], float(self.arrays.class_row_bytes.sum()))
        return np.ceil(found).astype(np.int64)


def _prefix(values: Floats) -> Floats:
    """Sums of the first 0, 1, ... S segments, [T, S + 1, ...]."""
    return np.concatenate([np.zeros((len(values), 1, *values.shape[2:])), np.cumsum(values, axis=1)], axis=1)


def _rest(prefix: Floats) -> Floats:
    """Sums of the segments behind each split."""
    return prefix[:, -1:] - prefix


def _below(prefix: Floats, first_home: int) -> Floats:
    """Sums of the segments that do not live in memory, by split."""
    return _rest(prefix) if first_home == 0 else prefix[:, -1:] + np.zeros_like(prefix)
