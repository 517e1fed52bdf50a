"""More images from the same, for reconstruction."""

import torch

from zaq_plugin.zero_shot.sources import copies


def test_the_pool_its_mirror_image_and_mixtures() -> None:
    pool = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    images = copies(pool, 4, torch.Generator().manual_seed(1))
    assert images.shape == (24, 3, 4, 5)
    assert torch.equal(images[:6], pool)
    assert torch.equal(images[6:12], torch.stack([image.flip(-1) for image in pool]))
    sources = images[:12].flatten(1).double()
    for mixture in images[12:].flatten(1).double():
        # The mixture lies on the line between two of the sources: the best pair leaves nothing.
        gaps = [
            float(
                (a + ((mixture - a) @ (b - a)) / (b - a).square().sum() * (b - a) - mixture).norm()
            )
            for i, a in enumerate(sources)
            for b in sources[i + 1 :]
        ]
        alone = min(float((mixture - a).norm()) for a in sources)
        assert min(*gaps, alone) < 1e-5


def test_once_is_the_pool_and_twice_has_no_mixtures() -> None:
    pool = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    state = rng.get_state()
    assert torch.equal(copies(pool, 1, rng), pool)
    assert torch.equal(copies(pool, 2, rng), torch.cat([pool, pool.flip(-1)]))
    assert torch.equal(rng.get_state(), state)
