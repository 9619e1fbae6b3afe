"""The columns of an archive's CSV as the fields of the exchange's rows: how a line of CSV becomes a line of raw.

A line of raw is the row as the API would send it: the same names, numbers where the mapping's example has numbers, text
where it has text, each with exactly the characters of the file. Only a time in a finer unit than the API's gets a
decimal point (1735689600123456 µs is "1735689600123.456" ms), so that the mapping reads both and no digit is lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from schemahub.archives import ArchiveFile, archive_of
from schemahub.errors import ArchiveUnreadable, BadMapping
from schemahub.mapping_sql import EARLIEST_US
from schemahub.mappings import NS, Mapping
from schemahub.pointers import at_pointer, members

if TYPE_CHECKING:
    from schemahub.archive_read import Read

NUMBER, TEXT, FLAG = "number", "text", "flag"
FUTURE_US = 366 * 86_400_000_000
"""A time so far behind the file's end is none."""
_WHOLE = r"^(0|[1-9][0-9]{0,17})$"
_JSON_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_UNESCAPED = r'^[^"\\\x00-\x1f]*$'


@dataclass(frozen=True)
class Column:
    """One column: the field that it becomes, the form of that field in JSON, its texts in the words of the API."""

    name: str
    form: str
    words: dict[str, str]


@dataclass(frozen=True)
class Layout:
    """A mapping's archive, for the files of one period (see ``layout_of``)."""

    mapping: Mapping
    columns: tuple[Column, ...]
    by_name: dict[str, str]
    """The file's names to those of the rows; empty where the columns' order is what counts."""
    header_may_be: bool
    units: tuple[str, ...]
    latest_us: int

    def header(self, first: str, file: ArchiveFile) -> tuple[list[str], bool]:
        """Names of the columns, in the file's order, and whether the first line is the one that says them."""
        cells = [cell.strip() for cell in first.split(",")]
        fields = self.mapping.fields
        at = [c.name for c in self.columns].index(str(fields.trade_id)) if not self.by_name else 0
        is_header = bool(self.by_name) or (at < len(cells) and not cells[at].isdecimal())
        if is_header and not self.header_may_be:
            raise ArchiveUnreadable(f"{file.member} begins with {first[:80]!r}", stream=file.stream)
        if self.by_name:
            names = [self.by_name.get(cell, f"\0{number}") for number, cell in enumerate(cells)]
            missing = {str(source) for source in fields.sources} - set(names)
            if missing:
                raise ArchiveUnreadable(f"{file.member} has no column for {sorted(missing)}", stream=file.stream)
            return names, True
        if len(cells) != len(self.columns):
            raise ArchiveUnreadable(
                f"{file.member} has {len(cells)} columns, the mapping {len(self.columns)}", stream=file.stream
            )
        return [c.name for c in self.columns], is_header

    def rows(self, batch: pa.RecordBatch, read: Read, *, odd: bool) -> pa.RecordBatch:
        """The usable rows of a block as (id, ts_us, line); the others are counted in ``read``."""
        fields, texts = self.mapping.fields, {c.name: batch.column(c.name) for c in self.columns}
        judged = (str(fields.trade_id), str(fields.trade_ts))
        checks: list[tuple[str, Any]] = []
        ids = whole_numbers(texts[str(fields.trade_id)])
        checks.append(("trade id is not an integer", pc.and_kleene(pc.is_valid(ids), pc.greater(ids, 0))))
        for element, reason in ((fields.price, "price is not above 0"), (fields.quantity, "quantity is not above 0")):
            number = _decimals(texts[str(element)])
            good = pc.and_kleene(pc.is_valid(number), pc.and_(pc.is_finite(number), pc.greater(number, 0)))
            checks.append((reason, good))
        ts_us, time_text = self._times(texts[str(fields.trade_ts)], read)
        checks.append(("time is in no unit that the mapping knows", pc.is_valid(ts_us)))
        texts[str(fields.trade_ts)] = time_text
        for column in self.columns:
            if column.words:
                texts[column.name] = _translated(texts[column.name], column.words)
                checks.append((f"{column.name} is not one of the mapping's values", pc.is_valid(texts[column.name])))
            elif column.name not in judged and (form := _form_check(column, texts[column.name], odd)) is not None:
                checks.append((f"{column.name} is no {column.form}", form))
        made = pa.record_batch([ids, ts_us, self._lines(texts)], names=["id", "ts_us", "line"])
        return _kept(made, batch, checks, read)

    def _times(self, text: Any, read: Read) -> tuple[Any, Any]:
        """Microseconds since the epoch, and the text in the unit of the API; the unit is judged row by row."""
        number, unit_ns = whole_numbers(text), NS[str(self.mapping.fields.ts_unit)]
        ts_us = pa.nulls(len(text), pa.int64())
        for unit in self.units:
            step = NS[unit]
            low, high = EARLIEST_US * 1000 // step, self.latest_us * 1000 // step
            fits = pc.fill_null(pc.and_(pc.greater_equal(number, low), pc.less(number, high)), False)
            found = pc.sum(pc.cast(fits, pa.int64())).as_py() or 0
            if not found:
                continue
            read.units[unit] += found
            us = pc.multiply(number, step // 1000) if step >= 1000 else pc.divide(number, 1000 // step)
            ts_us = pc.if_else(fits, us, ts_us)
            if step != unit_ns:
                text = pc.if_else(fits, _rescaled(text, step, unit_ns), text)
        return ts_us, text

    def _lines(self, texts: dict[str, Any]) -> Any:
        """The rows as JSON, members in the order of the columns."""
        parts: list[Any] = []
        before = "{"
        stamp = str(self.mapping.fields.trade_ts)
        for column in self.columns:
            before += json.dumps(column.name) + ":"
            text = texts[column.name]
            if column.name == stamp and column.form == NUMBER:
                # A time with a fraction is text: DuckDB prints a JSON number anew.
                dotted = pc.match_substring(text, ".")
                if pc.any(dotted).as_py():
                    quoted = pc.binary_join_element_wise('"', text, '"', "")
                    text = pc.if_else(dotted, quoted, text)
            quote = '"' if column.form == TEXT else ""
            parts += [before + quote, text]
            before = quote + ","
        return pc.binary_join_element_wise(*parts, before[:-1] + "}", "", null_handling="replace")


def layout_of(mapping: Mapping, file: ArchiveFile) -> Layout:
    """Raises BadMapping: the mapping has no archive, or its example shows no row."""
    archive = archive_of(mapping)
    example = members(at_pointer(json.loads(mapping.requests.example), mapping.requests.rows))
    if archive is None or not example or not isinstance(example[0], dict):
        raise BadMapping(f"{mapping.exchange}: `archive` needs rows that are objects, and an example of one")
    listed = list(archive.columns.values()) if isinstance(archive.columns, dict) else archive.columns
    columns = tuple(Column(name, _form_of(example[0].get(name)), archive.values.get(name, {})) for name in listed)
    return Layout(
        mapping,
        columns,
        archive.columns if isinstance(archive.columns, dict) else {},
        archive.header != "never",
        archive.trade_ts_units or (str(mapping.fields.ts_unit),),
        file.period_us[1] + FUTURE_US,
    )


def _form_of(value: Any) -> str:
    return FLAG if isinstance(value, bool) else NUMBER if isinstance(value, int | float) else TEXT


def whole_numbers(text: Any) -> Any:
    """Integers that are written as JSON writes them; NULL for everything else."""
    try:
        numbers = pc.cast(text, pa.int64())
    except pa.ArrowInvalid:
        numbers = pc.cast(pc.if_else(pc.match_substring_regex(text, _WHOLE), text, None), pa.int64())
    return pc.if_else(pc.equal(pc.cast(numbers, pa.string()), text), numbers, None)


def _decimals(text: Any) -> Any:
    try:
        return pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        return pc.cast(pc.if_else(pc.match_substring_regex(text, _JSON_NUMBER), text, None), pa.float64())


def _rescaled(text: Any, step_ns: int, unit_ns: int) -> Any:
    """The same time in another unit, by digits: a point before the last ones, or zeros behind them."""
    if step_ns > unit_ns:
        return pc.binary_join_element_wise(text, "0" * (len(str(step_ns // unit_ns)) - 1), "")
    digits = len(str(unit_ns // step_ns)) - 1
    whole, rest = pc.utf8_slice_codeunits(text, 0, -digits), pc.utf8_slice_codeunits(text, -digits)
    return pc.binary_join_element_wise(whole, rest, ".")


def _translated(text: Any, words: dict[str, str]) -> Any:
    at = pc.index_in(text, value_set=pa.array(list(words), pa.string()))
    return pc.take(pa.array(list(words.values()), pa.string()), at)


def _form_check(column: Column, text: Any, odd: bool) -> Any:
    """Whether each text may stand in JSON as it is; None where nothing needs a look."""
    if column.form == NUMBER:
        numbers = whole_numbers(text)
        return pc.is_valid(numbers) if numbers.null_count == 0 else pc.match_substring_regex(text, _JSON_NUMBER)
    if column.form == FLAG:
        return pc.is_in(text, value_set=pa.array(["true", "false"]))
    return pc.match_substring_regex(text, _UNESCAPED) if odd else None


def _kept(made: pa.RecordBatch, sent: pa.RecordBatch, checks: list[tuple[str, Any]], read: Read) -> pa.RecordBatch:
    """The rows for which all checks hold; of the others the first that does not is the reason."""
    good = None
    for reason, holds in checks:
        holds = pc.fill_null(holds, False)
        both = holds if good is None else pc.and_(good, holds)
        lost = (len(made) if good is None else pc.sum(pc.cast(good, pa.int64())).as_py() or 0) - (
            pc.sum(pc.cast(both, pa.int64())).as_py() or 0
        )
        if lost:
            read.refused[reason] += lost
        good = both
    if pc.all(good).as_py():
        return made
    for row in sent.filter(pc.invert(good)).slice(0, max(0, 20 - len(read.examples))).to_pylist():
        read.examples.append(",".join(row.values())[:120])
    return made.filter(good)
