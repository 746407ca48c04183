"""What a program does, read from its text: each number by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from rlvr.infra import hlo

# Three turns of a loop with a product of [4, 8] and [8, 16] and a sum over two
# devices in it; a gather of [2, 8] from each of four devices behind it.
LOOP = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (p: (s32[], f32[4,8], f32[8,16])) -> (s32[], f32[4,8], f32[8,16]) {
  %p = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,16]{1,0} get-tuple-element(%p), index=2
  %y = f32[4,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, backend_config={"estimated_cycles":"100"}
  %r = f32[4,16]{1,0} all-reduce(%y), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}) tuple(%i, %x, %w)
}

%condition (q: (s32[], f32[4,8], f32[8,16])) -> pred[] {
  %q = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x: f32[4,8], w: f32[8,16], z: bf16[2,8]) -> bf16[8,8] {
  %z = bf16[2,8]{1,0} parameter(2)
  %s = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}) parameter(3)
  %loop = (s32[], f32[4,8]{1,0}, f32[8,16]{1,0}) while(%s), \
condition=%condition, body=%body
  ROOT %g = bf16[8,8]{1,0} all-gather(%z), channel_id=2, \
replica_groups=[1,4]<=[4], dimensions={0}, \
backend_config={"estimated_cycles":"7"}
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  work = hlo.read_work(LOOP, num_devices=4)
  # 2 · 4 · 8 · 16 = 1024 FLOPs, three times.
  assert work.flops == 3 * 1024
  assert work.cycles == 3 * 100 + 7
  assert work.loops == (3,)
  # Control: read without its loop it would be a third.
  once = hlo.read_work(
    LOOP.replace("constant(3)", "constant(1)"), num_devices=4
  )
  assert once.flops == 1024


def test_collectives_by_kind_and_size():
  found = hlo.read_work(LOOP, num_devices=4).collectives
  # The sum: [4, 16] float32 = 256 bytes, over rings of 2: 2 · 256 · 1/2 sent.
  assert found["all-reduce"] == hlo.Collective(3, 3 * 256, 3 * 256)
  # The gather: [8, 8] bfloat16 = 128 bytes, of which three quarters arrive.
  assert found["all-gather"] == hlo.Collective(1, 128, 96)
  # Control: rings of 4 send 2 · 256 · 3/4.
  other = LOOP.replace("{{0,1},{2,3}}", "{{0,1,2,3}}")
  found = hlo.read_work(other, num_devices=4).collectives
  assert found["all-reduce"].sent_bytes == 3 * 384


def test_a_collective_that_starts_before_a_loop_counts_once():
  """Its pieces stand in the loop, under its channel."""
  gather = LOOP[LOOP.index("  ROOT %g") : LOOP.rindex("}")]
  piece = gather.replace("ROOT %g", "%piece").replace("%z", "%w")
  pieces = LOOP.replace("  ROOT %t", f"{piece}  ROOT %t")
  found = hlo.read_work(pieces, num_devices=4).collectives["all-gather"]
  assert found.count == 1
  # Control: under a channel of its own it is another, in each turn.
  other = LOOP.replace(
    "  ROOT %t", f"{piece.replace('channel_id=2', 'channel_id=3')}  ROOT %t"
  )
  found = hlo.read_work(other, num_devices=4).collectives["all-gather"]
  assert found.count == 4


def test_a_loop_that_goes_on_from_another_has_the_turns_that_are_left():
  work = hlo.read_work(LOOP, num_devices=4, turns={3: 2, 5: 1})
  assert work.flops == 2 * 1024
  assert hlo.read_work(LOOP, num_devices=4, turns={4: 2}).flops == 3 * 1024


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups={{0,1},{2,3}}", 2),
    ("replica_groups={}", 16),
    ("replica_groups=[2,8]<=[16]", 8),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}", 8),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1'}", 16),
  ],
)
def test_group_sizes_in_each_way_of_writing(groups, size):
  text = LOOP.replace("replica_groups=[1,4]<=[4]", groups)
  found = hlo.read_work(text, num_devices=16).collectives["all-gather"]
  assert found.sent_bytes == 128 * (size - 1) // size


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[4,8]{1,0}", 128),
    ("bf16[3]", 6),
    ("(f32[2], s8[5], pred[3])", 16),
    ("s4[10]", 5),
    ("f8e4m3fn[4]", 4),
    ("token[]", 0),
    ("f32[]", 4),
  ],
)
def test_bytes_of_shapes(text, size):
  assert hlo.shape_bytes(text) == size


def test_a_product_written_as_a_convolution():
  # [6, 5] x [5, 7]: 2 · 6 · 5 · 7.
  assert (
    hlo.convolution_flops(
      "f32[6,7]", "f32[6,5]", "f32[5,7]", "dim_labels=bf_io->bf"
    )
    == 420
  )
  # 3 products of a batch of [6, 5] and [5, 7], as a window of 3 over 3 numbers
  # set apart by 2 zeros: each place of the window meets one number.
  text = "window={size=3 stride=2 pad=0_0 lhs_dilate=3} dim_labels=0bf_0io->0bf"
  found = hlo.convolution_flops("f32[3,6,7]", "f32[3,6,5]", "f32[3,5,7]", text)
  assert found == 3 * 420
  # Control: without the dilation all three would meet in one place.
  dense = text.replace(" lhs_dilate=3", "").replace("3 stride=2", "3")
  found = hlo.convolution_flops("f32[1,6,7]", "f32[3,6,5]", "f32[3,5,7]", dense)
  assert found == 3 * 420
  same = "window={size=3 pad=1_1} dim_labels=0bf_0io->0bf"
  # Padded: 2 + 3 + 2 of the 9 meet a number.
  found = hlo.convolution_flops("f32[3,6,7]", "f32[3,6,5]", "f32[3,5,7]", same)
  assert found == 7 * 420
  with pytest.raises(ValueError, match="dim_labels"):
    hlo.convolution_flops("f32[6,7]", "f32[6,5]", "f32[5,7]", "")


def test_a_real_program_of_this_backend():
  def f(x, w):
    return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ w), x)

  args = jnp.ones((4, 8)), jnp.ones((8, 8))
  compiled = jax.jit(f).lower(*args).compile()
  work = hlo.read_work(compiled.as_text(), num_devices=1)
  # Five turns of 2 · 4 · 8 · 8; XLA's own count has one.
  assert work.flops == 5 * 512
  assert compiled.cost_analysis()["flops"] < work.flops


def test_a_loop_bounded_by_data_and_a_switch_in_it():
  # The heavier branch: 2 · 4 · 8 · 8 twice, against once.
  def f(x, w, turns, most):
    def step(i, y):
      return jax.lax.switch(
        turns[i],
        [lambda y: jnp.tanh(y @ w), lambda y: jnp.tanh(jnp.sin(y @ w) @ w)],
        y,
      )

    def more(state):
      i, _ = state
      return (i < turns[0]) if most is None else (i < most) & (i < turns[0])

    return jax.lax.while_loop(more, lambda s: (s[0] + 1, step(*s)), (0, x))[1]

  def work(most):
    args = jnp.ones((4, 8)), jnp.ones((8, 8)), jnp.arange(1, 4)
    compiled = jax.jit(functools.partial(f, most=most)).lower(*args).compile()
    return hlo.read_work(compiled.as_text(), num_devices=1)

  assert work(7).flops == 7 * 2 * 512
  assert work(7).loops == (7,)
  # By data alone: once.
  assert work(None).flops == 2 * 512


# As the compiler writes a Pallas kernel and what takes its results.
KERNEL = """  %k = (f32[4,8]{1,0}, f32[4]{0}) custom-call(%x, %w), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="f/pallas_call"}, backend_config={"body":"TUzvUg"}
  %x2 = f32[4,8]{1,0} copy(%k), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="f"}, backend_config={"estimated_cycles":"11"}
"""


def test_a_kernel_over_several_lines_ends_no_computation(monkeypatch):
  text = LOOP.replace("  %y = ", f"{KERNEL}  %y = ")
  work = hlo.read_work(text, num_devices=4)
  # All of the loop behind it, and the cycles on the last line of the copy.
  assert work.flops == 3 * 1024
  assert work.cycles == 3 * (100 + 11) + 7
  assert work.collectives["all-reduce"].count == 3
  assert work.untimed_kernels == 3
  assert hlo.read_work(LOOP, num_devices=4).untimed_kernels == 0
  # With an estimate its time is counted as any other's.
  estimate = '"body":"TUzvUg","estimated_cycles":"5"'
  timed = text.replace('"body":"TUzvUg"', estimate)
  work = hlo.read_work(timed, num_devices=4)
  assert (work.untimed_kernels, work.cycles) == (0, 3 * (100 + 11 + 5) + 7)
  # Control: ended by any brace, the rest of the loop is lost.
  monkeypatch.setattr(hlo, "_END", re.compile(r"^\}"))
  work = hlo.read_work(text, num_devices=4)
  assert work.flops == 0 and "all-reduce" not in work.collectives


# As the compiler writes what it moves to a TPU's sparse core.
ELSEWHERE = """
%called (a: f32[4,8], b: f32[8,16]) -> f32[4,16] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  ROOT %d = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}, execution_thread="sparsecore"
"""


def test_a_computation_for_another_core_ends_with_its_name(monkeypatch):
  head, _, rest = LOOP.partition("\n\n")
  text = f"{head}\n{ELSEWHERE}\n{rest}"
  computations, entry = hlo.parse(text)
  assert set(computations) == {*hlo.parse(LOOP)[0], "called"}
  assert entry == hlo.parse(LOOP)[1]
  assert len(computations["called"]) == 3
  # Control: ended by nothing but a brace alone it takes in what follows.
  monkeypatch.setattr(hlo, "_END", re.compile(r"^\}\s*$"))
  assert set(hlo.parse(text)[0]) != set(computations)


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.read_work("stablehlo", num_devices=1)
