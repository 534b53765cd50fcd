"""The rows of an evaluation in pandas: which classes fall, and how near the others are to falling."""

import tempfile

import robust_lr as rlr
from robust_lr.results import export
from robust_lr.results.stored import read_evaluation

folder = tempfile.mkdtemp()
data = rlr.data.load("fashion-mnist-mini", split="test").take(100)
rlr.evaluate(rlr.load_model(), data, "lrnet-untargeted", out=folder)

# later, without model or images; on the command line: robust-lr rows FOLDER --csv rows.csv
frame = export.dataframe(export.records(read_evaluation(folder).rows))
frame["right"] = frame["clean"] == frame["label"]
print(frame.groupby("label")[["right", "robust"]].mean())
print(frame[frame["robust"]].nsmallest(5, "margin")[["id", "label", "margin"]])
