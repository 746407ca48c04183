"""Advantage estimators: from rewards or token returns to advantages [B, T]."""

from rlvr.advantages.group import (
  group_relative,
  group_relative_advantages,
  leave_one_out,
  leave_one_out_advantages,
  with_advantages,
)
from rlvr.advantages.token_group import (
  token_group_relative,
  token_group_relative_advantages,
  token_leave_one_out,
  token_leave_one_out_advantages,
)

__all__ = [
  "group_relative",
  "group_relative_advantages",
  "leave_one_out",
  "leave_one_out_advantages",
  "token_group_relative",
  "token_group_relative_advantages",
  "token_leave_one_out",
  "token_leave_one_out_advantages",
  "with_advantages",
]
