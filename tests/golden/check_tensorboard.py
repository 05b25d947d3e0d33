"""A check by hand: event files that segzero writes, read by TensorBoard's own readers.

Usage: python check_tensorboard.py [SEGZERO (default: ./segzero)]

Run it from the root of the tree. Trains the embedded model for two steps with the loggers
tensorboard, csv and jsonl, goes on to a third from step 1, so that step 2 stands in two files, and
compares what TensorBoard reads (EventAccumulator, and the server that `tensorboard --logdir` starts)
with metrics.jsonl and the PNG files.
Ran with tensorboard 2.21.0, tensorboard-data-server 0.7.2.
"""
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SEGZERO = sys.argv[1] if len(sys.argv) > 1 else "./segzero"
PORT = 6917
# What only metrics.jsonl has under these names.
OURS = ("time", "seconds", "step")


def train(folder, *words):
    subprocess.run([SEGZERO, "--threads", "1", "recipes/refcocog_grpo.lua",
                    "trainer.logger=tensorboard,csv", "data.refshapes_val_rows=4",
                    "data.rollout_batch_size=2", "worker.rollout.n=2", *words], check=True,
                   stdout=subprocess.DEVNULL)


def near(a, b):
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30)


def records(folder):
    with open(folder + "/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def check_accumulator(folder):
    events = EventAccumulator(folder + "/tensorboard",
                              size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    compared = 0
    for record in records(folder):
        for name, value in record.items():
            if name in OURS or name not in tags["scalars"]:
                continue
            found = [e.value for e in events.Scalars(name) if e.step == record["step"]]
            assert len(found) == 1, (name, record["step"], found)
            assert near(found[0], value), (name, found, value)
            compared += 1
    assert compared > 150, compared
    steps = [e.step for e in events.Scalars("critic/score/mean")]
    assert steps == [1, 2, 3], steps
    texts = [e for e in events.Tensors("run/text_summary" if "run/text_summary" in tags["tensors"]
                                       else "run")]
    said = "\n".join(t.tensor_proto.string_val[0].decode() for t in texts)
    assert "policy Qwen2.5-VL" in said and "held-out reward after" in said, said
    for name in "before", "after":
        image = events.Images(name)[-1]
        with open(f"{folder}/{name}.png", "rb") as f:
            png = f.read()
        # A run that goes on writes its second image under a name with the step.
        assert image.width > 100 and image.height > 100
        assert image.encoded_image_string[:8] == png[:8]
    return compared, tags


def get(path, **query):
    url = f"http://localhost:{PORT}/data/{path}"
    if query:
        url += "?" + urllib.parse.urlencode(query)
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read()


def check_server(folder):
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder,
                               "--port", str(PORT)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            time.sleep(0.5)
            try:
                runs = json.loads(get("runs"))
            except OSError:
                continue
            if runs:
                break
        assert runs == ["tensorboard"], runs
        shown = json.loads(get("plugin/scalars/scalars", run=runs[0], tag="critic/score/mean"))
        assert [row[1] for row in shown] == [1, 2, 3], shown
        want = [r["reward"] for r in records(folder) if "reward" in r]
        assert all(near(row[2], w) for row, w in zip(shown, want)), (shown, want)
        texts = json.loads(get("plugin/text/text", run=runs[0], tag="run"))
        assert any("policy Qwen2.5-VL" in t["text"] for t in texts), texts
        settings = json.loads(get("plugin/text/text", run=runs[0], tag="settings"))
        assert "worker.rollout.n = 2" in settings[0]["text"], settings
        images = json.loads(get("plugin/images/images", run=runs[0], tag="after", sample=0))
        png = get("plugin/images/individualImage?" + images[-1]["query"])
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        return len(texts), len(images)
    finally:
        server.terminate()
        server.wait()


def check_csv(folder):
    with open(folder + "/metrics.csv") as f:
        rows = list(csv.DictReader(f))
    steps = {r["step"]: r for r in records(folder) if "reward" in r}
    assert [int(r["step"]) for r in rows] == [1, 2, 3]
    for row in rows:
        assert near(float(row["critic/score/mean"]), steps[int(row["step"])]["reward"])
        assert near(float(row["actor/grad_norm"]), steps[int(row["step"])]["grad_norm"])


with tempfile.TemporaryDirectory() as place:
    run = place + "/run"
    train(run, "trainer.max_steps=2", "trainer.save_freq=1", f"trainer.save_checkpoint_path={run}")
    train(run, "trainer.max_steps=3", f"trainer.save_checkpoint_path={run}",
          f"trainer.load_checkpoint_path={run}/global_step_1", "trainer.save_freq=1")
    assert len(os.listdir(run + "/tensorboard")) == 2
    count, tags = check_accumulator(run)
    texts, images = check_server(run)
    check_csv(run)
    print(f"{count} scalars of {len(tags['scalars'])} tags, {texts} texts, {images} images: "
          "as TensorBoard reads them")
