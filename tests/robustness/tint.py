"""The planted tint, as the course teaches it."""

from pipeline.course.tint import NOISE, TINT, network, pooled, tiles, train

__all__ = ["NOISE", "TINT", "network", "pooled", "tiles", "train"]
