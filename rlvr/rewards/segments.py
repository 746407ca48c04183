from rlvr.segments import *  # noqa: F403
