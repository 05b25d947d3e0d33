"""A check by hand: offline runs that segzero writes for Weights & Biases, read by wandb's own reader.

Usage: python check_wandb.py [SEGZERO (default: ./segzero)]

Run it from the root of the tree. Trains the embedded model for three steps with the loggers that
Seg-Zero's files name, reads the run with the datastore and the messages that `wandb sync` uses, and
compares history, settings and exit with metrics.jsonl. A long settings value makes records that
cross blocks of 32768 bytes.
Ran with wandb 0.17.9, the last series whose reader is in Python, and protobuf 5.29.
"""
import glob
import json
import math
import subprocess
import sys
import tempfile

import wandb
from wandb.proto import wandb_internal_pb2 as messages
from wandb.sdk.internal import datastore

SEGZERO = sys.argv[1] if len(sys.argv) > 1 else "./segzero"


def records_of(path):
    wandb._assert_is_internal_process = True
    store = datastore.DataStore()
    store.open_for_scan(path)
    found = []
    while True:
        data = store.scan_data()
        if data is None:
            return found
        record = messages.Record()
        record.ParseFromString(data)
        assert record.SerializeToString() == data, (record.WhichOneof("record_type"), data[:200])
        found.append(record)


def name_of(item):
    return item.key or "/".join(item.nested_key)


def check(folder):
    paths = glob.glob(folder + "/wandb/offline-run-*/run-*.wandb")
    assert len(paths) == 1, paths
    records = records_of(paths[0])
    assert [r.num for r in records] == list(range(1, len(records) + 1))
    kinds = [r.WhichOneof("record_type") for r in records]
    assert kinds[:2] == ["header", "run"] and kinds[-1] == "exit", kinds
    run = records[1].run
    settings = {name_of(i): json.loads(i.value_json) for i in run.config.update}
    with open(folder + "/config.json") as f:
        assert settings == json.load(f)
    assert run.project == "easy_r1" and run.run_id in paths[0], run.project

    with open(folder + "/metrics.jsonl") as f:
        lines = [json.loads(line) for line in f]
    compared = 0
    steps = []
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        step = record.history.step.num
        steps.append(step)
        numbers = {name_of(i): json.loads(i.value_json) for i in record.history.item}
        for line in lines:
            for name, value in line.items():
                if line["step"] == step and name in numbers:
                    assert math.isclose(numbers[name], value, rel_tol=1e-12), name
                    compared += 1
    assert steps == [0, 1, 2, 3], steps
    said = "".join(r.output_raw.line for r in records)
    assert "policy Qwen2.5-VL" in said
    return len(records), compared


with tempfile.TemporaryDirectory() as place:
    words = ["recipes/refcocog_grpo.lua", "trainer.logger=['console','wandb']",
             "trainer.project_name=easy_r1", "trainer.max_steps=3", "data.refshapes_val_rows=4",
             "data.rollout_batch_size=2", "worker.rollout.n=2",
             "trainer.experiment_name=" + "a" * 70000,
             f"trainer.save_checkpoint_path={place}/run"]
    subprocess.run([SEGZERO, "--threads", "1", *words], check=True, stdout=subprocess.DEVNULL)
    count, numbers = check(place + "/run")
    print(f"{count} records, {numbers} numbers: as wandb {wandb.__version__} reads them")
