"""A check by hand: offline runs that segzero writes for Weights & Biases, read by wandb's own reader.

Usage: python check_wandb.py [SEGZERO (default: ./segzero)]

Run it from the root of the tree. Trains the embedded model for three steps with the loggers that
Seg-Zero's files name, reads the run with the datastore and the messages that `wandb sync` uses, and
compares history, settings and exit with metrics.jsonl. A long settings value makes records that
cross blocks of 32768 bytes. A newer wandb has no reader in Python: there `wandb sync` itself sends
the run to a server of this script, which compares the history that arrives.
Ran with wandb 0.17.9 and protobuf 5.29 (reader), and wandb 0.31.0 (sync).
"""
import glob
import gzip
import http.server
import json
import math
import os
import subprocess
import sys
import tempfile
import threading

import wandb
from wandb.proto import wandb_internal_pb2 as messages

try:
    from wandb.sdk.internal import datastore
except ImportError:
    datastore = None

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


class Server(http.server.BaseHTTPRequestHandler):
    """Answers what `wandb sync` asks, and keeps the histories that it sends."""
    history = []

    def log_message(self, *_):
        pass

    def answer(self, body):
        if "graphql" not in self.path:
            stream = (json.loads(body or b"{}").get("files") or {}) if body[:1] == b"{" else {}
            for line in stream.get("wandb-history.jsonl", {}).get("content", []):
                Server.history.append(json.loads(line))
            return {"exitcode": None, "limits": {}}
        asked = json.loads(body)
        if "UpsertBucket" in asked["query"]:
            project = {"id": "UA==", "name": "p", "entity": {"id": "RQ==", "name": "e"}}
            bucket = {"id": "QQ==", "name": asked["variables"].get("name"), "displayName": "d",
                      "config": "{}", "historyLineCount": 0, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "CreateRunFiles" in asked["query"]:
            host = "http://%s:%d/up" % self.server.server_address
            made = [{"name": f, "uploadUrl": host} for f in asked["variables"]["files"]]
            return {"data": {"createRunFiles": {"runID": "QQ==", "uploadHeaders": [],
                                                "files": made}}}
        viewer = {"id": "V", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer, "model": {"bucket": None}, "project": None,
                         "serverInfo": {"features": []}}}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        reply = json.dumps(self.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_PUT = do_GET = do_POST


def check_sync(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(os.environ, WANDB_BASE_URL="http://127.0.0.1:%d" % server.server_port,
               WANDB_API_KEY="0" * 40, HOME=folder)
    paths = glob.glob(folder + "/wandb/offline-run-*")
    done = subprocess.run([os.path.dirname(sys.executable) + "/wandb", "sync", *paths], env=env, cwd=folder,
                          capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert "Finished syncing" in done.stderr + done.stdout, done.stderr
    compared = 0
    with open(folder + "/metrics.jsonl") as f:
        for line in map(json.loads, f):
            sent = [h for h in Server.history if h["_step"] == line["step"]]
            assert len(sent) == 1, (line["step"], len(sent))
            for name, value in line.items():
                if name in sent[0]:
                    assert math.isclose(sent[0][name], value, rel_tol=1e-12), name
                    compared += 1
    return len(Server.history), compared


with tempfile.TemporaryDirectory() as place:
    words = ["recipes/refcocog_grpo.lua", "trainer.logger=['console','wandb']",
             "trainer.project_name=easy_r1", "trainer.max_steps=3", "data.refshapes_val_rows=4",
             "data.rollout_batch_size=2", "worker.rollout.n=2",
             "trainer.experiment_name=" + "a" * 70000,
             f"trainer.save_checkpoint_path={place}/run"]
    subprocess.run([SEGZERO, "--threads", "1", *words], check=True, stdout=subprocess.DEVNULL)
    count, numbers = (check if datastore else check_sync)(place + "/run")
    what = "records read" if datastore else "histories synced"
    assert numbers > 150, numbers
    print(f"wandb {wandb.__version__}: {count} {what}, {numbers} numbers are those of the run")
