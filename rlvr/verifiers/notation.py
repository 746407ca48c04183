r"""How mathematical answers are written: one spelling for what is the same.

`canonical` takes away what means nothing (spacing, sizing, wrappers, look-alike
characters), `number` reads numbers exactly.
Everything here is linear or quadratic in a text whose length the caller has
bounded, and nothing is evaluated but integers of a bounded size.

Runs in worker processes: imports the standard library alone.
"""

import functools
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from rlvr.verifiers.answers import balanced

_MAX_EXPONENT = 400  # of ten in 1.2e5, and decimal digits of a power

_CHARACTERS = str.maketrans(
  {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "×": r"\cdot ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "π": r"\pi ",
    "θ": r"\theta ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "±": r"\pm ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "（": "(",
    "）": ")",
    "，": ", ",
    "、": ", ",
    "．": ".",
    "。": ".",
    "：": ":",
    "；": ";",
    "＝": "=",
    "＋": "+",
    "－": "-",
    "％": "%",
    "’": "'",
    "′": "'",
  }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+|[A-Za-z]))")

_COMMANDS = {
  r"\dfrac": r"\frac",
  r"\tfrac": r"\frac",
  r"\cfrac": r"\frac",
  r"\times": r"\cdot",
  r"\ast": r"\cdot",
  r"\div": "/",
  r"\leq": r"\le",
  r"\leqslant": r"\le",
  r"\geq": r"\ge",
  r"\geqslant": r"\ge",
  r"\neq": r"\ne",
  r"\lt": "<",
  r"\gt": ">",
  r"\degree": r"^\circ",
  r"\varnothing": r"\emptyset",
  r"\lbrace": r"\{",
  r"\rbrace": r"\}",
  r"\lvert": "|",
  r"\rvert": "|",
  r"\mid": "|",
  r"\land": " and ",
  r"\lor": " or ",
  r"\quad": " ",
  r"\qquad": " ",
  r"\ldots": r"\dots",
  r"\cdots": r"\dots",
}
_NOTHING = (
  r"\left \right \big \Big \bigl \bigr \Bigl \Bigr \bigg \Bigg \displaystyle"
  r" \textstyle \limits \nolimits \! \relax \hfill"
)
_COMMANDS |= dict.fromkeys(_NOTHING.split(), "")
_COMMAND = re.compile(r"\\(?:\\|[A-Za-z]+|[!,;: >])|~")
_TEXT = re.compile(
  r"\\(?:text|textbf|textit|textrm|textnormal|textup|mbox|mathrm|mathbf|mathit"
  r"|mathsf|operatorname|boldsymbol|bold|rm|bf)\s*\{([^{}]*)\}"
)
_MATH_MARK = re.compile(r"(?<!\\)\\[()\[\]]")  # not behind the end of a row
_BRACED_WORD = re.compile(r"(?<=[0-9])\{([a-z]{2,})\}")  # \text lost: 5{cm}
_ARGUMENT = r"(\{[^{}]*\}|[0-9]|[A-Za-z]|\\[A-Za-z]+)"
_FRACTION = re.compile(rf"\\frac *{_ARGUMENT} *{_ARGUMENT}")
_SHORT_ROOT = re.compile(r"\\sqrt *([0-9]|[A-Za-z]|\\[A-Za-z]+)")
_PLAIN_ROOT = re.compile(
  r"(?<![\\A-Za-z])sqrt ?(?:\(((?:[^()]|\([^()]*+\))*+)\)|([0-9]+))"
)
# Before what it may be applied to: "log cabin" are words. A secant is also a
# second: 5 m/sec^2.
_PLAIN_FUNCTION = re.compile(
  r"(?<![\\A-Za-z])(?:(arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|csc|ln|log|exp)"
  r"(?= ?[(^_\\0-9]| [A-Za-z](?![A-Za-z]))|(sec)(?=\())"
)
_PLAIN_NAME = re.compile(r"(?<![\\A-Za-z])(pi|theta|infinity|oo)(?![A-Za-z])")
_PLAIN_NAMES = {"infinity": r"\infty ", "oo": r"\infty "}
_BRACED_ONE = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_TIGHT = re.compile(
  r" *([-+/^=<>({\[|!&_%:]) *| *([)\]}])(?: +(?![A-Za-z]))?| +(?=\\)"
)
_AFTER_COMMAND = re.compile(r"(\\[A-Za-z]+) (?![A-Za-z])")
_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])\)")
_CURRENCY = re.compile(r"(?:(?:Rs|USD|EUR|US)\.? ?|[€£₹¥] ?)(?=[-+.0-9\\])")
_ABOUT = re.compile(r"(?:\\approx|\\sim|approximately|about|roughly) ?")


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
  r"""Returns an answer without the ways of writing that mean nothing.

  Characters that look like others become those (digits of other scripts, "−",
  "½", "√2"), invisible ones go, as do dollar signs, sizing commands, text
  wrappers, currency signs, "about", full stops and commas at the end, braces
  around the whole and brackets around a choice letter. Fractions, roots,
  functions, products, comparisons, percent and degree signs get one spelling.
  White space stays only where it may separate: between words and after commas.
  """
  if not text.isascii():
    text = _from_unicode(text)
  text = text.replace(r"\$", "").replace("$", "").replace("{,}", ",")
  text = _MATH_MARK.sub("", text)
  text = text.replace(r"\%", "%").replace("**", "^").replace("*", r"\cdot ")
  text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
  text = text.replace("!=", r"\ne ")
  text = re.sub(r",\\! ?", ",", text)
  text = _COMMAND.sub(_one_command, text)
  text = _TEXT.sub(r" \1 ", text)
  text = _BRACED_WORD.sub(r" \1 ", text)
  text = _PLAIN_ROOT.sub(_root, text)
  text = _PLAIN_NAME.sub(_plain_name, text)
  text = _PLAIN_FUNCTION.sub(r"\\\1\2 ", text)
  text = text.replace(r"^{\circ}", r"^\circ ").replace(r"^ \circ", r"^\circ")
  text = re.sub(r"(?<=[0-9}]) ?(?:per ?cent|percent)(?![A-Za-z])", "%", text)
  text = _FRACTION.sub(_fraction, text)
  text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
  text = _TIGHT.sub(lambda m: m[1] or m[2] or "", " ".join(text.split()))
  text = _BRACED_ONE.sub(r"\1\2", _AFTER_COMMAND.sub(r"\1", text))
  text = re.sub(r" ?, ?(?=[^0-9 ])|, ", ", ", text).strip(" ")
  text = _strip_ends(text)
  text = text.rstrip("€£₹¥").rstrip()
  text = _ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text
  text = _CURRENCY.sub("", text, count=1) if _CURRENCY.match(text) else text
  choice = _CHOICE.fullmatch(text)
  return (choice[1] or choice[2]) if choice else text


def _from_unicode(text: str) -> str:
  text = _RAISED.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
  text = _ROOT.sub(
    lambda m: r"\sqrt{" + next(g for g in m.groups() if g is not None) + "}",
    text,
  )
  kept = []
  for c in text.translate(_CHARACTERS):
    if c.isascii() or unicodedata.category(c) != "Cf":
      digit = None if c.isascii() else unicodedata.decimal(c, None)
      kept.append(c if digit is None else str(digit))
  return "".join(kept)


def _one_command(match: re.Match[str]) -> str:
  command = match[0]
  if command in _COMMANDS:
    new = _COMMANDS[command]
    return new + " " if new.startswith("\\") and new[1:].isalpha() else new
  return command if command[-1].isalpha() or command[-1] == "\\" else " "


def _root(match: re.Match[str]) -> str:
  inside = match[1] if match[1] is not None else match[2]
  return r"\sqrt{" + inside + "}"


def _plain_name(match: re.Match[str]) -> str:
  return _PLAIN_NAMES.get(match[1], "\\" + match[1] + " ")


def _fraction(match: re.Match[str]) -> str:
  over, under = (g if g[0] == "{" else "{" + g + "}" for g in match.groups())
  return r"\frac" + over + under


def _strip_ends(text: str) -> str:
  """Returns text without full stops, commas and braces around the whole."""
  while text:
    shorter = text.rstrip(" .,;:")
    if text.endswith(r"\."):
      shorter = text  # what a command left over
    if shorter[:1] == "{" and shorter[-1:] == "}" and balanced(shorter[1:-1]):
      shorter = shorter[1:-1].strip()
    if shorter == text:
      break
    text = shorter
  return text


class Number(NamedTuple):
  """A number that an answer is.

  value: exact; of a percentage the number before the sign.
  percent: whether it has a percent sign.
  places: decimal places that are written, None unless it is a decimal.
  digits: significant digits that are written.
  """

  value: Fraction
  percent: bool = False
  places: int | None = None
  digits: int = 0


_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})++|[0-9]{1,3}(?: [0-9]{3})++|[0-9]++"
_PLAIN = rf"(?:{_WHOLE})(?:\.[0-9]*+)?|\.[0-9]++"
_SIGN = r"(\+?-?|-\+)"
_DECIMAL = re.compile(rf"{_SIGN}({_PLAIN})")
_SCIENTIFIC = re.compile(
  rf"{_SIGN}(?:({_PLAIN})(?:\\cdot|[eE](?=[-+0-9])|\\cdot(?=10)))?"
  r"(?:10\^)?\{?([-+]?[0-9]{1,4})\}?"
)
_POWER = re.compile(r"(-?)([0-9]{1,6})\^\{?([0-9]{1,4})\}?")
_RATIO = re.compile(rf"{_SIGN}\(?({_WHOLE})/({_WHOLE})\)?")
_TEX_RATIO = re.compile(rf"{_SIGN}\\frac\{{(-?)({_WHOLE})\}}\{{({_WHOLE})\}}")
_MIXED = re.compile(
  r"(-?)([0-9]{1,9})(?: ([0-9]{1,9})/([0-9]{1,9})"
  r"| ?\\frac\{([0-9]{1,9})\}\{([0-9]{1,9})\})"
)
_REPEATING = re.compile(
  r"(-?)([0-9]{0,20})\.([0-9]{0,20})\\overline\{([0-9]{1,20})\}"
)
_MAGNITUDE = re.compile(
  rf"{_SIGN}({_PLAIN}) (thousand|million|billion|trillion)"
)
_MAGNITUDES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORDS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen"
  " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: n for n, word in enumerate(_WORDS.split())}


def number(text: str) -> Number | None:
  r"""Returns the number that a canonical answer is, None if it is none.

  Integers and decimals (thousands by commas or spaces), a/b, \frac{a}{b}, mixed
  numbers (3\frac{1}{2} is 7/2, never a product), 1.2\cdot10^5 and 1.2e5, small
  powers (2^{10}), 0.1\overline{6}, "1.5 million", the words zero to twenty;
  each with a percent sign. Sizes are bounded: 10^{9999} is no number here.
  """
  percent = text.endswith("%")
  text = text.removesuffix("%").strip()
  if match := _DECIMAL.fullmatch(text):
    return _decimal(match[2], "-" in match[1], percent)
  for read in (_ratio, _scientific, _power, _mixed, _repeating, _magnitude):
    value = read(text)
    if value is not None:
      return Number(value, percent)
  word = _NUMBER_WORDS.get(text.lower())
  return None if word is None else Number(Fraction(word), percent)


def _decimal(digits: str, negative: bool, percent: bool) -> Number:
  digits = digits.replace(",", "").replace(" ", "")
  value = Fraction(digits.rstrip(".") or 0)
  _, point, after = digits.partition(".")
  return Number(
    -value if negative else value,
    percent,
    len(after) if point else None,
    len(digits.replace(".", "").lstrip("0")),
  )


def _int(text: str) -> int:
  return int(text.replace(",", "").replace(" ", ""))


def _ratio(text: str) -> Fraction | None:
  if match := _RATIO.fullmatch(text):
    negative, over, under = "-" in match[1], match[2], match[3]
  elif match := _TEX_RATIO.fullmatch(text):
    negative = ("-" in match[1]) != bool(match[2])
    over, under = match[3], match[4]
  else:
    return None
  if _int(under) == 0:
    return None
  value = Fraction(_int(over), _int(under))
  return -value if negative else value


def _scientific(text: str) -> Fraction | None:
  match = _SCIENTIFIC.fullmatch(text)
  if match is None or not ("10^" in text or match[2]):
    return None
  if match[2] and r"\cdot" in text and "10^" not in text:
    return None  # 3\cdot 4: a product
  if "10^" in text and ("e" in text or "E" in text):
    return None
  exponent = int(match[3])
  if abs(exponent) > _MAX_EXPONENT:
    return None
  factor = _decimal(match[2] or "1", "-" in match[1], False).value
  return factor * Fraction(10) ** exponent


def _power(text: str) -> Fraction | None:
  match = _POWER.fullmatch(text)
  if match is None:
    return None
  base, exponent = int(match[2]), int(match[3])
  if exponent * len(match[2]) > _MAX_EXPONENT or base == exponent == 0:
    return None
  value = Fraction(base**exponent)
  return -value if match[1] else value


def _mixed(text: str) -> Fraction | None:
  match = _MIXED.fullmatch(text)
  if match is None:
    return None
  over, under = int(match[3] or match[5]), int(match[4] or match[6])
  if not 0 < over < under:
    return None
  value = int(match[2]) + Fraction(over, under)
  return -value if match[1] else value


def _repeating(text: str) -> Fraction | None:
  match = _REPEATING.fullmatch(text)
  if match is None:
    return None
  sign, whole, start, period = match.groups()
  value = Fraction(int(whole + start or 0), 10 ** len(start))
  value += Fraction(int(period), 10 ** len(start) * (10 ** len(period) - 1))
  return -value if sign else value


def _magnitude(text: str) -> Fraction | None:
  match = _MAGNITUDE.fullmatch(text)
  if match is None:
    return None
  value = _decimal(match[2], "-" in match[1], False).value
  return value * 10 ** _MAGNITUDES[match[3]]


def same_number(x: Number, y: Number) -> bool:
  """Returns whether two numbers are the same, as answers.

  Exact, but for two things. A percent sign on one side alone may stand for
  1/100 or for nothing (the question asked for percent): 50% is 1/2 and 50. A
  decimal is a number that isn't one (1/3) if six or more significant digits are
  written and all are right, up to one in the last place.
  """
  values = [x]
  if x.percent != y.percent:
    scale = Fraction(1, 100) if x.percent else Fraction(100)
    shift = 2 if x.percent else -2
    places = None if x.places is None else x.places + shift
    values.append(x._replace(value=x.value * scale, places=places))
  return any(v.value == y.value or _rounded(v, y) for v in values)


def _rounded(x: Number, y: Number) -> bool:
  if (x.places is None) == (y.places is None):
    return False
  decimal = x if x.places is not None else y
  places = decimal.places or 0
  apart = abs(x.value - y.value)
  return decimal.digits >= 6 and apart < Fraction(1, 10) ** places
