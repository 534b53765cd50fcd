"""The robust accuracy of your own model: any torch.nn.Module that maps pixels in [0, 1] to logits."""

from torch import nn

import robust_lr as rlr

data = rlr.data.load("fashion-mnist-mini", split="test").take(100)
model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))  # yours, trained; normalization belongs inside
protocol = rlr.protocols.PGD(eps=8 / 255, step_size=2 / 255, steps=20)
result = rlr.evaluate(model, data, protocol, allow=["normalization"])  # this one is not trained
print(result)
