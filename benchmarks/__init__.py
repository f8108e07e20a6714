"""Speed and quality as ratios: `python -m benchmarks`. A package, so that no library that ships
one takes its place.
"""
