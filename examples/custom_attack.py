"""An attack of your own, compared with one that ships, on the same images and with the same verification.

An attack is a function of a model, images and labels that returns adversarial images.
"""

import torch

import robust_lr as rlr

EPS = 16 / 255
model = rlr.load_model()
images, labels, ids = rlr.data.load("fashion-mnist-mini", split="test").take(100).batch(torch.arange(100))


def random_corners(model, x, labels, tries=20):
    """Try random corners of the ball, and keep for each image the one with the highest loss."""
    best, highest = x.clone(), torch.full((len(x),), -torch.inf)
    for _ in range(tries):
        corner = (x + EPS * torch.randn_like(x).sign()).clamp(0, 1)
        loss = torch.nn.functional.cross_entropy(model(corner), labels, reduction="none")
        better = loss > highest
        best[better], highest[better] = corner[better], loss[better]
    return best


torch.manual_seed(0)
with torch.no_grad():
    mine = random_corners(model, images, labels)
theirs = rlr.attacks.pgd_linf(model, images, labels, eps=EPS, step_size=EPS / 4, steps=20)
for name, adversarial in {"clean": images, "random corners": mine, "PGD-20": theirs}.items():
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    print(f"{name}: {(model(adversarial).argmax(1) == labels).float().mean():.0%} right")
