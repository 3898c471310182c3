"""dense: a weight's values themselves, in the run's dtype. bfloat16, float16 and float32 checkpoints are read as this.

It is defined beside the type `Weight`, because the ops' own cases are dense; here the folder listing finds it.
"""

from __future__ import annotations

from ..ops.types import DENSE

FORMAT = DENSE
