"""Stage holdout: the leave-one-city-out folds, `train --without CITY` of each city, and where they
are trained for less long than models/all, what they are compared with: models/folds/all.
"""

from functools import partial

from pipeline.cluster import each, shard_of
from pipeline.console import console
from pipeline.errors import InputError, nearest
from pipeline.params import Params
from pipeline.stages import train


def run(
    params: Params, city: str | None = None, *, ray: str | None = None, shard: str | None = None
) -> None:
    """Train models/folds/without-CITY of every city, or of the one given; ray, shard: where, see
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

    everything = [*known, *[None] * (params.of_folds() != params)]
    for name, _ in each(
        partial(_fold, params), shard_of(everything if city is None else [city], shard), ray
    ):
        if name is None or len(known) > 1:  # of a single city, train has said that it has no fold
            console.print(f"the fold without {name or 'none'} is trained")


def _fold(params: Params, without: str | None) -> None:
    if without:
        train.run(params, without)
    else:
        train.reference(params)
