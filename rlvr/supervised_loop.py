"""The supervised loop at work: learning from references; see `rlvr.running`."""

import time
from typing import TYPE_CHECKING, Any

from rlvr import sharding
from rlvr import step as step_lib
from rlvr.infra import exchange
from rlvr.infra.costs import Recorded
from rlvr.outcome import Outcome
from rlvr.running import placement_of
from rlvr.types import TrainState

if TYPE_CHECKING:
  from rlvr.loops import Setup, Supervised


class SupervisedLoop:
  """A `Supervised` in progress."""

  def __init__(self, settings: "Supervised", setup: "Setup"):
    self.recipe = settings.recipe(setup)
    self._settings = settings
    self._setup = setup
    self._before: Outcome | None = None
    recipe = self.recipe
    self._place = place = placement_of(recipe, setup)
    rows = place.batch

    def supervised_step(state, prompts, targets, mask):
      return step_lib.supervised_step(recipe, state, prompts, targets, mask)

    self._step = Recorded(
      place.jit(
        supervised_step,
        donate_argnums=0,
        in_shardings=(place.state, rows, rows, rows),
        out_shardings=(place.state, place.whole),
      )
    )
    self.programs = {"supervised_step": self._step}

  def fit(self) -> None:
    """Nothing to fit: the number of micro-batches is given."""

  def dispatch(
    self, state: TrainState, *, step: int, drain: bool
  ) -> tuple[TrainState, Outcome]:
    """Returns the state after one update, under way, and its figures."""
    del step, drain
    begin = time.perf_counter()
    batch = self._setup.source.next_batch(self._settings.num_prompts)
    ready = time.perf_counter()
    rows = (batch.prompts, batch.targets, batch.target_mask)
    place = self._place
    state, found = self._step(
      state, *sharding.put_batch(rows, place.mesh, place.rules)
    )
    self._before = Outcome(
      begin=begin,
      times={"time/data_s": ready - begin},
      phase="time/update_s",
      launched=ready,
      waits_for=found,
      metrics=lambda: {k: float(v) for k, v in exchange.whole(found).items()},
      before=self._before,
    )
    return state, self._before

  def credit_page(self, state: TrainState) -> str:
    """Returns nothing: targets have no credit."""
    del state
    return ""

  def host_state(self) -> dict[str, Any]:
    """Returns nothing: there is nothing besides the state."""
    return {}

  def restore(self, host_state: dict[str, Any]) -> None:
    """Takes nothing back."""
    del host_state

  def close(self) -> None:
    """Nothing to end."""
