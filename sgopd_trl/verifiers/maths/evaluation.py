"""The value of an expression at given points: exact where it can be, to a known precision elsewhere, bounded in work."""

import math
import threading
from collections.abc import Mapping
from fractions import Fraction

import sympy
from mpmath.ctx_mp import MPContext
from sympy.core.function import AppliedUndef

from .limits import Refused
from .roots import exact_root


MAX_BITS = 70_000  # of an exact value, numerator and denominator together
MAX_WORK = 3_000_000  # bits handled in one evaluation
MAX_EXPONENT = 200_000  # a value lies between 2 to the minus this and 2 to this
MAX_FACTORIAL = 5000

_Value = Fraction | object  # or a number of `_context()`
_local = threading.local()


class Undefined(Exception):
    """The expression has no value there: a division by zero, the logarithm of zero, an infinity."""


def _context() -> MPContext:
    """This thread's own mpmath context, so that nobody else's precision changes."""
    if not hasattr(_local, "context"):
        _local.context = MPContext()
    return _local.context


class Evaluation:
    """Evaluates trees at one precision, and keeps how large and how small the values on the way were.

    Args:
        bits: precision. values: of the symbols, by name. real_roots: whether odd roots of negative numbers are real.
    """

    def __init__(self, bits: int, values: Mapping[str, Fraction] | None = None, real_roots: bool = True):
        self.bits = bits
        self.values = values or {}
        self.real_roots = real_roots
        self.context = _context()
        self.context.prec = bits
        self.work = 0
        self.largest = self.smallest = 0

    @property
    def range(self) -> int:
        """Between the exponents of the largest and of the smallest value met."""
        return self.largest - self.smallest

    def __call__(self, node: sympy.Basic) -> _Value:
        """The value of a tree.

        Raises:
            Refused: too large. Undefined: it has none.
        """
        try:
            value = self._node(node)
        except (ZeroDivisionError, ValueError, OverflowError, ArithmeticError) as error:
            raise Undefined(str(error)) from error
        except RecursionError as error:
            raise Refused("nested too deeply") from error
        if not isinstance(value, Fraction) and not self.context.isfinite(value):
            raise Undefined("not finite")
        return value

    def number(self, value: _Value):
        """A value as a number of the context."""
        if isinstance(value, Fraction):
            return self.context.mpf(value.numerator) / value.denominator
        return value

    def exponent(self, value: _Value) -> int | None:
        """The binary exponent of a value, None for zero."""
        if isinstance(value, Fraction):
            return value.numerator.bit_length() - value.denominator.bit_length() if value else None
        if not value:
            return None
        return int(self.context.mag(value))

    def _node(self, node: sympy.Basic) -> _Value:
        value = self._kept(self._compute(node))
        exponent = self.exponent(value)
        if exponent is not None:
            if abs(exponent) > MAX_EXPONENT:
                raise Refused("a value out of all proportion")
            self.largest, self.smallest = max(self.largest, exponent), min(self.smallest, exponent)
        return value

    def _kept(self, value: _Value) -> _Value:
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            if bits > MAX_BITS:
                raise Refused(f"a value of {bits} bits")
            self._spend(bits)
        else:
            if not self.context.isfinite(value):
                raise Undefined("not finite")
            if isinstance(value, self.context.mpc) and not value.imag:
                value = value.real
            self._spend(self.bits)
        return value

    def _spend(self, bits: int) -> None:
        self.work += bits
        if self.work > MAX_WORK:
            raise Refused("too much to compute")

    def _compute(self, node: sympy.Basic) -> _Value:
        if isinstance(node, sympy.Rational):
            return Fraction(int(node.p), int(node.q))
        if isinstance(node, sympy.Symbol):
            if node.name == "i":
                return self.context.mpc(0, 1)
            if node.name not in self.values:
                raise Undefined(f"the symbol {node.name}")
            return self.values[node.name]
        kind = type(node)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind](self.context)
        if isinstance(node, AppliedUndef):
            return self._integers(node)
        if kind not in _HANDLERS:
            raise Refused(f"not computed: {kind.__name__}")
        arguments = [self._node(argument) for argument in node.args]
        return _HANDLERS[kind](self, *arguments)

    def _integers(self, node: AppliedUndef) -> Fraction:
        function = {"gcd": math.gcd, "lcm": math.lcm}.get(node.func.__name__)
        if function is None:
            raise Refused(f"the function {node.func.__name__}")
        return Fraction(function(*(self._integer(self._node(argument)) for argument in node.args)))

    def _integer(self, value: _Value) -> int:
        if isinstance(value, Fraction) and value.denominator == 1:
            return value.numerator
        raise Refused("no integer")

    def add(self, *terms: _Value) -> _Value:
        total = terms[0]
        for term in terms[1:]:
            if isinstance(total, Fraction) and isinstance(term, Fraction):
                total = self._kept(total + term)
            else:
                left, right = self.number(total), self.number(term)
                total = left + right
                # What remains of a cancellation to the last digits is the rounding, not the value
                if total and self.context.mag(total) < self.context.mag(left) - self.bits + 32:
                    total = self.context.zero
                elif isinstance(total, self.context.mpc):
                    total = self._without_dust(total)
        return total

    def _without_dust(self, value):
        """A complex number without a real or imaginary part that is only rounding."""
        dust = self.context.mag(value) - self.bits + 32
        real = value.real if value.real and self.context.mag(value.real) >= dust else self.context.zero
        imaginary = value.imag if value.imag and self.context.mag(value.imag) >= dust else self.context.zero
        return self.context.mpc(real, imaginary) if imaginary else real

    def multiply(self, *factors: _Value) -> _Value:
        product = factors[0]
        for factor in factors[1:]:
            if isinstance(product, Fraction) and isinstance(factor, Fraction):
                product = self._kept(product * factor)
            else:
                product = self.number(product) * self.number(factor)
                if isinstance(product, self.context.mpc):
                    product = self._without_dust(product)
        return product

    def power(self, base: _Value, exponent: _Value) -> _Value:
        if isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return self._integer_power(base, exponent.numerator)
            if isinstance(base, Fraction):
                root = exact_root(base, exponent.denominator)
                if root is not None:
                    return self._integer_power(root, exponent.numerator)
            if self.real_roots and exponent.denominator % 2 and _negative(base):
                value = self._real_power(-self.number(base), exponent)
                return -value if exponent.numerator % 2 else value
        return self._real_power(self.number(base), exponent)

    def _integer_power(self, base: _Value, n: int) -> _Value:
        if base == 0 and n <= 0:
            raise Undefined("zero to the power of zero or less")
        if isinstance(base, Fraction):
            if abs(base) == 1:
                return base if n % 2 else Fraction(1)
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if n and bits * abs(n) > 2 * MAX_BITS and base:
                raise Refused("a large power")
            return base**n
        if abs(n) * (abs(self.exponent(base) or 0) + 1) > MAX_EXPONENT:
            raise Refused("a large power")
        return base**n

    def _real_power(self, base, exponent: _Value):
        if not base:
            return self._zero_power(exponent)
        power = self.number(exponent)
        if self.context.mag(power) > 20 or abs(power) * (abs(self.context.mag(base)) + 2) > MAX_EXPONENT:
            raise Refused("a large power")
        self._spend(8 * self.bits)
        if isinstance(exponent, Fraction) and exponent.denominator == 2 and base:
            return self.context.sqrt(base) ** exponent.numerator
        return self.context.power(base, power)

    def _zero_power(self, exponent: _Value):
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise Undefined("a power of zero")
        return Fraction(0)

    def function(self, name: str, argument: _Value):
        number = self.number(argument)
        size = self.exponent(argument)
        if size is not None and size > 64:
            raise Refused(f"{name} of a large number")
        self._spend(16 * self.bits)
        value = getattr(self.context, name)(number)
        # sin(pi) is zero, not what the rounding of pi leaves of it
        if value and name in ("sin", "cos", "tan", "sec", "csc", "cot"):
            if self.context.mag(value) < max(size or 0, 0) - self.bits + 32:
                return self.context.zero
            if self.context.mag(value) > self.bits - 32 - max(size or 0, 0):
                raise Undefined(f"a pole of {name}")
        return value

    def logarithm(self, argument: _Value, base: _Value | None = None):
        if argument == 0 or base == 0 or base == 1:
            raise Undefined("a logarithm of zero")
        self._spend(16 * self.bits)
        value = self.context.ln(self.number(argument))
        if base is None or base == self.context.e:
            return value
        return value / self.context.ln(self.number(base))

    def exponential(self, argument: _Value):
        return self.power(self.context.e(), argument)

    def factorial(self, argument: _Value) -> Fraction:
        if not isinstance(argument, Fraction) or argument.denominator != 1 or not 0 <= argument <= MAX_FACTORIAL:
            raise Refused("a factorial that is not computed")
        return Fraction(math.factorial(argument.numerator))

    def binomial(self, top: _Value, bottom: _Value) -> Fraction:
        n, k = self._integer(top), self._integer(bottom)
        if n < 0 or k < 0:
            raise Refused("a binomial of negative numbers")
        if min(k, abs(n - k)) * n.bit_length() > MAX_BITS and k <= n:
            raise Refused("a large binomial")
        return Fraction(math.comb(n, k))

    def absolute(self, argument: _Value) -> _Value:
        return abs(argument)

    def floor(self, argument: _Value) -> Fraction:
        if isinstance(argument, Fraction):
            return Fraction(math.floor(argument))
        if isinstance(argument, self.context.mpc) or self.context.mag(argument) > self.bits // 2:
            raise Refused("the floor of a large number")
        nearest = self.context.nint(argument)
        if abs(argument - nearest) < self.context.ldexp(1, -self.bits // 3):
            return Fraction(int(nearest))
        return Fraction(int(self.context.floor(argument)))

    def ceiling(self, argument: _Value) -> Fraction:
        return -self.floor(-argument)

    def modulo(self, left: _Value, right: _Value) -> _Value:
        if isinstance(left, Fraction) and isinstance(right, Fraction) and right:
            return left % right
        raise Refused("a remainder of inexact numbers")

    def extreme(self, choose, *arguments: _Value) -> _Value:
        if any(isinstance(argument, self.context.mpc) for argument in arguments):
            raise Undefined("complex numbers have no order")
        return choose(arguments, key=self.number)


def _negative(value: _Value) -> bool:
    if isinstance(value, Fraction):
        return value < 0
    return not hasattr(value, "_mpc_") and value < 0


_CONSTANTS = {
    type(sympy.pi): lambda context: context.pi(),
    type(sympy.E): lambda context: context.e(),
    type(sympy.I): lambda context: context.mpc(0, 1),
    type(sympy.GoldenRatio): lambda context: context.phi(),
}

_HANDLERS = {
    sympy.Add: Evaluation.add,
    sympy.Mul: Evaluation.multiply,
    sympy.Pow: Evaluation.power,
    sympy.exp: Evaluation.exponential,
    sympy.log: Evaluation.logarithm,
    sympy.factorial: Evaluation.factorial,
    sympy.binomial: Evaluation.binomial,
    sympy.Abs: Evaluation.absolute,
    sympy.floor: Evaluation.floor,
    sympy.ceiling: Evaluation.ceiling,
    sympy.Mod: Evaluation.modulo,
    sympy.Max: lambda self, *arguments: self.extreme(max, *arguments),
    sympy.Min: lambda self, *arguments: self.extreme(min, *arguments),
    sympy.UnevaluatedExpr: lambda self, argument: argument,
} | {
    getattr(sympy, name): (lambda self, argument, name=name: self.function(name, argument))
    for name in ("sin cos tan sec csc cot asin acos atan asec acsc acot sinh cosh tanh asinh acosh atanh".split())
}
