"""Conditions on the columns of an index, in SQL's words: label = 'cat' and (year > 2020 or place is null)."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from omma.core.errors import line
from omma.data.sources.columns import listed, shown

LONGEST = 10_000  # characters of a condition
DEEPEST = 50  # parentheses within each other
_WORDS = ("and", "or", "not", "in", "like", "between", "is", "null", "true", "false")
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^']|'')*')
    |(?P<quoted>"(?:[^"]|"")*")
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    |(?P<name>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class _Token(NamedTuple):
    kind: str  # text, name (of a column), number, word or sign; end
    value: Any
    at: int


def mask(table: pa.Table, condition: str, columns: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Which rows meet the condition. As in SQL, a comparison with a missing value is not met.

    Comparisons =, !=, <, <=, >, >=, [not] in (...), [not] like 'a%', [not] between a and b, is [not] null;
    and, or, not and parentheses; texts in '...' with '' for an apostrophe; names of columns as they are or in
    "...". Nothing of it is run as code. Raises ValueError, in one line, for what cannot be read.
    """
    if len(condition) > LONGEST:
        raise ValueError(f"--where: over {LONGEST:,} characters; filter the table instead")
    parser = _Parser(condition, columns)
    try:
        met = table.append_column("\0", pa.array(np.arange(len(table)))).filter(parser.parsed())["\0"]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        types = ", ".join(f"{name} ({table.schema.field(name).type})" for name in sorted(parser.used))
        raise ValueError(f"--where {shown(condition)}: {line(error)[:160]}; the columns: {types}") from None
    found = np.zeros(len(table), bool)
    found[met.to_numpy()] = True
    return found


class _Parser:
    """By recursive descent: or, and, not, comparison."""

    def __init__(self, condition: str, columns: Sequence[str]) -> None:
        self.condition, self.columns = condition, columns
        self.used, self.depth = set[str](), 0
        self.tokens = self._tokens()
        self.at = 0

    def _error(self, why: str, token: _Token | None = None) -> ValueError:
        where = (
            "" if token is None else f" at {shown(self.condition[token.at :], 20)!r}" * (token.kind != "end")
        )
        return ValueError(
            f"--where {shown(self.condition)}: {why}{where}; write it as \"label = 'cat' and year > 2020\""
        )

    def _tokens(self) -> list[_Token]:
        found, at, text = list[_Token](), 0, self.condition
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(
                    "cannot be read", _Token("", "", at + len(text[at:]) - len(text[at:].lstrip()))
                )
            kind, value = str(match.lastgroup), match[str(match.lastgroup)]
            start = match.start(kind)
            if kind in ("text", "quoted"):
                value = value[1:-1].replace(value[0] * 2, value[0])
                kind = "name" if kind == "quoted" else kind
            elif kind == "number":
                value = float(value) if re.search(r"[.eE]", value) else int(value)
            elif kind == "name" and value.lower() in _WORDS:
                kind, value = "word", value.lower()
            found.append(_Token(kind, value, start))
            at = match.end()
        return [*found, _Token("end", "", len(text))]

    # ------------------------------------------------------------ tokens
    def _next(self) -> _Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def _took(self, *values: str) -> bool:
        token = self.tokens[self.at]
        if token.kind in ("word", "sign") and token.value in values:
            self.at += 1
            return True
        return False

    def _expect(self, value: str) -> None:
        if not self._took(value):
            raise self._error(f"{value!r} is expected", self.tokens[self.at])

    # ------------------------------------------------------------ grammar
    def parsed(self) -> pc.Expression:
        expression = self._any()
        if (rest := self.tokens[self.at]).kind != "end":
            raise self._error("the end is expected", rest)
        return expression

    def _any(self) -> pc.Expression:
        expression = self._all()
        while self._took("or"):
            expression = expression | self._all()
        return expression

    def _all(self) -> pc.Expression:
        expression = self._not()
        while self._took("and"):
            expression = expression & self._not()
        return expression

    def _not(self) -> pc.Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error(f"over {DEEPEST} levels deep")
        if self._took("not"):
            expression = ~self._not()
        elif self._took("("):
            expression = self._any()
            self._expect(")")
        else:
            expression = self._comparison()
        self.depth -= 1
        return expression

    def _comparison(self) -> pc.Expression:
        column = self._column()
        token = self._next()
        if token.kind == "sign" and token.value in _COMPARE:
            return _COMPARE[token.value](column, self._value())
        if token == ("word", "is", token.at):
            negated = self._took("not")
            self._expect("null")
            return column.is_valid() if negated else column.is_null()
        negated = token == ("word", "not", token.at)
        token = self._next() if negated else token
        if token.kind != "word" or token.value not in ("in", "like", "between"):
            raise self._error("a comparison is expected", token)
        expression = {"in": self._in, "like": self._like, "between": self._between}[token.value](column)
        return ~expression if negated else expression

    def _column(self) -> pc.Expression:
        token = self._next()
        if token.kind != "name":
            raise self._error("the name of a column is expected", token)
        if token.value not in self.columns:
            known = listed(self.columns)
            raise ValueError(f"--where: no column {shown(token.value, 30)}; choose among {known}")
        self.used.add(token.value)
        return pc.field(token.value)

    def _value(self) -> Any:
        token = self._next()
        if token.kind in ("text", "number"):
            return token.value
        if token.kind == "word" and token.value in ("true", "false"):
            return token.value == "true"
        if token.kind == "word" and token.value == "null":
            raise self._error("nothing equals null: write `is null`", token)
        raise self._error("a 'text' or a number is expected", token)

    def _in(self, column: pc.Expression) -> pc.Expression:
        self._expect("(")
        values = [self._value()]
        while self._took(","):
            values.append(self._value())
        self._expect(")")
        unknown = pa.scalar(None, pa.bool_())  # a missing value is neither in nor not in
        return pc.if_else(column.is_valid(), column.isin(values), unknown)  # pyright: ignore

    def _like(self, column: pc.Expression) -> pc.Expression:
        pattern = self._value()
        if not isinstance(pattern, str):
            raise self._error("like takes a 'text' with % and _", self.tokens[self.at - 1])
        return pc.match_like(column, pattern)  # pyright: ignore

    def _between(self, column: pc.Expression) -> pc.Expression:
        low = self._value()
        self._expect("and")
        return (column >= low) & (column <= self._value())
