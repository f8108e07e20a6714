"""Rasters, vectors, grids, formats."""

import warnings

from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning

# Near infrared called alpha, see Raster._alpha; scenes without a place, which state their gsd. Once
# for all threads: to catch warnings where they arise would be another thread's business too.
for known in (NodataShadowWarning, NotGeoreferencedWarning):
    warnings.simplefilter("ignore", known)
