"""A network of timm under attack. Give it weights with `checkpoint_path=`; here they are random."""

import timm
import torch

import robust_lr as rlr

torch.manual_seed(0)
data = rlr.data.load("fashion-mnist-mini", split="test").take(16)
network = timm.create_model("resnet10t", num_classes=10, in_chans=1)
protocol = rlr.protocols.PGD(eps=4 / 255, step_size=1 / 255, steps=5)
print(rlr.evaluate(network, data, protocol, name="resnet10t", allow=["normalization"]))
