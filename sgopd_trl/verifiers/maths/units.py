"""Units, nouns and remarks behind a value, percent signs and degrees."""

import re


_UNITS = {
    "m": "m", "metre": "m", "meter": "m", "km": "km", "kilometre": "km", "kilometer": "km", "cm": "cm", "centimetre": "cm",
    "centimeter": "cm", "mm": "mm", "millimetre": "mm", "millimeter": "mm", "ft": "ft", "foot": "ft", "feet": "ft",
    "in": "in", "inch": "in", "inche": "in", "yd": "yd", "yard": "yd", "mi": "mi", "mile": "mi", "s": "s", "sec": "s",
    "second": "s", "min": "min", "minute": "min", "h": "h", "hr": "h", "hour": "h", "day": "day", "week": "week",
    "month": "month", "year": "year", "g": "g", "gram": "g", "kg": "kg", "kilogram": "kg", "mg": "mg", "lb": "lb",
    "pound": "pound", "oz": "oz", "ounce": "oz", "l": "l", "litre": "l", "liter": "l", "ml": "ml", "dollar": "dollar",
    "$": "dollar", "cent": "cent", "euro": "euro", "radian": "rad", "rad": "rad", "mph": "mi/h", "km/h": "km/h",
    "kph": "km/h", "m/s": "m/s", "sq": "sq", "hz": "hz", "j": "j", "n": "n", "w": "w",
}  # fmt: skip
_SPOKEN = re.compile(r"(?i)\b(?:if|or|and|otherwise|unless|when|not|is|are|wrong|incorrect|false|no|else|than|minus|plus|"
                     r"times|to|over|but|except|possibly|maybe|approximately|about|less|more|percent|thousand|million|"
                     r"billion|hundred|dozen|half|half-|squared|cubed|factorial|mod|modulo|base|never|undefined)\b")  # fmt: skip
_TRAILING = re.compile(r"\s*\\text\{([^{}]*)\}\s*(?:(?:\^\{(-?\d)\})?)((?:\s|/|\\cdot|\\per)*)$")
_PLAIN = re.compile(r"(?<=[\d}])\s*(cm|mm|km|kg|mg|ft|hr|mph|km/h|m/s|cm/s|inches|feet|meters|metres|miles|hours|minutes|seconds|"
                    r"dollars|cents|units|days|degrees)(?:\^\{(\d)\})?$")  # fmt: skip
_REMARK = re.compile(r"\(([^()]*)\)")
_DEGREES = "^{\\circ}"


def without_unit(text: str) -> tuple[str, str, str]:
    """A value without what stands behind it, its mark ("%", "°" or none), and its unit."""
    text, unit = text.strip(), ""
    if text.startswith("\\$"):
        text, unit = text[2:].strip(), "dollar"
    for _ in range(4):
        if not text.endswith("}"):
            break
        found = _TRAILING.search(text)
        if not found or found.start() == 0 or not _is_unit(found.group(1)):
            break
        text, unit = text[: found.start()].rstrip().removesuffix("/"), found.group(1) + (found.group(2) or "") + unit
    if found := _PLAIN.search(text):
        text, unit = text[: found.start()].rstrip(), found.group(1) + (found.group(2) or "")
    mark = ""
    if text.endswith("\\%"):
        text, mark = text[:-2].rstrip(), "%"
    elif (
        text.endswith(_DEGREES)
        and text.count(_DEGREES) == 1
        and "\\" not in text[: -len(_DEGREES)].replace("\\frac", "")
    ):
        text, mark = text[: -len(_DEGREES)].rstrip(), "°"
    return text, mark, canonical_unit(unit)


def canonical_unit(unit: str) -> str:
    """The unit in one spelling, or nothing for words that are no unit of measurement."""
    unit = _REMARK.sub("", unit).strip().lower().rstrip(".")
    power = unit[-1] if unit[-1:] in ("2", "3") else ""
    bare = unit[: len(unit) - len(power)].strip()
    known = _UNITS.get(bare) or _UNITS.get(bare.removesuffix("s"))
    return f"{known}{power}" if known else ""


def _is_unit(words: str) -> bool:
    """Whether words behind a number only say what it counts, rather than change it or add another."""
    outside = _REMARK.sub(" ", words)
    inside = " ".join(_REMARK.findall(words))
    if any(character.isdigit() for character in outside.rstrip(" 23")) or len(outside.split()) > 6:
        return False
    if re.search(r"(?i)\b(?:or|if|otherwise|wrong|incorrect|unless)\b", inside):
        return False
    return _SPOKEN.search(outside) is None and re.fullmatch(r"[\w\s/.,'°²³^*·$()-]*", outside) is not None
