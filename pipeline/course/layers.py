"""What a layer is: a convolution as a sparse dense layer, max pooling by ReLUs,
MinMax in the place of ReLU.
"""

import torch
from scipy.sparse import coo_array
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.course.lesson import Lesson, board, curves, gallery
from pipeline.course.towns import scene
from pipeline.networks.lipschitz import OrthogonalConv, minmax, replace_relu


def dense_matrix(kernel: Tensor, side: int) -> coo_array:
    """The dense layer (side², side²) that a 3×3 convolution of a side×side image,
    zeros around it, is; sparse.

    A[(y, x), (y + i, x + j)] = kernel[i, j] for i, j in −1, 0, 1, wherever that pixel exists, else
    0 (LeCun 1989: local connections, shared weights).
    """
    rows, columns, values = [], [], []
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            down, across = y + i, x + j
            inside = (down >= 0) & (down < side) & (across >= 0) & (across < side)
            rows.append((y * side + x)[inside])
            columns.append((down * side + across)[inside])
            values.append(kernel[i + 1, j + 1].expand(len(rows[-1])))
    return coo_array((torch.cat(values), (torch.cat(rows), torch.cat(columns))), (side**2, side**2))


def convolution(side: int = 256) -> Lesson:
    """The same edges by nine weights and by a matrix of side⁴."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])  # Sobel's
    image = scene("marlstead", 1, side)[0].mean(0)
    edges = F.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
    matrix = dense_matrix(kernel, side)
    dense = torch.from_numpy(matrix @ image.flatten().numpy()).view(side, side)
    small = torch.from_numpy(dense_matrix(torch.ones(3, 3), 8).toarray())
    figure = gallery(
        {
            "image": image,
            "by 9 weights": edges,
            "by the matrix": dense,
            "the matrix of an 8×8 image": small,
        },
        {"image": {"cmap": "gray"}, "the matrix of an 8×8 image": {"cmap": "gray_r"}},
    )
    numbers = {
        "weights of the convolution": kernel.numel(),
        "weights of the dense layer": f"{side**4:,}",
        "of these not forced to 0": f"{(3 * side - 2) ** 2:,}",
        "convolution − dense layer, largest": float((edges - dense).abs().max()),
    }
    return Lesson(numbers, figure)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """max(a, b) = a + relu(b − a)."""
    return a + F.relu(b - a)


def pool_by_relus(x: Tensor) -> Tensor:
    """2×2 max pooling of (N, C, H, W), H and W even, by three ReLUs a square:
    max(max(a, b), max(c, d)).
    """
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return maximum(maximum(a, b), maximum(c, d))


def pooling(side: int = 256) -> Lesson:
    """So whatever is proven of networks of ReLUs holds for networks that pool."""
    image = scene("duskholm", 1, side)[0]
    pooled, by_relus = F.max_pool2d(image[None], 2)[0], pool_by_relus(image[None])[0]
    apart = (pooled - by_relus).abs()
    figure = gallery(
        {"image": image, "max pooling": pooled, "by ReLUs": by_relus, "difference": apart.amax(0)},
        {"difference": {"cmap": "gray", "vmin": 0, "vmax": 1}},
    )
    return Lesson(
        {"ReLUs a square": 3, "max pooling − by ReLUs, largest": float(apart.max())}, figure
    )


def absolute_by_minmax(x: Tensor) -> Tensor:
    """|x| of (N, 1) by layers of norm 1: (x, −x)/√2, MinMax, then (−1, 1)/√2; for
    ‖minmax(v)‖ = ‖v‖, always.

    With ReLU in its place no such network can (Anil, Lucas, Grosse 2019, theorem 1).
    """
    up = torch.tensor([[1.0, -1.0]], dtype=x.dtype) / 2**0.5
    return minmax(x @ up) @ torch.tensor([[-1.0], [1.0]], dtype=x.dtype) / 2**0.5


def non_expansive(depth: int, width: int, activation: str, ends: int | None = 1) -> nn.Sequential:
    """Layers with orthonormal matrices (1×1 convolutions), an activation after
    each but the last.
    """
    sizes = [ends or width, *[width] * (depth - 1), ends or width]
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [OrthogonalConv(inputs, outputs, 1), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    if activation == "MinMax":
        replace_relu(network)
    return network


def gradient_norms(activation: str, depth: int, width: int = 32) -> list[float]:
    """‖∂(vᵀz)/∂z_k‖ of a random unit v, through k = 0 … `depth` layers, backwards."""
    torch.manual_seed(1)
    network = non_expansive(depth, width, activation, ends=None).eval()
    kept = [torch.randn(64, width, 1, 1, requires_grad=True)]
    for layer in network:
        kept.append(layer(kept[-1]))
    v = F.normalize(torch.randn_like(kept[-1]), dim=1)
    gradients = torch.autograd.grad(kept[-1], kept[::2], v)
    return [1.0, *(float(g.flatten(1).norm(dim=1).mean()) for g in reversed(gradients))]


def minmax_against_relu(steps: int = 400, depth: int = 20) -> Lesson:
    """Both learn |x| with layers of norm 1; MinMax keeps the gradient's norm,
    ReLU loses about 1/√2 a layer.
    """
    x = torch.linspace(-1, 1, 201)[:, None, None, None]
    figure, (left, right) = board(2)
    numbers, norms = {}, {}
    for activation in ("ReLU", "MinMax"):
        torch.manual_seed(0)
        network = non_expansive(3, 16, activation)
        descent = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(steps):
            loss = (network(x) - x.abs()).square().mean()
            descent.zero_grad()
            loss.backward()
            descent.step()
        left.plot(x.flatten(), network.eval()(x).detach().flatten(), label=activation)
        norms[activation] = gradient_norms(activation, depth)
        numbers[f"{activation}: mean (f(x) − |x|)²"] = loss.item()
        numbers[f"{activation}: gradient's norm after {depth} layers"] = norms[activation][-1]
    left.plot(x.flatten(), x.abs().flatten(), "--", linewidth=0.8, color="black", label="|x|")
    left.set_title("|x| by layers of norm 1", fontsize=9)
    left.legend(fontsize=7, frameon=False)
    curves(right, "norm of the gradient", norms, "layers", yscale="log")
    exact = float((absolute_by_minmax(x.view(-1, 1)) - x.abs().view(-1, 1)).abs().max())
    return Lesson({"|x| by one MinMax, largest error": exact, **numbers}, figure)
