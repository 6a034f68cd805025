"""Characters that mean the same in maths, written one way."""

import re
import unicodedata


_NAMED = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "➖": "-",
    "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "÷": r"\div ",
    "⁄": "/", "∕": "/", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∞": r"\infty ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "φ": r"\phi ", "λ": r"\lambda ",
    "ω": r"\omega ", "μ": r"\mu ", "σ": r"\sigma ", "δ": r"\delta ", "Δ": r"\Delta ", "Ω": r"\Omega ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\neq ", "≈": r"\approx ", "≡": r"\equiv ",
    "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∈": r"\in ", "∅": r"\emptyset ", "⌀": r"\emptyset ",
    "∨": r"\vee ", "∧": r"\wedge ", "°": r"^{\circ}", "º": r"^{\circ}", "…": r"\ldots ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "，": ",", "；": ";",
    "、": ",", "。": ".", "’": "'", "′": "'", "⇒": r"\Rightarrow ", "→": r"\to ", "∑": r"\sum ", "∏": r"\prod ",
    "∫": r"\int ", "€": r"\text{ euros}", "£": r"\text{ pounds}", "¢": r"\text{ cents}",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙ]+")


def plain_characters(text: str) -> str:
    """Writes digits, signs and letters of other scripts as LaTeX; drops invisible marks.

    Control characters and combining marks stay: a number that holds one is not a number.
    """
    if text.isascii():
        return text
    text = _RAISED.sub(lambda found: "^{" + found.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda found: "_{" + found.group().translate(_SUBSCRIPTS) + "}", text)
    return "".join(_plain(character) for character in text)


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _NAMED:
        return _NAMED[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Cf" and character not in "\u202d\u202e":  # these turn the order of digits
        return ""
    if category == "Zs":
        return " "
    wide = unicodedata.normalize("NFKC", character)
    if category == "No" and "⁄" in wide:
        return r"\frac{" + wide.replace("⁄", "}{") + "}"
    # Full-width and styled letters and signs; circled and stacked digits are no digits
    return wide if wide.isascii() and len(wide) == 1 and not wide.isdigit() else character
