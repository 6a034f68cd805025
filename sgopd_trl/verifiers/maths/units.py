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
                     r"times|to|over|but|except|possibly|maybe|approximately|about|less|more|percent|percentage|pct|"
                     r"per\s+cent|tens|(?:thousand|million|billion|trillion|hundred|dozen|quarter|fifth|tenth|hundredth)s?|half|"
                     r"half-|halves|thirds|squared|cubed|factorial|multiplied|divided|point|mod|modulo|base|never|undefined|at|"
                     r"fewer|also|almost|nearly|roughly|alternatively|perhaps|either|infinity)\b")  # fmt: skip
_HEDGE = re.compile(
    r"(?i)\b(?:or|if|otherwise|wrong|incorrect|unless|also|alternatively|maybe|perhaps|possibly|else)\b"
)
_NOUNS = re.compile(r"(?<=\d) +([a-z]{4,}(?: +[a-z]{3,}){0,3})$")
_TRAILING = re.compile(r"\s*\\text\{([^{}]*)\}\s*(?:(?:\^\{(-?\d)\})?)((?:\s|/|\\cdot|\\per)*)$")
_PLAIN = re.compile(r"(?<=[\d}])\s*(cm|mm|km|kg|mg|ft|hr|mph|km/h|m/s|cm/s|inches|feet|meters|metres|miles|hours|minutes|seconds|"
                    r"dollars|cents|units|days|degrees)(?:\^\{(\d)\})?$")  # fmt: skip
_CURRENCY = re.compile(r"\\\$|\\text\{ (euros|pounds)\}")
_REMARK = re.compile(r"\(([^()]*)\)")
_DEGREES = "^{\\circ}"


def without_unit(text: str) -> tuple[str, str, str]:
    """A value without what stands behind it, its mark ("%", "°" or none), and its unit."""
    text, unit = text.strip(), ""
    if currency := _CURRENCY.match(text):
        text, unit = text[currency.end() :].strip(), currency.group(1) or "dollar"
    for _ in range(4):
        if not text.endswith("}"):
            break
        found = _TRAILING.search(text)
        if not found or found.start() == 0 or not _is_unit(found.group(1)):
            break
        text, unit = text[: found.start()].rstrip(), found.group(1).strip() + (found.group(2) or "") + unit
        for joint in ("/", r"\cdot"):
            if text.endswith(joint):
                text, unit = text.removesuffix(joint).rstrip(), joint + unit
    if found := _PLAIN.search(text):
        text, unit = text[: found.start()].rstrip(), found.group(1) + (found.group(2) or "")
    elif (found := _NOUNS.search(text)) and _is_unit(found.group(1)):
        text = text[: found.start()]
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
    if re.search(r"\d", re.sub(r"(?<=[a-zA-Z])[23]\s*$", "", outside)) or len(outside.split()) > 6:
        return False
    if _HEDGE.search(inside) or re.fullmatch(r"[\s\d.,/=-]*\d[\s\d.,/=-]*", inside):
        return False
    return _SPOKEN.search(outside) is None and re.fullmatch(r"[\w\s/.,'°²³^*·$()-]*", outside) is not None
