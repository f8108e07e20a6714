"""Each topic of the course by its identity, and what its command writes and refuses."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.certificates.bounds import Bounds, Box
from pipeline.course import (
    by_hand,
    cities,
    encoders,
    layers,
    pixels,
    polytope,
    topics,
    towns,
    windows,
)
from pipeline.course.fit import fit, segmenter
from pipeline.course.lesson import Lesson, board
from pipeline.errors import InputError
from pipeline.networks.lipschitz import minmax
from pipeline.networks.models import WindowCNN
from pipeline.training.losses import hinge

NAMES = [topic.name for topic in topics.TOPICS]


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


# The identities, in the lecture's order


def test_least_squares_by_hand_is_autograds_and_vanishes_at_the_normal_equations(random):
    x, y, w = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((50, 3), (50,), (3,))
    )
    automatic = torch.func.grad(lambda w: (x @ w - y).square().sum() / (2 * len(y)))(w)
    assert torch.allclose(by_hand.squares_gradient(x, y, w), automatic, atol=1e-6)
    assert by_hand.squares_gradient(x, y, by_hand.solve(x, y)).abs().max() < 1e-12


def test_backward_by_hand_is_autograds(random):
    shapes = (3, 5), (5,), (5, 4), (4,)
    weights = [
        torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes
    ]
    x, y = (
        torch.randn(40, 3, generator=random, dtype=torch.float64),
        torch.randint(4, (40,), generator=random),
    )
    loss, kept = by_hand.forward(x, y, weights)
    h = (x @ weights[0] + weights[1]).relu()
    assert torch.allclose(loss, F.cross_entropy(h @ weights[2] + weights[3], y))
    loss.backward()
    for mine, weight in zip(by_hand.backward(x, y, weights, kept), weights, strict=True):
        assert torch.allclose(mine, weight.grad, atol=1e-6)


def test_hinge_of_two_logits_is_the_svms_and_so_is_its_subgradient(random):
    x, y = torch.randn(30, 3, generator=random), torch.randint(2, (30,), generator=random)
    w, b = torch.randn(3, generator=random).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    sign, score = 2 * y - 1, x @ w + b
    logits = torch.stack([torch.zeros_like(score), score], 1)[..., None, None]
    loss = hinge(logits, y[:, None, None])
    assert torch.allclose(loss, (1 - sign * score).clamp_min(0).mean())
    loss.backward()
    for mine, theirs in zip(pixels.hinge_gradient(x, sign, w, b), (w.grad, b.grad), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_perceptron_on_pixels_is_matrices_one_after_the_other(random):
    network, image = pixels.perceptron(6), torch.rand(1, 3, 4, 5, generator=random)
    x = image.flatten(2)[0].T
    for layer in network:
        x = (
            x @ layer.weight[:, :, 0, 0].T + layer.bias
            if isinstance(layer, nn.Conv2d)
            else layer(x)
        )
    assert torch.allclose(network(image).flatten(2)[0].T, x, atol=1e-6)


def test_a_convolution_is_a_sparse_dense_layer(random):
    kernel, image = torch.randn(3, 3, generator=random), torch.randn(7, 7, generator=random)
    matrix = layers.dense_matrix(kernel, 7)
    assert torch.allclose(
        torch.from_numpy(matrix @ image.flatten().numpy()).view(7, 7),
        F.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0],
        atol=1e-6,
    )
    assert matrix.shape == (49, 49) and matrix.nnz == (3 * 7 - 2) ** 2
    assert len(set(matrix.data.tolist())) == 9


def test_the_lectures_count_of_weights():
    numbers = layers.convolution(256).numbers
    assert numbers["weights of the convolution"] == 9
    assert numbers["weights of the dense layer"] == "4,294,967,296"
    assert numbers["convolution − dense layer, largest"] < 1e-6


def test_max_pooling_by_relus(random):
    x = torch.randn(2, 3, 8, 6, generator=random)
    assert torch.allclose(layers.pool_by_relus(x), F.max_pool2d(x, 2), atol=1e-6)


@pytest.mark.parametrize("name", encoders.YEARS)
def test_every_encoder_carries_the_same_segmenter(name):
    network = encoders.with_encoder(name, torch.rand(1, 3, 8, 8)).eval()
    assert network(torch.rand(1, 3, 24, 40)).shape == (1, 2, 24, 40)
    decoder = network.network.decoder
    assert [block.conv2[0].out_channels for block in decoder.blocks] == encoders.DECODER
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.network.encoder.parameters())


def test_by_window_is_by_layer(random):
    network, image = WindowCNN(3, 2, 4).eval(), torch.rand(3, 37, 41, generator=random)
    by_window, by_layer = windows.by_window(network, image), windows.by_layer(network, image)
    assert by_layer.shape == (2, 6, 10)
    assert torch.allclose(by_window, by_layer, atol=1e-6)


def test_the_outer_polytope_holds_all_that_is_reached_and_is_exact_without_an_unstable_relu(random):
    network = polytope.perceptron(8).double().requires_grad_(False)
    box = Box(
        *torch.tensor([-0.5, 0.5], dtype=torch.float64)[:, None, None, None, None].expand(
            2, 1, 2, 1, 1
        )
    )
    c, points = polytope.directions(16), polytope.reached(network, box, 500)
    assert (points @ c.T >= polytope.support(Bounds(network), box, c)).all()

    # every ReLU on: the network is affine, its image a parallelogram
    for layer in (network[0], network[2]):
        layer.bias.fill_(50)
    corners = torch.tensor([(a, b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)], dtype=torch.float64)
    exact = (network(corners[:, :, None, None]).flatten(1) @ c.T).amin(0)
    assert torch.allclose(polytope.support(Bounds(network), box, c), exact, atol=1e-3)


def test_corners_of_a_square():
    c = polytope.directions(4)
    square = polytope.corners(c, -torch.ones(4, dtype=torch.float64))
    assert torch.allclose(square.abs(), torch.ones(4, 2, dtype=torch.float64))
    assert polytope.area(square) == pytest.approx(4)


def test_minmax_keeps_norms_and_is_relus(random):
    x = torch.randn(64, 8, generator=random)
    a, b = x.split(4, 1)
    assert torch.allclose(minmax(x).norm(dim=1), x.norm(dim=1), rtol=1e-6)
    assert torch.allclose(
        minmax(x), torch.cat([b - F.relu(b - a), a + F.relu(b - a)], 1), atol=1e-6
    )
    one = x[:, :1]
    assert torch.allclose(layers.absolute_by_minmax(one), one.abs(), atol=1e-6)


def test_only_minmax_keeps_the_gradients_norm():
    assert layers.gradient_norms("MinMax", 6, 16) == pytest.approx([1] * 7, abs=1e-5)
    relu = layers.gradient_norms("ReLU", 6, 16)
    assert relu == sorted(relu, reverse=True) and relu[-1] < 0.5


def test_the_gap_of_cities_with_a_known_answer():
    """In one city roofs are the bright pixels, in the other the dark ones."""
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 2:5, 3:6] = 1
    bright = labels[:, None].float()
    known = {"bright": (bright, labels), "dark": (1 - bright, labels)}

    def learn(images, labels):
        """z₁ = ±(x − ½) against z₀ = 0, the sign from what roofs look like."""
        sign = 1.0 if images[labels[:, None] == 1].mean() > 0.5 else -1.0
        return lambda x: torch.cat([torch.zeros_like(x), sign * (x - 0.5)], 1)

    table = cities.matrix(learn, known, known)
    assert table.tolist() == [[1, 0], [0, 1]]
    assert cities.gap(table) == (1, 0)


# What the topics learn from and with


def test_squares_are_cut_row_by_row():
    picture = torch.arange(24.0).view(1, 1, 4, 6)
    squares = towns.cut(picture, 2)
    assert squares.shape == (6, 1, 2, 2)
    assert squares[1, 0].tolist() == [[2, 3], [8, 9]] and squares[3, 0].tolist() == [
        [12, 13],
        [18, 19],
    ]


def test_a_town_is_the_same_every_time_and_has_buildings():
    image, labels = towns.scene("brickvale", 1, 64)
    towns.scene.cache_clear()
    again, _ = towns.scene("brickvale", 1, 64)
    assert torch.equal(image, again) and image.shape == (3, 64, 64)
    assert image.min() >= 0 and image.max() <= 1 and set(labels.unique().tolist()) <= {0, 1}


def test_descent_descends_on_a_convex_loss(random):
    images = torch.rand(8, 3, 8, 8, generator=random)
    network = segmenter(nn.Conv2d(3, 2, 1), images)
    losses = fit(network, images, (images[:, 0] > 0.5).long(), 60, rate=0.1)
    assert losses[-1] < losses[0] / 2 and not network.training


# The command


def test_every_topic_has_its_function_and_a_name_of_its_own():
    assert len(set(NAMES)) == 13
    for topic in topics.TOPICS:
        source = Path(topics.__file__).with_name(f"{topic.module}.py").read_text(encoding="utf-8")
        functions = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        assert topic.name.replace("-", "_") in functions


def test_the_document_has_every_topic_in_the_lectures_order():
    text = (Path(__file__).parents[2] / "docs/course.md").read_text(encoding="utf-8")
    places = [text.index(f"python -m pipeline course {name}\n") for name in NAMES]
    assert places == sorted(places)


def test_a_topic_is_listed_run_and_drawn_and_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        topics.Topic, "run", lambda self: Lesson({"by hand − autograd": 0.0}, board(1)[0])
    )
    topics.contents()
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    for _ in range(2):  # its own picture it may write again
        path = topics.teach("pooling", tmp_path / "new/folder")
        assert path.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "0.0e+00" in said and str(path) in said


def test_an_unknown_topic_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="'least-square'; did you mean least-squares"):
        topics.teach("least-square", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_not_the_courses_stays(tmp_path):
    (tmp_path / "svm.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="not a picture of the course; move it away"):
        topics.teach("svm", tmp_path)
    assert (tmp_path / "svm.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("module", "name", "tiny"),
    [
        ("by_hand", "least_squares", {"steps": 3}),
        ("by_hand", "backpropagation", {"steps": 2, "size": 32}),
        ("layers", "pooling", {"side": 64}),
        ("layers", "minmax_against_relu", {"steps": 2, "depth": 3}),
        ("windows", "windows", {"side": 40, "width": 2}),
        ("polytope", "polytope", {"width": 4, "count": 50, "cuts": 8}),
        ("attacked", "adversarial_training", {"steps": 2, "count": 2, "width": 4}),
        ("attacked", "adversarial_example", {"steps": 2, "scenes": 1, "size": 64}),
        ("cities", "cities", {"steps": 2, "scenes": 1, "count": 2}),
        ("pixels", "svm", {"steps": 2, "scenes": 1}),
        ("pixels", "mlp", {"steps": 2, "scenes": 1, "width": 4}),
        ("encoders", "encoders", {"steps": 2, "scenes": 1, "names": ("lenet",)}),
    ],
)
def test_a_topic_runs_small(module, name, tiny, tmp_path):
    lesson = getattr(import_module(f"pipeline.course.{module}"), name)(**tiny)
    lesson.picture.savefig(tmp_path / "picture.png")
    assert lesson.numbers
    for what, value in lesson.numbers.items():
        if "autograd" in what or "loss.backward" in what or ("largest" in what and " − " in what):
            assert value < 1e-6, what
