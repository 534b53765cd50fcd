"""Is one model more robust than another? Paired, image by image, and written as a page."""

import copy
import tempfile
from pathlib import Path

import torch

import robust_lr as rlr
from robust_lr.reports.html import html
from robust_lr.reports.record import build

first = rlr.load_model()
second = copy.deepcopy(first)  # the same network with disturbed weights
torch.manual_seed(0)
with torch.no_grad():
    for parameter in second.parameters():
        parameter.add_(0.05 * parameter.std(correction=0) * torch.randn_like(parameter))

data = rlr.data.load("fashion-mnist-mini", split="test").take(100)
protocol = rlr.protocols.PGD(name="pgd-10", eps=16 / 255, step_size=4 / 255, steps=10)
folder = Path(tempfile.mkdtemp())
rlr.benchmark({"shipped": first, "disturbed": second}, data, [protocol], out=folder)
comparison = rlr.compare([folder / "shipped" / "pgd-10", folder / "disturbed" / "pgd-10"])
for pair in comparison.pairs_in("robust"):
    low, high = pair.interval
    print(f"{pair.first} - {pair.second}: {pair.difference:+.1%} [{low:+.1%}, {high:+.1%}], p = {pair.p_holm:.2g}")
(folder / "report.html").write_text(html(build([folder])), encoding="utf-8")
print(f"written to {folder / 'report.html'}")
