-- test_journeys.lua - what a user of Seg-Zero does from the first command to the last, in a folder
-- that looks like a checkout of theirs: train, evaluate the checkpoint, ask it, train on.
--
-- Programs are called by their short names from that folder, as after `make install`. Models and
-- sets are the embedded ones and those of tests/golden. Leaves out: how good the answers are.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local scripts = require "tests.support.launch_scripts"

local place = mini.folder()
local SAM2 = host.root .. "/models/tiny/sam2"
local SETS = host.root .. "/tests/golden/hub_sets/"

-- What makes a run small.
local SMALL = " data.rollout_batch_size=2 worker.actor.global_batch_size=2 worker.rollout.n=2"
  .. " data.max_response_length=8 data.resize=112x112 data.solution_frame=840x840"

local function link(from, to)
  local command = ("ln -s %s %s"):format(mini.quoted(from), mini.quoted(place .. "/" .. to))
  assert(os.execute(command) == 0)
end

for _, folder in ipairs { "bin", "data", "pretrained_models", "training_scripts", "out" } do
  files.make_dir(place .. "/" .. folder)
end
files.write(place .. "/bin/segzero", ('#!/bin/sh\nexec %s --threads 1 "$@"\n'):format(
  mini.quoted(host.executable)))
assert(os.execute("chmod +x " .. mini.quoted(place .. "/bin/segzero")) == 0)
link(SETS .. "VisionReasoner_multi_object_saved", "data/VisionReasoner_multi_object_1k_840")
link(host.root .. "/models/tiny/qwen2.5-vl-several", "pretrained_models/Qwen2.5-VL-7B-Instruct")
link(host.root .. "/tests/golden/annotations/refer_seg", "refer_seg")
local yaml = "training_scripts/visionreasoner_7b.yaml"
files.write(place .. "/" .. yaml, scripts.as_yaml(scripts.yaml[yaml]))

-- Runs a command line in the folder; returns its output. It must succeed.
local function run(command)
  local line = "cd %s && PATH=%s/bin:$PATH && { %s\n} 2>&1; echo \"exit $?\""
  local quoted = mini.quoted(place)
  local pipe = assert(io.popen(line:format(quoted, quoted, command)))
  local text = pipe:read "*a"
  pipe:close()
  check.ok(text:find "exit 0\n$", command .. ":\n" .. text)
  check.ok(not text:find "stack traceback", "no traceback")
  return text
end

local function exists(name) check.ok(files.exists(place .. "/" .. name), name .. " exists") end

check.case("Seg-Zero's scripts: train, evaluate in parts, ask", function()
  local arguments
  for _, script in ipairs(scripts.seg_zero) do
    if script.name:find "run_visionreasoner_7b$" then arguments = script.arguments end
  end
  run("segzero recipes/refcocog_grpo.lua " .. table.concat(arguments, " ") .. SMALL)
  local checkpoint = "visionreasoner_workdir/run_visionreasoner_7b"
  exists(checkpoint .. "/global_step_1/model.safetensors")

  -- The loop of the evaluation script, with two parts.
  local text = run(([[
mkdir -p results
for idx in 0 1; do
  segzero recipes/evaluate_vision_reasoner.lua --reasoning_model_path %s \
    --segmentation_model_path %s --output_path results --test_data_path %s \
    --idx $idx --num_parts 2 --batch_size 100 max_new_tokens=8 &
done
wait
segzero recipes/evaluate.lua --output_dir results]]):format(checkpoint, SAM2,
    SETS .. "ReasonSeg_test"))
  exists "results/output_0.json"
  exists "results/output_1.json"
  check.ok(text:find "gIoU %(average of per image IoU%): %d%.%d%d%d%d\n", text)
  check.ok(text:find "rows=3 [^\n]*protocol=visionreasoner\nexit", text)

  text = run(("segzero examples/infer.lua --reasoning_model_path %s --segmentation_model_path %s "
    .. "--image_path %s --query 'the lines' --task vqa --max_new_tokens 8"):format(checkpoint, SAM2,
    host.root .. "/examples/images/refshapes_after.png"))
  check.ok(text:find("model: " .. checkpoint .. "/global_step_1", 1, true), text)
end)

check.case("annotations of refer: prepare, train, evaluate", function()
  run "segzero recipes/prepare_data.lua data=refer_seg/refcocog@train output=data/ref several=true"
  exists "data/ref/data/train-00000-of-00001.parquet"
  run("segzero recipes/vision_reasoner_grpo.lua data.train_files=data/ref data.val_files= "
    .. "worker.actor.model.model_path=pretrained_models/Qwen2.5-VL-7B-Instruct trainer.max_steps=1 "
    .. "trainer.save_checkpoint_path=out/refer" .. SMALL)
  local text = run("segzero recipes/evaluate.lua data=refer_seg/refcocog@val model_path=out/refer "
    .. "several=true max_new_tokens=8 output_path=out/refer_eval")
  check.ok(text:find "gIoU=[%d.]+ .* rows=3 ", text)
end)

check.case("a folder of save_to_disk: train, go on, evaluate", function()
  local train = "segzero recipes/vision_reasoner_grpo.lua trainer.save_freq=1 data.val_files= "
    .. "data.train_files=data/VisionReasoner_multi_object_1k_840 "
    .. "worker.actor.model.model_path=pretrained_models/Qwen2.5-VL-7B-Instruct" .. SMALL
  run(train .. " trainer.max_steps=1 trainer.save_checkpoint_path=out/saved")
  local text = run(train .. " trainer.max_steps=2 trainer.load_checkpoint_path=out/saved")
  check.ok(text:find("resumed at step 1", 1, true), text)
  exists "out/saved/global_step_2/DONE"
  text = run("segzero recipes/evaluate.lua data=data/VisionReasoner_multi_object_1k_840 "
    .. "model_path=out/saved several=true max_new_tokens=8 output_path=out/saved_eval")
  check.ok(text:find "gIoU=none .* rows=2 ", text)
end)

mini.remove()
check.finish()
