-- test_model_merger.lua - `segzero model_merger` as a user calls it: the arguments of Seg-Zero's
-- and verl's programs, folders that need no merging, a full disk; then the checkpoint opened by its
-- path.
--
--   ./segzero tests/system/test_model_merger.lua

local check = require "tests.support.check"
local host = require "segzero.host"
local process = require "tests.support.process"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local GOLDEN = "tests/golden/dtensor/seg_zero/actor"
local TIMEOUT = 60

local root = os.tmpname()
os.remove(root)
files.make_dir(root)

local made = 0

-- A run of Seg-Zero with one checkpoint; its folder actor and the step's folder.
local function new_run()
  made = made + 1
  local step = ("%s/run%d/global_step_50"):format(root, made)
  files.make_dir(step)
  assert(os.execute(("cp -r %s %s"):format(GOLDEN, step)))
  return step .. "/actor", step
end

local function run(...)
  return process.run({ host.executable, "--threads", "1", ... }, { timeout = TIMEOUT })
end

local function prints(wanted_status, pattern, ...)
  local output, status = run(...)
  local words = table.concat({ ... }, " ")
  check.equal(status, wanted_status, words .. ": " .. output)
  check.ok(output:find(pattern), ("%s: wants '%s', got '%s'"):format(words, pattern, output))
end

check.case("the arguments of Seg-Zero's and verl's programs", function()
  local actor = new_run()
  prints(0, "57 tensors, 18%.7 kB, from 3 files %(fsdp 3%)", "training_scripts/model_merger.py",
    "--local_dir", actor)
  check.ok(files.exists(actor .. "/huggingface/model.safetensors"), "written where theirs writes")
  local out = root .. "/verl"
  prints(0, "saved " .. out .. ", bf16", "model_merger", "merge", "--backend", "fsdp",
    "--local_dir", actor, "--target_dir", out)
  local step = actor:gsub("/actor$", "")
  prints(0, "saved " .. out .. "2", "model_merger", "local_dir=" .. step, "target_dir=" .. out .. 2)
  check.equal(folders.list(out), { "config.json", "model.safetensors" }, "the files of the folder")
end)

check.case("mistakes are one line", function()
  local actor, step = new_run()
  local function refused(pattern, ...)
    prints(2, "^model_merger: " .. pattern, "model_merger", ...)
  end
  refused("local_dir is missing: write %-%-local_dir RUN/global_step_N/actor\n")
  refused("hf_upload_path: nothing is uploaded", "--local_dir", actor, "--hf_upload_path", "me/x")
  refused("local_dir: .*nowhere: there is no such folder\n", "--local_dir", root .. "/nowhere")
  refused("local_dir: .* is a run of Seg%-Zero, EasyR1 or verl: name a checkpoint of it",
    "--local_dir", (step:gsub("/[^/]*$", "")))
  refused("target_dir: .* holds files already", "--local_dir", actor, "--target_dir", actor)
  refused("backend is 'megatron', expected one of: fsdp\n", "--backend", "megatron")
  os.remove(actor .. "/model_world_size_3_rank_2.pt")
  prints(1, "^model_merger: .* lacks model_world_size_3_rank_2%.pt", "model_merger", "--local_dir",
    actor)
end)

check.case("folders that need no merging", function()
  local actor = new_run()
  assert(run("model_merger", "--local_dir", actor))
  prints(0, "^nothing to merge: .*/actor/huggingface holds the merged weights already",
    "model_merger", "--local_dir", actor)
  prints(0, "^nothing to merge: models/tiny/qwen2%.5%-vl is a whole model", "model_merger",
    "--local_dir", "models/tiny/qwen2.5-vl")
  local checkpoint = root .. "/ours/global_step_3"
  files.make_dir(checkpoint)
  assert(os.execute("cp models/tiny/qwen2.5-vl/* " .. checkpoint))
  prints(0, "^nothing to merge: .*/global_step_3 is a whole model", "model_merger", "--local_dir",
    checkpoint .. "/actor")
end)

check.case("a write that fails leaves the folder as it was", function()
  local actor = new_run()
  local before = folders.list(actor .. "/huggingface")
  local command = ("ulimit -f 8; trap '' XFSZ; %s model_merger --local_dir %s")
    :format(host.executable, actor)
  local output, status = process.run({ "bash", "-c", command }, { timeout = TIMEOUT })
  check.equal(status, 1, output)
  check.ok(output:find("cannot write .*model%.safetensors%.tmp: File too large"), output)
  check.equal(folders.list(actor .. "/huggingface"), before, "no new file")
end)

check.case("a checkpoint as a model", function()
  local actor, step = new_run()
  local names = { step, actor, actor .. "/huggingface" }
  for _, path in ipairs(names) do
    local advice = "which are not merged yet: segzero model_merger %-%-local_dir .*/actor\n"
    prints(2, "^infer: .*" .. advice, "examples/infer.lua", "--demo",
      "--reasoning_model_path", path)
    prints(2, "^segzero: .*" .. advice, "recipes/refcocog_grpo.lua",
      "worker.actor.model.model_path=" .. path)
    prints(1, "segzero: trainer%.load_checkpoint_path: the optimizer's state of another trainer "
      .. ".* is not read", "recipes/refcocog_grpo.lua", "trainer.load_checkpoint_path=" .. path)
    prints(1, "^segzero: .*not merged yet", "-e", ("require('segzero').model('%s')"):format(path))
  end
  assert(run("model_merger", "--local_dir", actor))
  for _, path in ipairs(names) do
    prints(1, "^model: " .. actor .. "/huggingface\n.*\ninfer: [^\n]*tokenizer%.json is missing",
      "examples/infer.lua", "--demo", "--reasoning_model_path", path)
  end
end)

os.execute("rm -rf " .. root)
check.finish()
