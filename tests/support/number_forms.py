"""Values that count as numbers, and values that do not."""

from __future__ import annotations

import enum
import math
from decimal import Decimal
from fractions import Fraction

try:
    import numpy as np
except ImportError:
    np = None


class Size(enum.IntEnum):
    TWO = 2


#: Two, of every type that is a number.
NUMBERS = [2, 2.0, Decimal(2), Decimal("2.0"), Fraction(4, 2), Size.TWO]
#: Values of other types.
NOT_NUMBERS = [True, "2", b"2", None, 2j, [2], (2,), {2}, ...]
#: Numbers that no float holds.
NOT_FINITE = [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1e400")]
NOT_FINITE += [Fraction(10**400), 10**400, Decimal("1e-400"), Fraction(1, 10**400)]  # the last two are not 0

if np is not None:
    INTEGERS = [np.int8, np.uint8, np.int32, np.int64, np.uint64]
    NUMBERS += [kind(2) for kind in [*INTEGERS, np.float16, np.float32, np.float64, np.longdouble]]
    NOT_NUMBERS += [np.bool_(1), np.complex64(2), np.array(2), np.array([2.0]), np.str_("2")]
    NOT_NUMBERS += [np.timedelta64(2, "s"), np.timedelta64(2, "ns"), np.datetime64("2020")]
    NOT_FINITE += [np.float64("nan"), np.float32("inf"), np.longdouble("1e4000")]


def label(value):
    return f"{type(value).__name__} {value}"[:40]
