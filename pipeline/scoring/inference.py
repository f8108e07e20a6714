"""Whole scenes through a fully convolutional segmenter: overlapping windows,
blended, one band of rows at a time.

Memory grows with a band of rows (window × scene width), never with the scene's height. Windows
begin on multiples of the network's stride: a pixel meets the same phase of the encoder's halvings
in every window, whatever its size.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, compress
from typing import Protocol, TypeVar

import numpy as np
import torch

from pipeline.networks.precision import autocast
from pipeline.tiles.tensors import to_float

Found = TypeVar("Found")


def window_starts(length: int, window: int, overlap: float, stride: int = 1) -> list[int]:
    """First pixels of windows that cover `length` evenly, neighbours sharing at
    least `overlap` of a window.

    They are multiples of `stride`, as `length` and `window` must be.
    """
    length, window = length // stride, window // stride
    if length <= window:
        return [0]
    count = int(np.ceil((length - window) / max(1, int(window * (1 - overlap))))) + 1
    return [stride * round(i * (length - window) / (count - 1)) for i in range(count)]


def blend_weights(height: int, width: int) -> np.ndarray:
    """(height, width) float32: a raised cosine from the centre to the edge, nowhere zero."""
    down, across = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 + 1e-3 for n in (height, width))
    return np.outer(down, across).astype(np.float32)


def _multiple(length: int, stride: int) -> int:
    return -(-int(length) // stride) * stride


def layout(
    height: int, width: int, window: int, overlap: float, stride: int
) -> tuple[int, int, list[int], list[int]]:
    """Height and width of the windows of a scene, and their first rows and columns; the last may
    reach over its edge, by less than a stride.
    """
    tall, wide = (_multiple(min(window, side), stride) for side in (height, width))
    # the scene and its repeated edge
    below, right = _multiple(height, stride), _multiple(width, stride)
    return (
        tall,
        wide,
        window_starts(below, tall, overlap, stride),
        window_starts(right, wide, overlap, stride),
    )


def symmetries(
    images: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]:
    """The eight views (N, C, H, W) of a square's symmetries, each with what
    brings its map back upright.
    """
    for turns in range(4):
        turned = images.rot90(turns, (2, 3))
        yield turned, lambda p, back=-turns: p.rot90(back, (2, 3))
        yield turned.flip(3), lambda p, back=-turns: p.flip(3).rot90(back, (2, 3))


class Network(Protocol):
    """A Segmenter, or what answers like one."""

    classes: int
    stride: int

    def __call__(self, images: torch.Tensor, *, contacts: bool = False) -> torch.Tensor: ...

    def buffers(self) -> Iterator[torch.Tensor]: ...


class Image(Protocol):
    """(H, W, C) uint8: an array, or what can be sliced by rows like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class Streams:
    """Passes over windows: on a GPU one batch after another; on a CPU one window each, side by side.

    Two passes of a thread each take less time than one of two threads, whose short layers wait for
    each other, and the more so while a map is traced on one of the cores (`python -m benchmarks
    streams`).
    """

    def __init__(self, on: torch.device, batch_size: int):
        """batch_size: windows at once."""
        self.threads = torch.get_num_threads()
        self.windows = 1 if on.type == "cpu" else batch_size  # a pass
        self.count = min(batch_size, self.threads) if on.type == "cpu" else 1
        self.pool: ThreadPoolExecutor | None = None

    def map(self, seen: Callable[[list[int]], Found], lefts: list[int]) -> Iterator[Found]:
        """`seen` of `windows` of them at a time, in their order. One alone has all threads."""
        parts = [lefts[i : i + self.windows] for i in range(0, len(lefts), self.windows)]
        if min(self.count, len(parts)) < 2:
            return map(seen, parts)
        self.pool = self.pool or self._opened()
        return self.pool.map(seen, parts)

    def _opened(self) -> ThreadPoolExecutor:
        """Its threads, each with a share of torch's; what torch gives others stays as it was."""
        ready = threading.Barrier(self.count + 1)

        def start() -> None:
            torch.set_num_threads(self.threads // self.count)
            ready.wait()

        pool = ThreadPoolExecutor(self.count, "pass", start)
        for _ in range(self.count):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(self.threads)
        return pool

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_) -> None:
        if self.pool:
            self.pool.shutdown()


@torch.inference_mode()
def probabilities(
    segmenter: Network,
    images: torch.Tensor,
    temperature: float,
    augment: bool,
    contacts: bool = False,
) -> torch.Tensor:
    """Images (N, C, H, W) in [0, 1] to class probabilities (N, K, H, W); `augment`:
    mean of eight symmetries.

    With `contacts`, of a segmenter that has them, (N, K + 1, H, W): last the
    probability of a contact.
    """

    def answer(view: torch.Tensor) -> torch.Tensor:
        if not contacts:
            return (segmenter(view).float() / temperature).softmax(1)
        z = segmenter(view, contacts=True).float()
        return torch.cat([(z[:, :-1] / temperature).softmax(1), z[:, -1:].sigmoid()], 1)

    if not augment:
        return answer(images)
    return sum((upright(answer(view)) for view, upright in symmetries(images)), torch.zeros(())) / 8


def infer(
    segmenter: Network,
    image: Image,
    *,
    window: int = 512,
    overlap: float = 0.25,
    batch_size: int = 4,
    augment: bool = False,
    temperature: float = 1.0,
    precision: str = "auto",
    contacts: bool = False,
    empty: Callable[[slice, slice], bool] | None = None,
    worth: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, probabilities (rows, W, K) float32), top to bottom, without gaps; with
    `contacts` one more, that of a contact, last.

    `image` is any array-like (H, W, C) uint8 that can be sliced by rows and columns; it is read one
    window row at a time. Windows that are `empty` (whether no pixel of such rows and columns holds
    data) are not computed, nor those of a batch (N, C, H, W) in [0, 1] that are not `worth` it
    (N,): they are background with probability 1. Black is data.
    """
    height, width, _ = image.shape
    on, stride = next(segmenter.buffers()).device, segmenter.stride
    tall, wide, rows, columns = layout(height, width, window, overlap, stride)
    right = columns[-1] + wide  # the scene's width and its repeated edge
    weight = torch.from_numpy(blend_weights(tall, wide)).to(on)
    foreground = segmenter.classes + contacts
    # Σ weight · probability of each foreground class
    total = torch.zeros(foreground, tall, right, device=on)
    norm = torch.zeros(tall, right, device=on)
    with Streams(on, batch_size) as streams:
        for i, top in enumerate(rows):
            band = image[top : top + tall]
            lines = slice(top, top + len(band))
            busy = [
                left for left in columns if not (empty and empty(lines, slice(left, left + wide)))
            ]
            band = torch.from_numpy(
                np.pad(band, ((0, tall - len(band)), (0, right - width), (0, 0)), mode="edge")
            )
            for left in columns:
                norm[:, left : left + wide] += weight

            def pixels(lefts: list[int], band=band) -> torch.Tensor:
                windows = torch.stack([band[:, left : left + wide] for left in lefts])
                return to_float(windows.to(on, non_blocking=True))

            def seen(lefts: list[int], pixels=pixels) -> torch.Tensor:
                with torch.inference_mode(), autocast(on, precision):
                    return probabilities(segmenter, pixels(lefts), temperature, augment, contacts)[
                        :, 1:
                    ]

            if worth is not None:
                parts = [busy[k : k + batch_size] for k in range(0, len(busy), batch_size)]
                kept = (left for part in parts for left in compress(part, worth(pixels(part))))
                busy = [*kept]
            for left, one in zip(busy, chain.from_iterable(streams.map(seen, busy)), strict=True):
                total[:, :, left : left + wide].addcmul_(weight, one)
            ready = (rows[i + 1] if i + 1 < len(rows) else height) - top
            found = (total[:, :ready, :width] / norm[:ready, :width]).movedim(0, -1).cpu().numpy()
            yield (
                top,
                np.concatenate(
                    [1 - found[..., : segmenter.classes].sum(-1, keepdims=True), found], axis=-1
                ),
            )
            # The rows below are not finished: move them up, and make room.
            for array in (total, norm):
                rest = array[..., ready:, :].clone()
                array.zero_()
                array[..., : rest.shape[-2], :] = rest
