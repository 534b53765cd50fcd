"""Adversarial training on a folder of images: one folder for each class below train/ and test/."""

import tempfile
from pathlib import Path

import torch
from PIL import Image

import robust_lr as rlr

folder = Path(tempfile.mkdtemp())
source = rlr.data.load("fashion-mnist-mini", split="test")
for position in range(120):  # your images, in practice
    pixels, label, id_ = source[position]
    place = folder / ("train" if position < 96 else "test") / f"class-{label}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * pixels[0]).round().to(torch.uint8).numpy()).convert("RGB").save(place / f"{id_}.png")

config = rlr.config.load(
    "lrnet26_fashion_mnist_mini",
    [
        f"data.name=folder:{folder}",
        "model.width=0.0625",
        "attack.steps=2",
        "attack.step_size=8/255",
        "train.epochs=1",
        "train.batch_size=16",
        "train.warmup_epochs=0",
        "train.milestones=[]",
    ],
)
for step in rlr.train_run(config, folder / "run"):
    print(f"step {step.step} of {step.steps}: loss {step.loss:.3f}")
model = rlr.load_model(folder / "run")
test = rlr.data.load(f"folder:{folder}", split="test")
print(rlr.evaluate(model, test, "lrnet-untargeted", allow=["normalization"]))
