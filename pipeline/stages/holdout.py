"""The leave-one-city-out folds, all of them: `train --without CITY` for each city, side by side
where there is room.

DVC's stage holdout trains them one after another; what is written here first it takes over by `dvc
commit` (see docs/scaling.md).
"""

from pipeline.cluster import each, shard_of
from pipeline.console import console
from pipeline.errors import InputError, nearest
from pipeline.params import Params
from pipeline.stages import train


def run(
    params: Params, city: str | None = None, *, ray: str | None = None, shard: str | None = None
) -> None:
    """Train models/without-CITY of every city, or of the one given; ray, shard: where, see
    pipeline.cluster.

    A fold that is done is kept; one that was killed goes on from its last epoch.
    Raises what `train` raises.
    """
    known = params.fetch.cities
    if city is not None and city not in known:
        raise InputError(
            f"--city: {city} is not one of fetch.cities; did you mean {nearest(city, known)}?"
        )
    train.check_folds(params)

    def fold(name: str) -> None:
        train.run(params, without=name)

    cities = shard_of(known if city is None else [city], shard)
    for name, _ in each(fold, cities, ray):
        console.print(f"the fold without {name} is trained")
