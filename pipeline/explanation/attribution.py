"""Which pixels speak for a building, by two methods, and the two checks that give
an answer meaning.

    integrated gradients   Sundararajan, Taly and Yan 2017: along the line from a flat image
    occlusion              Zeiler and Fergus 2014: what a square's absence costs
    deletion, insertion    Petsiuk, Das and Saenko 2018: squares go, or come, in the order named,
                           against random orders
    randomisation          Adebayo et al. 2018: an explanation of the model changes with its weights

What is explained is a building's evidence: the margin of building over background, mean over its
pixels. The flat image is the tile's mean colour.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

BATCH = 16  # images a forward pass: bounds the memory
RANDOM = 4  # random orders a building
SHARES = 10  # steps from nothing deleted to everything
DEPTHS = {"head": 0.0, "half": 0.5, "all": 1.0}  # share of the layers randomised, from the output


@dataclass(frozen=True)
class Building:
    """A tile (C, H, W) in [0, 1] and the pixels (H, W) bool of one building in it."""

    image: Tensor
    mask: Tensor

    @property
    def flat(self) -> Tensor:
        """The tile's mean colour everywhere, (C, H, W)."""
        return self.image.mean((1, 2), keepdim=True).expand_as(self.image)


Evidence = Callable[[Tensor], Tensor]  # images (N, C, H, W) to (N,)


def margin(segmenter: nn.Module, images: Tensor) -> Tensor:
    """What the logits of the decision give the likeliest kind of building more than background:
    (N, H, W), positive where a building is drawn.
    """
    z = segmenter(images).float()
    return z[:, 1:].amax(1) - z[:, 0]


def evidence(segmenter: nn.Module, mask: Tensor) -> Evidence:
    """The mean margin over a building's pixels."""
    return lambda images: margin(segmenter, images)[:, mask].mean(1)


def probability(segmenter: nn.Module, mask: Tensor) -> Evidence:
    """The mean probability of building over a building's pixels, without gradients."""

    @torch.no_grad()
    def found(images: Tensor) -> Tensor:
        parts = images.split(BATCH)
        return torch.cat([margin(segmenter, part)[:, mask].sigmoid().mean(1) for part in parts])

    return found


def integrated_gradients(score: Evidence, image: Tensor, flat: Tensor, steps: int) -> Tensor:
    """(C, H, W): (x − x′) ∫ ∂S/∂x (x′ + α(x − x′)) dα over α in [0, 1] (equation 1), by midpoints.

    They sum to S(x) − S(x′), up to the error of the sum (proposition 1).
    """
    alphas = (torch.arange(steps, device=image.device) + 0.5) / steps
    total = torch.zeros_like(image)
    for part in alphas.view(-1, 1, 1, 1).split(BATCH):
        path = (flat + part * (image - flat)).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(path).sum(), path)
        total += gradient.sum(0)
    return (image - flat) * total / steps


def cells(shape: tuple[int, int], side: int) -> Tensor:
    """(H, W) int64: the number of the side × side square that each pixel lies in, row by row."""
    row, column = torch.arange(shape[0]) // side, torch.arange(shape[1]) // side
    return row[:, None] * (int(column.max()) + 1) + column


def by_cell(attribution: Tensor, square: Tensor) -> Tensor:
    """(cells,) sums of attributions (C, H, W) over bands and squares."""
    return torch.bincount(square.flatten(), attribution.sum(0).double().flatten().cpu())


def occlusion(score: Evidence, image: Tensor, flat: Tensor, square: Tensor) -> Tensor:
    """(cells,): by how much the score falls where a square is flat."""
    number = int(square.max()) + 1
    scores = []
    with torch.no_grad():
        for part in torch.arange(number).split(BATCH):
            hidden = square == part.view(-1, 1, 1)
            scores.append(score(torch.where(hidden[:, None].to(image.device), flat, image)))
        return (score(image[None]) - torch.cat(scores)).double().cpu()


def deletion(
    score: Evidence, before: Tensor, after: Tensor, square: Tensor, order: Tensor
) -> Tensor:
    """(SHARES + 1,) scores while the squares of `before` become those of `after` in this order.

    From the image to the flat one it is deletion, from the flat one to the image insertion.
    """
    rank = torch.empty(len(order))
    rank[order] = torch.arange(len(order)) / len(order)
    shares = torch.arange(SHARES + 1).view(-1, 1, 1, 1) / SHARES
    gone = (rank[square] < shares).to(before.device)
    return score(torch.where(gone, after, before)).cpu()


def area(curve: Tensor) -> float:
    """Under a curve over shares from 0 to 1, by trapezoids."""
    return float(torch.trapezoid(curve.double(), dx=1 / (len(curve) - 1)))


def randomised(segmenter: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy whose last layers, a share of them and one at least, have their weights shuffled.

    Shuffled within each layer, the weights keep their distribution, so that nothing overflows.
    """
    other = copy.deepcopy(segmenter)
    generator = torch.Generator().manual_seed(seed)
    layers = [weights for weights in other.parameters() if weights.dim() > 1]
    for weights in layers[-max(1, round(share * len(layers))) :]:
        order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
        weights.data.copy_(weights.data.flatten()[order].view_as(weights))
    return other


def alike(one: Tensor, other: Tensor) -> float | None:
    """Spearman's rank correlation of two attributions; None where one is the same everywhere."""
    if min(float(a.max() - a.min()) for a in (one, other)) == 0:
        return None
    return float(spearmanr(one.numpy(), other.numpy()).statistic)


def explain(segmenter: nn.Module, building: Building, steps: int, side: int, seed: int) -> dict:
    """Every number of one building (JSON), and its integrated gradients (H, W), summed over bands.

    `segmenter` answers with the deployed logits; `steps` of the integral, `side` of a square.
    """
    image, flat, mask = building.image, building.flat, building.mask
    height, width = mask.shape
    square = cells((height, width), side)
    of = evidence(segmenter, mask)
    gradients = integrated_gradients(of, image, flat, steps)
    orders = {
        "integrated gradients": by_cell(gradients, square),
        "occlusion": occlusion(of, image, flat, square),
    }
    numbers = {"bands": shares(gradients), "inside": inside(gradients, mask)}
    numbers["areas"] = faithfulness(segmenter, building, square, orders, seed)
    numbers["randomised"] = {
        name: likeness(randomised(segmenter, share, seed), building, square, steps, gradients)
        for name, share in DEPTHS.items()
    }
    return {"numbers": numbers, "gradients": gradients.sum(0).numpy(force=True)}


def shares(gradients: Tensor) -> list[float]:
    """Each band's share of the attributions' absolute sum."""
    mass = gradients.abs().double().sum((1, 2))
    return (mass / mass.sum().clamp_min(1e-12)).tolist()


def inside(gradients: Tensor, mask: Tensor) -> float:
    """The share of the attributions' absolute sum that lies on the building itself."""
    mass = gradients.abs().double().sum(0)
    return float(mass[mask].sum() / mass.sum().clamp_min(1e-12))


def faithfulness(
    segmenter, building: Building, square: Tensor, orders: dict[str, Tensor], seed: int
):
    """{METHOD: [deletion, insertion]}, areas under the curves; the method "random" is the mean of
    RANDOM orders."""
    generator = torch.Generator().manual_seed(seed)
    number = int(square.max()) + 1
    found = probability(segmenter, building.mask)

    def both(order: Tensor) -> Tensor:
        ends = ((building.image, building.flat), (building.flat, building.image))
        return torch.stack([deletion(found, *pair, square, order) for pair in ends])

    curves = {name: both(values.argsort(descending=True)) for name, values in orders.items()}
    chance = [both(torch.randperm(number, generator=generator)) for _ in range(RANDOM)]
    curves["random"] = torch.stack(chance).mean(0)
    return {name: [area(curve) for curve in pair] for name, pair in curves.items()}


def likeness(
    other: nn.Module, building: Building, square: Tensor, steps: int, gradients: Tensor
) -> dict:
    """How alike the integrated gradients of another network are, signed and in absolute value."""
    theirs = integrated_gradients(
        evidence(other, building.mask), building.image, building.flat, steps
    )
    return {
        "signed": alike(by_cell(gradients, square), by_cell(theirs, square)),
        "absolute": alike(by_cell(gradients.abs(), square), by_cell(theirs.abs(), square)),
    }
