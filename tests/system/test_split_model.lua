-- test_split_model.lua - a model that is split over ranks (tensor parallel) computes what the whole
-- one computes: logits, log-probabilities, every gradient, sampled tokens; in bf16, with adapters,
-- a frozen tower, 8 bits; with fewer key-value heads than shards; Qwen2.5-VL and Qwen2-VL.
--
-- Needs Open MPI. Each rank (tests/support/split_ranks.lua) has the whole model, too, and compares.
-- Left out: devices (test_split_devices.lua), training (test_split_training.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"
local split_runs = require "tests.support.split_runs"

if not runs.available() then
  check.finish()
  return
end

local place = runs.begin()
local FOLDERS = split_runs.folders(place)
local WIDE = split_runs.wide(place)

local KINDS = {
  { "plain", unpack(FOLDERS) }, { "lora", unpack(FOLDERS) }, { "frozen", unpack(FOLDERS) },
  { "bf16", FOLDERS[1] }, { "int8", FOLDERS[1], FOLDERS[2], WIDE },
  { "int4", FOLDERS[1], FOLDERS[2], WIDE },
  { "generate", unpack(FOLDERS) },
}

for _, kind in ipairs(KINDS) do
  for _, count in ipairs { 2, 4 } do split_runs.run(kind[1], count, kind) end
end

mini.remove()
check.finish()
