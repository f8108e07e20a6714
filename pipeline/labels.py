"""What a label pixel may say, and whose side a scene is on: 0 is background,
1..k a class, 255 nothing at all.
"""

from typing import Literal

Split = Literal["train", "validation", "test"]
IGNORE = 255  # nodata and doubtful labels: out of every loss, metric and attack
