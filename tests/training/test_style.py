import torch

from pipeline.training.style import restyled


def test_an_image_takes_on_another_s_mean_and_deviation_and_keeps_its_shapes():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 16) * torch.linspace(0.2, 0.9, 6).view(6, 1, 1, 1)
    styled = restyled(images, 1, torch.Generator().manual_seed(0))
    mean, std = (getattr(images, of)((2, 3)) for of in ("mean", "std"))
    new_mean, new_std = (getattr(styled, of)((2, 3)) for of in ("mean", "std"))
    assert (new_mean >= mean.amin(0) - 1e-5).all() and (new_mean <= mean.amax(0) + 1e-5).all()
    assert (new_std >= std.amin(0) - 1e-3).all() and (new_std <= std.amax(0) + 1e-3).all()
    assert (new_mean - mean).abs().max() > 0.1
    shapes = [
        (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True) for x in (images, styled)
    ]
    assert torch.allclose(*shapes, atol=1e-4)


def test_none_and_images_alike_stay_as_they_are():
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(
        4, -1, -1, -1
    )
    assert torch.equal(restyled(images, 0), images)
    assert torch.allclose(restyled(images, 1), images, atol=1e-5)
