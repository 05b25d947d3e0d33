-- test_merge.lua - checkpoints of Seg-Zero and EasyR1 merged (tests/golden/make_dtensor.py made those in
-- tests/golden/dtensor): every bit of the weights, transformers' logits, uneven shards, and one line for
-- each kind of damage.
--
--   ./segzero tests/unit/test_merge.lua

local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local sz = require "segzero"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local merge = require "segzero.merge"
local tensor = require "segzero.core.tensor"

local GOLDEN = "tests/golden/dtensor/"

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

local made = 0

local function new_path()
  made = made + 1
  return ("%s/%d"):format(dir, made)
end

local function bits_of(t)
  return require("ffi").string(tensor.data(t), t:numel() * tensor.WIDTH[t:dtype()])
end

-- Compares a merged folder with what the whole model had; the number of its tensors.
local function check_weights(folder, case)
  local want = sz.safetensors.load(GOLDEN .. case .. "/expected.safetensors")
  local got = sz.safetensors.load_folder(folder)
  local count = 0
  for name, t in pairs(want) do
    count = count + 1
    local found = got[name]
    if check.ok(found, case .. " has " .. name) then
      check.equal({ found:dtype(), found:shape() }, { "bf16", t:shape() }, case .. " " .. name)
      check.ok(bits_of(found) == bits_of(t), case .. ": the bits of " .. name)
    end
  end
  for name in pairs(got) do check.ok(want[name], case .. ": only the model's: " .. name) end
  return count
end

-- ---- whole checkpoints ----
local EXPECTED = {
  { case = "seg_zero", tensors = 57, mesh = "fsdp 3", adapters = 0 },     -- an lm_head of its own
  { case = "one", tensors = 56, mesh = "", adapters = 0 },                -- plain tensors
  { case = "easyr1", tensors = 56, mesh = "ddp 2 x fsdp 2", adapters = 0 },
  { case = "lora", tensors = 56, mesh = "fsdp 2", adapters = 14 },
}

for _, want in ipairs(EXPECTED) do
  local case = want.case
  check.case("merged weights and logits: " .. case, function()
    local out = new_path()
    local result = merge.run { dir = GOLDEN .. case .. "/actor", out = out }
    check.equal({ result.mesh, result.adapters, result.tensors }, { want.mesh, want.adapters,
      want.tensors }, case .. ": mesh, adapters, tensors")
    check.equal(check_weights(out, case), want.tensors, case .. ": tensors compared")

    local t = sz.safetensors.load(GOLDEN .. case .. "/case.safetensors")
    local input = golden.input_of({ prefix = "s0.", images = {} }, t)
    input.pixel_values = t["s0.pixel_values"]
    local vl = sz.qwen_vl(out, { dtype = "f32" })
    local logits = vl:forward(input)
    local difference = golden.relative(golden.flat(logits), golden.flat(t["s0.logits"]))
    check.ok(difference < golden.LOGITS_TOL, ("%s: logits differ by %g"):format(case, difference))
    vl:free()
  end)
end

check.finish()
