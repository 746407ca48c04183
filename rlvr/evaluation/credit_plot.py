"""Where the credit goes: a response's tokens coloured by their advantages.

    trace = trace_chain(chain, scores, chain.init(), context)
    IPython.display.HTML(plot_credit(texts, trace, rollout, response=0))

`trace_chain` applies a chain link by link and keeps what each link left;
`plot_credit` draws it for one response as a piece of HTML, without scripts, for
a Colab or a run's report.
"""

import dataclasses
import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlvr.rewards.algebra import KINDS, Transform
from rlvr.types import Array, Context, Rollout, Scores

# Diverging, and told apart by readers who don't tell red from green.
_MORE, _LESS, _NONE = (33, 102, 172), (178, 24, 43), (247, 247, 247)


class Link(NamedTuple):
  """What one link of a chain left.

  name: the transform's name; "signals" for what the chain was given.
  params: its hyperparameters.
  scores: after it.
  """

  name: str
  params: Mapping[str, Any]
  scores: Scores

  @property
  def rewards(self) -> dict[str, Array]:
    """The named rewards: [B], [B, K] or [B, T]."""
    return {
      name: values
      for kind in KINDS
      for name, values in getattr(self.scores, kind).items()
    }


def trace_chain(
  chain: Transform, scores: Scores, state: Any, context: Context
) -> tuple[Link, ...]:
  """Returns what a chain's links leave, one after another.

  The last link's scores are `chain.apply(scores, state, context)`'s: links get
  the same keys and states. Chains inside the chain are taken apart too.

  Args:
    chain: any transform; one that is no chain is a single link.
    scores: what the chain starts with.
    state: the chain's state, not changed.
    context: the chain's context.

  Returns:
    The given scores as a link named "signals", then a link for each transform.
  """
  links = [Link("signals", {}, scores)]

  def walk(transform: Transform, state: Any, context: Context) -> None:
    if transform.spec.name != "chain":
      after, _ = transform.apply(links[-1].scores, state, context)
      links.append(Link(transform.spec.name, transform.spec.params, after))
      return
    for i, part in enumerate(transform.spec.parts):
      # As `chain` does it.
      key = jax.random.fold_in(context.key, i)
      walk(part, state[i], dataclasses.replace(context, key=key))

  walk(chain, state, context)
  return tuple(links)


def plot_credit(
  texts: Sequence[str],
  trace: Sequence[Link],
  rollout: Rollout,
  *,
  response: int,
  title: str = "",
) -> str:
  """Returns a response's tokens coloured by their advantages, as HTML.

  Blue tokens are made likelier, red ones less likely; the scale ends at the
  greatest advantage of the response. Below them, a row for each link of the
  chain with the response's rewards after it: a number for an outcome, one for
  each of its steps or tokens (0.5×7 stands for seven equal ones). What a link
  changed is in bold type.

  Args:
    texts: text of each of the response's tokens, the end token included.
    trace: from `trace_chain`, of a chain that ends in advantages.
    rollout: the responses.
    response: which one, 0..B-1.
    title: stands above.

  Raises:
    ValueError: no such response, another number of texts than tokens, or a
      trace that doesn't end in advantages.
  """
  b = rollout.tokens.shape[0]
  if not 0 <= response < b:
    raise ValueError(f"plot_credit: response={response}: there are 0..{b - 1}")
  last = trace[-1]
  if last.scores.advantages is None:
    raise ValueError(
      f"plot_credit: the chain ends with {last.name!r}, which gives rewards: end"
      " it with an advantage estimator"
    )
  length = int(rollout.lengths[response])
  if len(texts) != length:
    raise ValueError(
      f"plot_credit: {len(texts)} texts for the {length} tokens of response"
      f" {response}: give one for each token, the end token included"
    )
  steps = np.asarray(rollout.step_index)[response, :length]
  advantages = np.asarray(last.scores.advantages)[response, :length]
  scale = float(np.abs(advantages).max(initial=0.0))
  weight = float(last.scores.weights[response])
  parts = ['<div style="font:14px sans-serif;color:#222;background:#fff">']
  if title:
    parts.append(f'<p style="margin:4px 0"><b>{html.escape(title)}</b></p>')
  parts.append(_tokens(texts, advantages, steps, scale))
  parts.append(_legend(scale))
  if weight != 1:
    told = "takes no part in the update" if weight == 0 else "in the loss"
    parts.append(
      f'<p style="margin:4px 0">weight {_number(weight)}: {told}</p>'
    )
  parts.append(_table(trace, response, steps))
  return "".join([*parts, "</div>"])


def _tokens(texts, advantages, steps, scale) -> str:
  """The tokens, a gap and a number where a reasoning step begins."""
  cells = []
  for i, (text, value) in enumerate(zip(texts, advantages, strict=True)):
    starts = i == 0 or steps[i] != steps[i - 1]
    label = f"step {steps[i]}" if starts and steps.max(initial=0) > 0 else ""
    cells.append(
      '<span style="display:inline-block;vertical-align:top;'
      f'margin:0 1px 6px {10 if starts and i else 0}px">'
      '<span style="display:block;height:12px;width:0;white-space:nowrap;'
      f'font-size:10px;color:#666">{label}</span>'
      '<span style="display:block;min-width:14px;padding:2px 3px;'
      "text-align:center;font-family:monospace;white-space:pre;"
      f'{_paint(value, scale)}" title="{_number(value)}">'
      f"{html.escape(_visible(text))}</span></span>"
    )
  return f'<div style="line-height:1.3">{"".join(cells)}</div>'


def _legend(scale: float) -> str:
  stops = ",".join(f"rgb{c}" for c in (_LESS, _NONE, _MORE))
  return (
    '<p style="margin:2px 0 8px;font-size:12px">advantage'
    f" {_number(-scale)} "
    '<span style="display:inline-block;width:120px;height:10px;'
    f'background:linear-gradient(to right,{stops})"></span>'
    f" {_number(scale)}</p>"
  )


def _table(trace, response, steps) -> str:
  """A row for each link, a column for each reward that there ever was."""
  names = list(dict.fromkeys(name for link in trace for name in link.rewards))
  head = "".join(
    f"<th {_CELL}>{html.escape(n)}</th>" for n in ["after", *names]
  )
  rows: list[str] = []
  before: dict[str, Any] = {}
  for number, link in enumerate(trace):
    now = {
      name: _own(link, name, response, steps)
      for name in names
      if name in link.rewards
    }
    cells = []
    for name in names:
      text = _numbers(now[name]) if name in now else ""
      changed = (
        number and name in now and not _same(now[name], before.get(name))
      )
      cells.append(f"<td {_CELL}>{f'<b>{text}</b>' if changed else text}</td>")
    args = ", ".join(f"{k}={v}" for k, v in link.params.items())
    told = f"{link.name}({args})" if number else link.name
    rows.append(
      f"<tr><td {_CELL}>{html.escape(told)}</td>{''.join(cells)}</tr>"
    )
    before = now
  return (
    '<table style="border-collapse:collapse;font-size:12px">'
    f"<tr>{head}</tr>{''.join(rows)}</table>"
  )


_CELL = (
  'style="border:1px solid #ccc;padding:2px 6px;text-align:left;'
  'vertical-align:top"'
)


def _own(link: Link, name: str, response: int, steps) -> np.ndarray:
  """The reward's values that belong to the response, at least one."""
  values = np.asarray(link.rewards[name])[response]
  if name in link.scores.outcome:
    return values[None]
  if name in link.scores.token:
    return values[: len(steps)]
  return values[: int(steps.max(initial=-1)) + 1]


def _same(a: np.ndarray, b: np.ndarray | None) -> bool:
  return b is not None and np.array_equal(a, b, equal_nan=True)


def _paint(value: float, scale: float) -> str:
  """The style of a token: how far from no credit to the scale's end."""
  share = min(abs(float(value)) / scale, 1.0) if scale else 0.0
  end = _MORE if value > 0 else _LESS
  red, green, blue = (
    round(n + share * (e - n)) for n, e in zip(_NONE, end, strict=True)
  )
  ink = "#fff" if share > 0.6 else "#222"
  return f"background:rgb({red},{green},{blue});color:{ink}"


def _visible(text: str) -> str:
  """Whitespace and control characters as something that can be seen."""

  def show(c: str) -> str:
    if c in " \n\t":
      return {" ": "·", "\n": "⏎", "\t": "⇥"}[c]
    if c.isprintable():
      return c
    return chr(0x2400 + ord(c)) if ord(c) < 32 else "�"

  return "".join(map(show, text))


def _numbers(values: np.ndarray) -> str:
  """The values, four and more equal ones in a row as "0.5×7"."""
  parts: list[str] = []
  for text, run in itertools.groupby(map(_number, values)):
    count = len(list(run))
    parts += [f"{text}×{count}"] if count > 3 else [text] * count
  return " ".join(parts)


def _number(value: float) -> str:
  if np.isnan(value):
    return "missing"
  text = f"{float(value):.3g}"
  return "0" if text == "-0" else text.replace("-", "−")
