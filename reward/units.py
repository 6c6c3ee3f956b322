"""Units: the one list of them, and how those that measure the same are converted. Others are compared by name."""

import re
from fractions import Fraction

# What is measured: the symbols of its units, each with how many base units it is and its names.
_SIZES: dict[str, dict[str, tuple[int | str, str]]] = {
    "length": {"m": (1, "meter metre"), "mm": ("1/1000", "millimeter millimetre"),
               "cm": ("1/100", "centimeter centimetre"), "dm": ("1/10", "decimeter decimetre"),
               "km": (1000, "kilometer kilometre"), "in": ("127/5000", "inch inche"), "ft": ("381/1250", "foot feet"),
               "yd": ("1143/1250", "yard"), "mi": ("201168/125", "mile")},
    "mass": {"g": (1, "gram"), "mg": ("1/1000", "milligram"), "kg": (1000, "kilogram"),
             "lb": ("45359237/100000", "pound"), "oz": ("45359237/1600000", "ounce"), "t": (1000000, "ton tonne")},
    "time": {"s": (1, "second"), "sec": (1, ""), "ms": ("1/1000", "millisecond"), "min": (60, "minute"),
             "h": (3600, "hour"), "hr": (3600, ""), "": (86400, "day"), " ": (604800, "week")},
    "volume": {"L": (1, "l liter litre"), "mL": ("1/1000", "ml milliliter millilitre")},
    "angle": {"deg": (1, "degree")},
    "dollar": {"USD": (1, "dollar"), "": ("1/100", "cent")},
    "energy": {"J": (1, "joule"), "kJ": (1000, "kilojoule")},
    "force": {"N": (1, "newton"), "kN": (1000, "kilonewton")},
    "power": {"W": (1, "watt"), "kW": (1000, "kilowatt")},
    "pressure": {"Pa": (1, "pascal"), "kPa": (1000, "kilopascal")},
    "voltage": {"V": (1, "volt")},
    "current": {"A": (1, "ampere amp")},
    "frequency": {"Hz": (1, "hertz"), "kHz": (1000, "kilohertz")},
    "amount": {"mol": (1, "mole")},
}  # fmt: skip

_UNITS: dict[str, tuple[dict[str, int], Fraction]] = {}
for _measure, _sizes in _SIZES.items():
    for _symbol, (_size_in_base, _names) in _sizes.items():
        for _name in (_symbol.strip(), *_names.split()):
            if _name:
                _UNITS[_name] = _UNITS.setdefault(_name.lower(), ({_measure: 1}, Fraction(_size_in_base)))

SYMBOLS = frozenset(symbol for sizes in _SIZES.values() for symbol in sizes if symbol.strip() and symbol != "USD")
r"""What ``\mathrm`` makes a unit behind a number."""

_LETTERS_OF_PRODUCTS = frozenset({"in", "ms", "dm"})
PLAIN_SYMBOLS = frozenset(
    name + plural
    for name in (*SYMBOLS, "ml", "mph")
    for plural in (("", "s") if name in ("lb", "min", "hr", "sec") else ("",))
    if len(name) > 1 and name not in _LETTERS_OF_PRODUCTS
)
"""Units that need no mark behind a number, because nobody writes them as a product."""

_ABBREVIATION = re.compile(r"^(sq|cu) ")
_CURRENCIES = frozenset({"dollar", "pound sterling", "euro", "yen", "rupee", "yuan"})
_SCALES = frozenset({"celsius", "fahrenheit", "kelvin", "degree"})
CURRENCY_WORDS = {
    "Rs": "rupee", "USD": "dollar", "EUR": "euro", "GBP": "pound sterling", "RMB": "yuan", "CNY": "yuan",
}  # fmt: skip
_ALIASES = {code.lower(): name for code, name in CURRENCY_WORDS.items()} | {"us dollar": "dollar"}


def conversion(unit: str, to: str) -> Fraction | None:
    """How many of unit ``to`` one ``unit`` is; None if they measure different things or are not known.

    Products, powers and quotients of units are known too: ``cm^2``, ``km/h``, ``mile per hour``, ``square meter``.
    """
    source, target = _size(unit), _size(to)
    if source is None or target is None or source[0] != target[0]:
        return None
    return source[1] / target[1]


def is_known(unit: str) -> bool:
    """Whether ``unit`` is one of the list, or made of such."""
    return unit in _CURRENCIES or unit in _SCALES or _size(unit) is not None


def _size(unit: str) -> tuple[dict[str, int], Fraction] | None:
    measures: dict[str, int] = {}
    size = Fraction(1)
    for part, sign in _parts(unit):
        name, _, power = part.partition("^")
        known = _UNITS.get(name) or _UNITS.get(name.lower()) or _UNITS.get(name.removesuffix("s"))
        if known is None or not (power or "1").removeprefix("-").isdigit() or len(power) > 2:
            return None
        exponent = sign * int(power or 1)
        for measure, degree in known[0].items():
            measures[measure] = measures.get(measure, 0) + degree * exponent
        size *= known[1] ** exponent
    return {measure: degree for measure, degree in measures.items() if degree}, size


def _parts(unit: str) -> list[tuple[str, int]]:
    """The factors of a unit, each with 1, or with -1 below the fraction bar."""
    unit = "mile/hour" if unit == "mph" else unit
    above, _, below = unit.replace(" per ", "/").partition("/")
    found = []
    for factors, sign in ((above, 1), (below, -1)):
        for word, power in (("square ", "^2"), ("cubic ", "^3")):
            if factors.startswith(word):
                factors = factors.removeprefix(word) + power
        found += [(factor, sign) for factor in factors.split()]
    return found


def unit_name(unit: str) -> str:
    """``unit`` without the ending of a plural, temperatures by their scale alone, currencies by one name."""
    unit = _ABBREVIATION.sub(lambda match: {"sq": "square ", "cu": "cubic "}[match[1]], unit)
    scale = unit.removeprefix("degrees ").removeprefix("degree ")
    if scale in ("celsius", "fahrenheit", "kelvin"):
        return scale
    unit = (
        unit
        if len(unit) < 3 or unit.endswith(" s") or "/" in unit or unit.endswith(("ss", "us"))
        else unit.removesuffix("s")
    )
    return _ALIASES.get(unit, unit)
