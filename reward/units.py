"""Units that can be converted into each other. Others are compared by name."""

from fractions import Fraction

# Unit: what it measures, and how many base units it is.
_SIZES: dict[str, dict[str, int | str]] = {
    "length": {"m meter metre": 1, "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100",
               "dm decimeter decimetre": "1/10", "km kilometer kilometre": 1000, "in inch inche": "127/5000",
               "ft foot feet": "381/1250", "yd yard": "1143/1250", "mi mile": "201168/125"},
    "mass": {"g gram": 1, "mg milligram": "1/1000", "kg kilogram": 1000, "lb pound": "45359237/100000",
             "oz ounce": "45359237/1600000", "t ton tonne": 1000000},
    "time": {"s sec second": 1, "ms millisecond": "1/1000", "min minute": 60, "h hr hour": 3600, "day": 86400,
             "week": 604800},
    "volume": {"l liter litre": 1, "ml milliliter millilitre": "1/1000"},
    "angle": {"degree deg": 1},
    "dollar": {"dollar": 1, "cent": "1/100"},
}  # fmt: skip

_UNITS = {
    name: ({measure: 1}, Fraction(size))
    for measure, units in _SIZES.items()
    for names, size in units.items()
    for name in names.split()
}


def conversion(unit: str, to: str) -> Fraction | None:
    """How many of unit ``to`` one ``unit`` is; None if they measure different things or are not known.

    Products, powers and quotients of units are known too: ``cm^2``, ``km/h``, ``mile per hour``, ``square meter``.
    """
    source, target = _size(unit), _size(to)
    if source is None or target is None or source[0] != target[0]:
        return None
    return source[1] / target[1]


def _size(unit: str) -> tuple[dict[str, int], Fraction] | None:
    measures: dict[str, int] = {}
    size = Fraction(1)
    for part, sign in _parts(unit):
        name, _, power = part.partition("^")
        known = _UNITS.get(name) or _UNITS.get(name.lower()) or _UNITS.get(name.removesuffix("s"))
        if known is None or not (power or "1").isdigit() or len(power) > 1:
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
    """``unit`` without the ending of a plural, and temperatures by their scale alone."""
    scale = unit.removeprefix("degrees ").removeprefix("degree ")
    if scale in ("celsius", "fahrenheit", "kelvin"):
        return scale
    return unit if len(unit) < 3 or "/" in unit or unit.endswith(("ss", "us")) else unit.removesuffix("s")
