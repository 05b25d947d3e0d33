"""check_hub.py - does huggingface_hub agree with segzero about the cache? Run by hand, from the root:

    python3 tests/golden/check_hub.py          (huggingface_hub 2.4.0, 0.36 and 0.24 were tried)

Both fetch the same repositories from tests/support/hub_server.lua into caches of their own. Then each
reads what the other has stored, without a network, and both caches must hold the same files, links
and refs. Leaves out: faults (tests/system/test_hub.lua).
"""
import os
import subprocess
import sys
import tempfile

MODEL = "models/tiny/qwen2.5-vl"
SET = "tests/golden/hub_sets/refCOCOg_2k_840"


def segzero(words, home, url, offline):
    env = dict(os.environ, HF_HOME=home, HF_ENDPOINT=url, HF_HUB_OFFLINE="1" if offline else "")
    out = subprocess.run(["./segzero", *words], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.strip().splitlines()[-1]


def python(home, url, offline, repo, kind):
    code = ("import huggingface_hub as h; print(h.snapshot_download(%r, repo_type=%r, "
            "local_files_only=%r))" % (repo, kind, offline))
    env = dict(os.environ, HF_HOME=home, HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1")
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.strip().splitlines()[-1]


def tree(home):
    """Files and links under the repositories: {path: size or link}, without notes of either tool."""
    found = {}
    for folder, _, names in os.walk(home + "/hub"):
        for name in names:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, home)
            if "/.segzero/" in key or "/trees/" in key or "/.locks/" in key or "CACHEDIR" in key:
                continue
            found[key] = os.readlink(path) if os.path.islink(path) else open(path, "rb").read()
    return found


def serve(kind, repo, folder):
    words = ["./segzero", "tests/support/hub_server.lua", kind, repo, folder]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().strip()


def check(kind, repo, folder, words):
    server, url = serve(kind + "s", repo, folder)
    ours = tempfile.mkdtemp()
    theirs = tempfile.mkdtemp()
    try:
        segzero(["fetch", *words], ours, url, False)
        python(theirs, url, False, repo, kind)
        # README.md is read by nobody here.
        a = {k: v for k, v in tree(ours).items()}
        b = tree(theirs)
        extra = [k for k in b if k not in a and "README" not in k and "/blobs/" not in k]
        assert not extra, extra
        for key, value in a.items():
            assert b.get(key) == value, key
    finally:
        server.kill()
    # Without the server.
    print(python(ours, url, True, repo, kind))
    print(segzero(["fetch", *words], theirs, url, True))


check("model", "org/name", MODEL, ["org/name"])
check("dataset", "org/set", SET, ["--dataset", "org/set"])
print("the same cache")
