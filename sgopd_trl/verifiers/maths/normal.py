"""One way of writing for what LaTeX can write in many, the meaning unchanged."""

import re

from .unicode import plain_characters


_STYLES = (
    r"displaystyle|textstyle|scriptstyle|limits|nolimits|bigg?[lrm]?|Bigg?[lrm]?|boldsymbol|bm|bf|rm|it|sf|cal|nonumber|"
    r"tiny|small|normalsize|large|Large|LARGE|huge|mathord|mathbin|mathrel|phantom\{[^{}]*\}|[hv]space\*?\{[^{}]*\}|"
    r"label\{[^{}]*\}|tag\*?\{[^{}]*\}|color\{[^{}]*\}|color\[[^\[\]]*\]\{[^{}]*\}|therefore"
)
_NAMES = "sqrt|frac|pi|infty|sin|cos|tan|log|ln|cdot|times"
_BARE = re.compile(rf"(?<![a-zA-Z\\])(?:sqrt(?=\s*[({{\d])|(?:{_NAMES})(?=\s*\{{)|(?:sin|cos|tan|ln|log)(?=\s*\())")

_UNIT_LETTERS = frozenset("mgshLJNWV")
_AFTER_NUMBER = re.compile(r"[\d)}]\s*(?:\\text\{[^{}]*\}(?:\^\{-?\d\})?\s*(?:/|\\cdot)?\s*)*")


def _is_unit_letter(found: re.Match[str]) -> bool:
    """Whether a letter in roman type stands behind a number, so that it is a unit and not a variable."""
    if found[1] not in _UNIT_LETTERS:
        return False
    before = found.string[max(found.start() - 60, 0) : found.start()]
    return any(found.end() == len(before) for found in _AFTER_NUMBER.finditer(before))


# Each in turn, where its first string occurs at all (the search for a plain string costs nothing)
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in (
        ("$", r"(?<!\\)\$", ""),
        ("\\(", r"(?<!\\)\\[()]", ""),
        ("\\[", r"(?<!\\)\\[\[\]]", ""),
        ("\\left", r"\\left\s*(?:\.|(?![a-zA-Z]))", ""),
        ("\\right", r"\\right\s*(?:\.|(?![a-zA-Z]))", ""),
        ("\\", rf"\\(?:{_STYLES})(?![a-zA-Z])", " "),
        ("color", r"\\(?:textcolor|colorbox|fcolorbox\{[^{}]*\})\{[^{}]*\}", ""),
        ("\\!", r"(?<!\\)\\!", ""),
        ("~", r"~", " "),
        ("\\", r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|\\(?:thin|med|thick)?space(?![a-zA-Z])", " "),
        ("&", r"&=", "="),
        (
            "\\",
            r"\\(?:mathrm|textbf|textit|textrm|textnormal|textsf|texttt|text\w*|mbox|hbox|operatorname\*?)\s*\{",
            r"\\text{",
        ),
        ("\\text", r"\\text\{\s*(ln|log|sin|cos|tan)\s*\}", r"\\\1 "),
        ("\\math", r"\\mathbb\s+([A-Z])", r"\\mathbb{\1}"),
        ("{R}", r"\\mathbb\{R\}\s*-\s*(?=\\\{)", r"\\mathbb{R}\\setminus "),
        ("real", r"\\text\{\s*(?:[aA]ll )?real(?:s| numbers)\s*\}", r"\\mathbb{R}"),
        ("\\math", r"\\(?:mathbf|mathit|mathsf|mathtt|mathcal|mathnormal)\s*(?=\{)", ""),
        ("\\", r"\\(?:underline|boxed|fbox|emph|mathop|ensuremath|mathstrut)\s*(?=\{)", ""),
        ("frac", r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        ("\\", r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])", r"\\le "),
        ("\\", r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])", r"\\ge "),
        ("\\", r"\\(?:ne|not\s*=)(?![a-zA-Z])", r"\\neq "),
        ("\\lt", r"\\lt(?![a-zA-Z])", "<"),
        ("\\gt", r"\\gt(?![a-zA-Z])", ">"),
        ("<=", r"<=", r"\\le "),
        (">=", r">=", r"\\ge "),
        ("!=", r"(?<=[a-zA-Z ])!=", r"\\neq "),
        ("brac", r"\\([lr])brace(?![a-zA-Z])", lambda m: r"\{" if m[1] == "l" else r"\}"),
        ("\\", r"\\(?:lbrack|lparen)(?![a-zA-Z])", "["),
        ("\\", r"\\(?:[lr]?vert|arrowvert)(?![a-zA-Z])", "|"),
        ("angle", r"\\([lr])angle(?![a-zA-Z])", lambda m: "(" if m[1] == "l" else ")"),
        ("\\", r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
        ("\\R", r"\\R(?![a-zA-Z])", r"\\mathbb{R}"),
        ("\\", r"\\(?:dots|cdots|dotsc|dotsb|ldots)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        ("...", r"\.\.\.", r"\\ldots "),
        ("\\", r"\\(?:simeq|sim|thickapprox|doteq)(?![a-zA-Z])", r"\\approx "),
        ("\\", r"\\(?:times|ast|cdotp)(?![a-zA-Z])", r"\\cdot "),
        ("*", r"\*\*", "^"),
        ("*", r"\*", r"\\cdot "),
        ("mod", r"\\(?:bmod|mod)(?![a-zA-Z])", r"\\mod "),
        ("\\", r"\\(?:lor)(?![a-zA-Z])", r"\\vee "),
        ("\\", r"\\(?:land)(?![a-zA-Z])", r"\\wedge "),
        ("\\", r"\\(?:backslash|smallsetminus)(?![a-zA-Z])", r"\\setminus "),
        ("arc", r"\\(?:text\{)?arc(sin|cos|tan)(?![a-zA-Z])\}?", r"\\arc\1"),
        ("\\log", r"\\log(?![a-zA-Z])(?!\s*_)", r"\\ln"),  # as HMMT writes it, and most of mathematics
        ("\\lg", r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        ("deg", r"\\text\{\s*degrees?\s*\}|\\degree(?![a-zA-Z])|(?<=\d)\s*degrees?(?![a-zA-Z])", r"^{\\circ}"),
        ("circ", r"(?:\^\s*)?(?:\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z]))", r"^{\\circ}"),
        ("per", r"\\text\{\s*(?:percent|per cent)\s*\}|(?<=\d)\s*percent(?![a-zA-Z])", r"\\%"),
        ("%", r"(?<!\\)%", r"\\%"),
        ("{,}", r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ""),
        ("\\text", r"(?:\\text\{\s*[.,;:!]?\s*\}\s*)+$", ""),
        ("\\text", r"\\text\{\s*([,;]|\\%)\s*\}", r"\1"),
        ("\\text", r"\\text\{([a-zA-Z /.]*)\^\s*\{?(\d)\}?\s*\}", r"\\text{\1}^{\2}"),
        ("\\text", r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
        ("\\text", r"\\text\{\s*([-+]?[\d.,/]*\d(?:\s*\\%)?)\.?\s*\}", r"\1"),
        ("\\text", r"\\text\{\s*([-+a-zA-Z])\s*\}", lambda m: m[0] if _is_unit_letter(m) else m[1]),
        ("\\text", r"^\\text\{(?=[^{}]*[=:])((?:(?![a-zA-Z]{3})[\w\s=:.,+-])*)\}$", r"\1"),
        ("\\text", r"\\text\{\s*([-+]?[\d.,/]*\d)\s*(?=[a-zA-Z(])", r"\1\\text{ "),
        ("{", r"\{([-+=<>.,])\}", r"\1"),
        ("nfinity", r"\\text\{\s*[iI]nfinity\s*\}|(?<![a-zA-Z\\])infinity(?![a-zA-Z])", r"\\infty "),
        ("\\text", r"^\\text\{\s*(?:[cC]hoice|[oO]ption)\s*\(?([A-Z])\)?\.?\s*\}$", r"(\1)"),
        ("choose", r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        ("over", r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        ("\\text", r"\\text\{\s*(gcd|lcm|floor|ceil|arsinh|arcosh|artanh)\s*\}(?=\s*\()", r"\\operatorname{\1}"),
        ("\\text", r"\\text\{\s*,?\s*(and|or)\s*,?\s*\}", r" \\t\1 "),
        ("or", r"(?<![a-zA-Z\\{]),?\s+or\s+(?![a-z]*\})", r" \\tor "),
        ("and", r"(?<![a-zA-Z\\{]),?\s+and\s+(?![a-z]*\})", r" \\tand "),
        ("\\vee", r"\\vee(?![a-zA-Z])", r" \\tor "),
        ("\\wedge", r"\\wedge(?![a-zA-Z])", r" \\tand "),
        ("", _BARE.pattern, r"\\\g<0>"),
        ("sqrt", r"\\sqrt\s+", r"\\sqrt"),
        ("sqrt", r"\\sqrt\s*\((\w+)\)", r"\\sqrt{\1}"),
        ("sqrt", r"\\sqrt(\[\d+\])?\s*(\d+|[a-zA-Z]|\\pi(?![a-zA-Z]))", r"\\sqrt\1{\2}"),
        ("frac", r"\\frac\s*(\d|[a-zA-Z]|\\pi(?![a-zA-Z]))", r"\\frac{\1}"),
        ("frac", r"\\frac\{((?:[^{}]|\{[^{}]*\})*)\}\s*(\d|[a-zA-Z]|\\pi(?![a-zA-Z]))", r"\\frac{\1}{\2}"),
        ("^", r"\^\s*(-?\d+|[a-zA-Z]|\\[a-z]+)", r"^{\1}"),
        ("_", r"_\s*(\d+|[a-zA-Z])", r"_{\1}"),
        ("approx", r"\(\s*(\\approx [^()]*)\)\s*$", r"\1"),
        (" ", r"(?<![\d.,])([1-9]\d{0,2}(?: +\d{3})+)(?![\d])", lambda m: m[1].replace(" ", "")),
    )
)
_SPACES = re.compile(r"\s+")
_IDLE_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # between two digits it matters: 20 4 is not 204
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_PLAIN = re.compile(r"[-+]?\d+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not a group
_MAX_ROOTS = 16
_SQRT_GROUP = re.compile(r"\\sqrt\s*\(")


def normalise(text: str) -> str:
    """A text of LaTeX or plain maths in one way of writing: spacing, style and punctuation at its end are gone."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return text
    text = _SPACES.sub(" ", plain_characters(text))
    for needle, pattern, replacement in _RULES:
        if needle in text:
            text = pattern.sub(replacement, text)
    if "\\sqrt(" in text:
        text = _group_roots(text)
    text = _thousands(_SPACES.sub(" ", text).strip())
    return _trim(text)


def key(normalised: str) -> str:
    """What two normalised texts share when they are written the same."""
    return _IDLE_SPACE.sub("", normalised)


def repaired_names(text: str) -> list[str]:
    r"""Functions written without their backslash, as in `\frac{sqrt{7}}{2}`; `normalise` reads them as meant."""
    return sorted(set(_BARE.findall(text)))


def unwrapped(text: str) -> str:
    """Without braces around the whole."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    closes: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            closes[opened.pop()] = brace.start()
    start, end = 0, len(text) - 1
    while start < end and closes.get(start) == end:
        start, end = start + 1, end - 1
        while start < end and text[start] == " ":
            start += 1
        while start < end and text[end] == " ":
            end -= 1
    return text[start : end + 1].strip()


def _trim(text: str) -> str:
    before = None
    while text != before:
        before = text
        text = text.rstrip(" ")
        while text.endswith((".", ",", ";", ":", "\\\\")):
            text = text[: -2 if text.endswith("\\\\") else -1].rstrip(" ")
        text = text.lstrip(" ").removeprefix("=").lstrip(" ")
        text = unwrapped(text)
    return text


def _thousands(text: str) -> str:
    r"""Joins 1,234,567, unless brackets around it make a tuple or a set of it."""
    if "," not in text or "(" in text or "[" in text or "\\{" in text:
        return text
    return _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)


def _group_roots(text: str) -> str:
    r"""`\sqrt(...)` as `\sqrt{...}`."""
    for _ in range(_MAX_ROOTS):
        found = _SQRT_GROUP.search(text)
        if not found:
            break
        end = _closing(text, found.end() - 1)
        if end is None:
            return text
        text = f"{text[: found.start()]}\\sqrt{{{text[found.end() : end]}}}{text[end + 1 :]}"
    return text


def _closing(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` closes."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character in "({[") - (character in ")}]")
        if depth == 0:
            return position
        position += 1
    return None
