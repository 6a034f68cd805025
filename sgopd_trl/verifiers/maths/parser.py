"""LaTeX expressions as SymPy trees, by math-verify's parser, with nothing evaluated while it parses."""

import os
import threading

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.antlr_parser import PSParser
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

from .limits import Refused, check_expression
from .literals import decimal


class Unreadable(Exception):
    """The text is not an expression."""


_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)

# ANTLR's tables and mpmath's constants are shared and are filled as they are used. A fork may come while another thread
# holds the lock.
LOCK = threading.RLock()


def _new_lock() -> None:
    global LOCK
    LOCK = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


def parse_expression(text: str) -> sympy.Expr:
    """The tree of one scalar expression.

    Raises:
        Refused: it is too large, or of a kind that is not computed.
        Unreadable: it is not an expression.
    """
    check_expression(text)
    try:
        with LOCK:
            return _Cautious(None, None, True, _CONFIG).expression(text)
    except (Refused, Unreadable):
        raise
    except RecursionError as error:
        raise Refused("nested too deeply") from error
    except Exception as error:  # the parser raises bare exceptions, and whatever SymPy's constructors do
        raise Unreadable(text[:80]) from error


class _Cautious(_Latex2Sympy):
    """The parser of latex2sympy2_extended, for single expressions, with exact decimals and without its calculations."""

    def expression(self, text: str) -> sympy.Expr:
        try:
            # Several times faster; it gives the tree of the full mode or a syntax error (ANTLR's reference)
            tree = self._tree(text, PredictionMode.SLL)
        except Exception:
            tree = self._tree(text, PredictionMode.LL)
        result = self.convert_expr(tree)
        if not isinstance(result, sympy.Expr):
            raise Unreadable(text[:80])
        return result

    def _tree(self, text: str, mode: int):
        parser = self.create_parser(text)
        parser._interp.predictionMode = mode
        tree = parser.expr()
        if parser.getCurrentToken().type != PSParser.EOF:
            raise Unreadable(text[:80])
        return tree

    def parse(self, latex_str: str) -> sympy.Expr:  # arguments of functions
        return self.expression(latex_str)

    def parse_number(self, text: str) -> sympy.Rational:
        number, _, exponent = text.replace(",", "").lower().partition("e")
        value = decimal(number.strip(), exponent.strip() or None)
        return sympy.Rational(value.numerator, value.denominator)

    def convert_postfix_list(self, arr, i=0):
        # Juxtaposition is multiplication: upstream reads (2)(3) as the mixed number 5
        product = self.convert_postfix(arr[i])
        if not isinstance(product, sympy.Expr):
            raise Unreadable("no expression")
        bare = arr[i].getText()[-1:].isdigit()
        for factor in arr[i + 1 :]:
            value, written = self.convert_postfix(factor), factor.getText()
            if not isinstance(value, sympy.Expr) or (bare and written[:1].isdigit()):
                raise Unreadable("two numbers side by side")
            product = self.mul_flat(product, value)
            bare = written[-1:].isdigit()
        return product

    def convert_binom(self, binom):
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)

    def handle_exp(self, func):
        power = func.supexpr()
        if not power:
            return sympy.E
        exponent = self.convert_expr(power.expr()) if power.expr() else self.convert_atom(power.atom())
        return sympy.exp(exponent, evaluate=False)

    def handle_gcd_lcm(self, f, args):
        return sympy.Function(f)(*args, evaluate=False)

    def _not_computed(self, *args, **kwargs):
        raise Refused("not computed")

    do_subs = handle_integral = handle_sum_or_prod = handle_limit = convert_matrix = _not_computed
