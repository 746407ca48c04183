from fractions import Fraction

import pytest

from rlvr.verifiers.notation import Number, canonical, number, same_number
from rlvr.verifiers.units import split_unit, words


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (r" $\left(\tfrac{1}{2},\, 3 \right)$. ", r"(\frac{1}{2}, 3)"),
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"\[ v \] + \(1\)", "v+1"),
    (r"1\\(2)\\[3]", r"1\\(2)\\[3]"),  # ends of rows
    (r"\frac\pi2", r"\frac{\pi}{2}"),
    (r"\dfrac \pi4", r"\frac{\pi}{4}"),
    (r"11,\! 080", "11,080"),
    (r"1{,}234", "1,234"),
    (r"\$18.00", "18.00"),
    (r"18\text{ dollars}", "18 dollars"),
    ("−5", "-5"),
    ("3½", r"3\frac{1}{2}"),
    ("2√5", r"2\sqrt{5}"),
    ("sqrt(2)/2", r"\sqrt{2}/2"),
    ("sqrt((x+1)(x+2))", r"\sqrt{(x+1)(x+2)}"),
    ("2sin(x) cos 2x", r"2\sin(x)\cos2x"),
    ("ln x + arctan(x)", r"\ln x+\arctan(x)"),
    ("sec(x)", r"\sec(x)"),
    ("5 m/sec^2", "5 m/sec^2"),  # a second, no secant
    ("log cabin", "log cabin"),
    ("logs", "logs"),
    ("basin a", "basin a"),
    ("x²⁰", "x^{20}"),  # never x20
    ("５x", "5x"),
    ("𝟓", "5"),
    ("5\u200b \u2060x", "5 x"),  # zero-width characters
    ("5 × 10^{3}", r"5\cdot10^3"),
    ("2*pi", r"2\cdot\pi"),
    ("x**2", "x^2"),
    ("x <= 3", r"x\le3"),
    (r"x \leqslant 3", r"x\le3"),
    (r"30^{\circ}.", r"30^\circ"),
    (r"\text{(E)},", "E"),
    ("{7}", "7"),
    (r"440{cm}^2", "440 cm^2"),
    (r"\approx 8.24", "8.24"),
    ("Rs.6000", "6000"),
    ("1,000.99€", "1,000.99"),
    ("50 percent", "50%"),
    (r"\begin{pmatrix} 4 \\ -3 \end{pmatrix}", None),
    ("", ""),
    (". , ;", ""),
  ],
)
def test_canonical_by_hand(text, expected):
  if expected is None:  # the row's end stays
    expected = r"\begin{pmatrix}4\\-3\end{pmatrix}"
  assert canonical(text) == expected


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("5", 5),
    ("-5.50", Fraction(-11, 2)),
    (".5", Fraction(1, 2)),
    ("1,234,567", 1234567),
    ("10 000", 10000),
    ("1/4", Fraction(1, 4)),
    (r"-\frac{3}{4}", Fraction(-3, 4)),
    (r"\frac{-3}{4}", Fraction(-3, 4)),
    (r"\frac{12}{5,525}", Fraction(12, 5525)),
    (r"3\frac{1}{2}", Fraction(7, 2)),
    ("3 1/2", Fraction(7, 2)),
    (r"-1\frac{1}{3}", Fraction(-4, 3)),
    (r"1.2\cdot10^5", 120000),
    ("1.2e5", 120000),
    ("10^{-3}", Fraction(1, 1000)),
    ("2^{10}", 1024),
    (r"0.1\overline{6}", Fraction(1, 6)),  # 1/10 + 6/90
    ("1.5 million", 1500000),
    ("four", 4),
    ("50%", 50),
  ],
)
def test_numbers_by_hand(text, value):
  assert number(text).value == value
  assert number(text).percent == text.endswith("%")


@pytest.mark.parametrize(
  "text",
  [
    *("", "x", "5x", "1,23", "12,34,567", "1/0", "0^0", "1.2.3", "5 3", "e5"),
    *(r"3\frac{7}{2}", r"3\cdot4", "10^{9999}", "9^{9999}", "2^{10^9}", "--5"),
    *("1e99999", "5%%", "١٢", "²"),
  ],
)
def test_what_is_no_number(text):
  assert number(text) is None


def test_same_number_by_hand():
  def same(x, y):
    return same_number(number(x), number(y))

  assert same("50%", "1/2") and same("50%", "50") and same("0.5", "50%")
  assert not same("0.5", "50") and not same("5%", "50")
  # Six right digits: |0.333333 - 1/3| = 3.3e-7 < 1e-6.
  assert same("0.333333", "1/3") and same("0.666667", "2/3")
  assert same("33.3333%", "1/3")
  assert not same("33.3333%", "6667/20000")  # 0.33335, 1.7e-5 away
  assert not same("0.33333", "1/3") and not same("0.333335", "1/3")
  assert not same("0.333", "0.334") and not same("0.1", "0.10001")
  tiny = Number(Fraction(1, 10**12)), Number(Fraction(1, 10**13))
  assert not same_number(*tiny)


@pytest.mark.parametrize(
  ("text", "body", "unit"),
  [
    ("440 cm^2", "440", "cm^2"),
    ("440 square centimeters", "440", "cm^2"),
    ("60 miles per hour", "60", "mi/h"),
    ("60 mph", "60", "mi/h"),
    (r"8\sqrt{3} square inches", r"8\sqrt{3}", "in^2"),
    ("18 eggs", "18", "egg"),
    ("5 m", "5", "m"),
    (r"30^\circ", "30", "degree"),
    (r"20^\circ C", "20", "degree C"),
    ("1:03 p.m.", "1:03", "pm"),
    # no units
    ("5m", "5m", ""),
    ("5abc", "5abc", ""),
    ("2x", "2x", ""),
    ("18 million", "18 million", ""),
    ("2 pi", "2 pi", ""),
    ("4a^3+a^2", "4a^3+a^2", ""),
    (r"\sin30^\circ", r"\sin30^\circ", ""),
    ("cm", "cm", ""),
    ("3x-cm", "3x-cm", ""),
  ],
)
def test_units_by_hand(text, body, unit):
  assert split_unit(text) == (body, unit)


def test_words_by_hand():
  assert words("Two lines") == words("twolines") == "twolines"
  assert words("October 30") == "october30"
  assert words("x+yyy") is None and words("ab") is None
  assert words(r"\sin") is None and words("sin") is None
