"""Two questions about the Fréchet distance at d = 2048, answered side by side in one run.

    python scripts/bench/frechet.py speed                # ours against clean-fid's function, same features
    python scripts/bench/frechet.py truth                # small samples of populations of known distance

`speed` takes about 20 s per size, nearly all of it in clean-fid's matrix square root; `truth` a few minutes.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from diffusion_sft.numerics.frechet import PairedPoints, frechet_distance, half_against_half
from diffusion_sft.numerics.kernels import kernel_replicates
from diffusion_sft.numerics.resampling import replicate, split_groups

NUM_DIMS = 2048
Distance = Callable[[np.ndarray, np.ndarray], float]


def power_spectrum(exponent: float, total: float = 150.0) -> np.ndarray:
    """Variances i^-exponent that add up to `total`, (d,)."""
    variances = np.arange(1, NUM_DIMS + 1) ** -exponent
    return total * variances / variances.sum()


def clean_fids_distance(first: np.ndarray, second: np.ndarray) -> float:
    """What clean-fid's compute_fid does once it has the features."""
    from cleanfid.fid import frechet_distance as clean_fids

    sides = (first.astype(np.float64), second.astype(np.float64))
    moments = [part for side in sides for part in (side.mean(axis=0), np.cov(side, rowvar=False))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(clean_fids(*moments))


def seconds(distance: Distance, first: np.ndarray, second: np.ndarray, repeats: int) -> tuple[float, float, float]:
    """The distance, and the medians of its wall and of its processor times."""
    wall, processor = [], []
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        value = distance(first, second)
        wall.append(time.perf_counter() - starts[0])
        processor.append(time.process_time() - starts[1])
    return value, float(np.median(wall)), float(np.median(processor))


def speed(sizes: list[int]) -> None:
    """Print value and seconds of both on the same non-negative float32 features."""
    print(f"{'':43} {'wall seconds':^27} {'processor seconds':^27}")
    times = f"{'clean-fid':>10} {'ours':>8} {'ratio':>7}"
    print(f"{'n':>5} {'clean-fid':>12} {'ours':>12} {'difference':>11} {times} {times}")
    deviations = np.sqrt(power_spectrum(0.9))
    for n in sizes:
        generator = np.random.default_rng(n)
        mixing = np.linalg.qr(generator.normal(size=(NUM_DIMS, NUM_DIMS)))[0]
        first, second = (
            np.maximum(generator.normal(size=(n, NUM_DIMS)) * deviations @ mixing + offset, 0).astype(np.float32)
            for offset in (0.1, 0.15)
        )
        ours, *our_seconds = seconds(frechet_distance, first, second, 5)
        theirs, *their_seconds = seconds(clean_fids_distance, first, second, 1)
        columns = [
            f"{their:10.2f} {our:8.4f} {their / our:6.0f}x"
            for their, our in zip(their_seconds, our_seconds, strict=True)
        ]
        print(f"{n:5d} {theirs:12.6f} {ours:12.6f} {ours - theirs:11.1e} {' '.join(columns)}", flush=True)


class Populations:
    """Two Gaussians of commuting covariances, so that their distance is known in any leading dimensions."""

    def __init__(self, variances: np.ndarray) -> None:
        generator = np.random.default_rng(0)
        self.deviations = np.sqrt(variances)
        self.mean = 0.2 * self.deviations * generator.normal(size=NUM_DIMS)
        self.scale = np.exp(0.15 * generator.normal(size=NUM_DIMS))

    def truth(self, dims: int) -> float:
        """The distance within the first `dims` dimensions."""
        return float(np.sum(self.mean[:dims] ** 2 + (self.deviations * (self.scale - 1))[:dims] ** 2))

    def kernel_truth(self, generator: np.random.Generator) -> float:
        """KID x 1000 of the populations, from 4,000 rows a side."""
        return measured_kid(*self.draw(4000, generator))[0]

    def draw(self, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n real and n generated rows."""
        white = generator.normal(size=(2, n, NUM_DIMS))
        return white[0] * self.deviations, white[1] * self.deviations * self.scale + self.mean


def measured_kid(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """KID x 1000 and its jackknife standard error."""
    one_stratum = np.zeros(len(real))
    result = kernel_replicates(real, generated, one_stratum, split_groups(one_stratum, 20, 0))
    return 1000 * result.value, 1000 * result.standard_error


def measured(real: np.ndarray, generated: np.ndarray, dims: int, seed: int) -> dict[str, float]:
    """Everything the evaluation prints for one bucket, on one draw of both sides."""
    one_stratum = np.zeros(len(real))
    groups = split_groups(one_stratum, 20, seed)
    pairs = PairedPoints.stack(real, generated, one_stratum)
    few = PairedPoints.stack(real[:, :dims], generated[:, :dims], one_stratum)
    fid, plug_in = replicate(pairs.distance, groups), replicate(few.distance, groups)
    floors, distances = half_against_half(pairs, 10, seed)
    kid, kid_error = measured_kid(real, generated)
    return {
        "FID": fid.value,
        "FID se": fid.standard_error,
        "FID n/2": float(distances.mean()),
        "floor n/2": float(floors.mean()),
        "excess n/2": float((distances - floors).mean()),
        "excess se": float((distances - floors).std(ddof=1)),
        f"FD{dims} plug-in": plug_in.value,
        f"FD{dims}": plug_in.bias_corrected,
        f"FD{dims} se": plug_in.standard_error,
        "KID x1000": kid,
        "KID se": kid_error,
    }


def truth(sizes: list[int], repeats: int, dims: int) -> None:
    """Print mean (spread over fresh data) of each figure, beside the truth."""
    for name, exponent in (("power i^-0.9", 0.9), ("flat", 0.0)):
        populations = Populations(power_spectrum(exponent))
        print(
            f"\n{name}: true distance {populations.truth(NUM_DIMS):.2f}, of it in the first {dims} dimensions "
            f"{populations.truth(dims):.2f}; KID x1000 {populations.kernel_truth(np.random.default_rng(1)):.2f}"
        )
        for n in sizes:
            generator = np.random.default_rng(n)
            draws = [
                measured(*populations.draw(n, generator), dims, seed)
                for seed in tqdm(range(repeats), desc=f"n = {n}", disable=None, leave=False)
            ]
            figures = {key: np.array([draw[key] for draw in draws]) for key in draws[0]}
            print(f"  n = {n}, {repeats} data sets")
            for key, values in figures.items():
                print(f"    {key:>14} {values.mean():9.2f}  ({values.std(ddof=1):.2f})", flush=True)


def main() -> None:
    """Read the sizes and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=("speed", "truth"))
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="images a side (speed: 200 500 1000 2000; truth: 200 500)"
    )
    parser.add_argument("--repeats", type=int, default=12, help="fresh data sets per size (truth)")
    parser.add_argument("--dims", type=int, default=64, help="fixed directions (truth)")
    arguments = parser.parse_args()
    if arguments.question == "speed":
        speed(arguments.sizes or [200, 500, 1000, 2000])
    else:
        truth(arguments.sizes or [200, 500], arguments.repeats, arguments.dims)


if __name__ == "__main__":
    main()
