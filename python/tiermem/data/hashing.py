"""Hashes of ids, the same on every host: the finaliser of SplitMix64, as in the core's `rng`."""

import numpy as np
import numpy.typing as npt

__all__ = ["hash_rows", "mix", "unit_interval"]

Words = npt.NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15


def mix(words: Words) -> Words:
    """A bijection of 64-bit words with good avalanche (Steele, Lea, Flood, OOPSLA 2014)."""
    z = words.copy()
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_rows(keys: npt.NDArray[np.int64], salt: int, rows: int) -> npt.NDArray[np.int64]:
    """Row below `rows` of each key, under a salt."""
    salted = keys.astype(np.uint64) + np.uint64((salt + 1) * _GOLDEN % 2**64)
    return (mix(mix(salted)) % np.uint64(rows)).astype(np.int64)


def unit_interval(words: Words) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) from hashed words."""
    uniform: npt.NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform
