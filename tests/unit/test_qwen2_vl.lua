-- test_qwen2_vl.lua - what Qwen2-VL does differently from Qwen2.5-VL: against transformers on
-- random weights (tests/golden/qwen2_vl), saving, training steps, config errors; and the tables of
-- weights of both families' released sizes.
--
--   ./segzero tests/unit/test_qwen2_vl.lua
--
-- Leaves out: what both families share (test_qwen_vl.lua, test_processor.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local model = require "segzero.models.qwen_vl"
local weights = require "segzero.models.weights"

local C = sz.core.C

for _, id in ipairs { "V1", "V2" } do golden.run("qwen2_vl/" .. id) end

local place = mini.folder()

local function count_names(list, known)
  local n = 0
  for name in pairs(list) do
    if known[name] then n = n + 1 end
  end
  return n
end

check.case("a saved folder has the released files' names and the same weights", function()
  local folder, case, t = golden.case "qwen2_vl/V1"
  local vl = sz.qwen_vl(folder, { dtype = "bf16" })
  check.ok(tostring(vl):find("Qwen2-VL ", 1, true), "its text names the family: " .. tostring(vl))
  vl:save(place .. "/saved")

  local saved = sz.safetensors.load(place .. "/saved/model.safetensors")
  local parameters = vl:parameters()
  check.equal(count_names(saved, parameters), #vl.weights, "every weight is saved")
  check.equal(count_names(parameters, saved), #vl.weights, "and nothing else")
  for _, name in ipairs { "norm1.bias", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias" } do
    local full = "visual.blocks.0." .. name
    check.ok(saved[full], name .. " has its name of the released files")
  end
  local kept = files.read(place .. "/saved/config.json")
  check.equal(kept, files.read(folder .. "/config.json"), "config.json is kept")

  local again = sz.qwen_vl(place .. "/saved", { dtype = "bf16" })
  local input = golden.input_of(case.sequences[1], t)
  local want = vl:forward(input):totable()
  check.equal(again:forward(input):totable(), want, "a saved model gives the same logits")
  vl:free()
  again:free()
end)

-- ---- a miniature of this family ----

local VISION = {
  depth = 2, embed_dim = 32, hidden_size = 32, mlp_ratio = 2, num_heads = 2,
  hidden_act = "quick_gelu", in_chans = 3, patch_size = 14, spatial_patch_size = 14,
  spatial_merge_size = 2, temporal_patch_size = 2,
}
local CONFIG = {
  architectures = { "Qwen2VLForConditionalGeneration" }, model_type = "qwen2_vl",
  vision_config = VISION,
}
local dir = mini.write(place .. "/model", { config = CONFIG })

check.case("GRPO steps train the tower and resume bit for bit", function()
  local FC1 = "visual.blocks.0.mlp.fc1.weight"
  local folder = place .. "/whole"
  local cfg = mini.settings()
  files.make_dir(folder)
  local function start()
    return mini.trainer(cfg, { model = dir, reference = true, folder = folder })
  end
  local function numbers(trainer, name) return trainer.policy:parameters()[name]:totable() end

  -- Three steps in one run, saved after the second.
  local whole = start()
  local before = numbers(whole, FC1)
  for _ = 1, 3 do
    local s = whole:step()
    local name = "step " .. s.step
    check.ok(s.mismatch < 1e-4, ("%s: sampler and trainer differ by %.1e"):format(name, s.mismatch))
    check.ok(s.grad_norm > 0 and s.grad_norm < math.huge, name .. " has a gradient")
    if s.step == 2 then whole:save() end
  end
  local after = numbers(whole, FC1)
  check.ok(cjson.encode(before) ~= cjson.encode(after), "the tower is trained")

  -- The third step again, from the saved state.
  local resumed = start()
  resumed:resume(folder .. "/global_step_2")
  resumed:step()
  for _, name in ipairs { FC1, "visual.merger.ln_q.bias", "model.embed_tokens.weight" } do
    check.equal(numbers(resumed, name), numbers(whole, name), "resumed " .. name)
  end
end)

check.case("impossible vision configs are refused", function()
  local base = cjson.decode(files.read(dir .. "/config.json"))
  local function refused(wanted, vision)
    local json = cjson.decode(cjson.encode(base))
    for k, v in pairs(vision) do json.vision_config[k] = v end
    local path = mini.copy(dir, mini.folder() .. "/model")
    files.write(path .. "/config.json", cjson.encode(json))
    check.raises(function() sz.qwen_vl(path) end, wanted, wanted)
  end
  refused("vision_config%.hidden_size 16 differs from hidden_size 32", { hidden_size = 16 })
  refused("vision_config%.embed_dim 36 over 2 heads is not a multiple of 4", { embed_dim = 36 })
  refused("vision_config%.mlp_ratio is 0%.01", { mlp_ratio = 0.01 })
  refused("vision_config%.mlp_ratio is 1000000000000", { mlp_ratio = 1e12 })
  refused("vision_config%.hidden_act is 'gelu', expected 'quick_gelu'", { hidden_act = "gelu" })
  refused("weights do not fit the config", { mlp_ratio = 3 })
end)

-- ---- the released sizes: tensors and parameters, without the weights ----

-- Name, hidden size, MLP size, layers, heads, key/value heads, vocabulary, tied embeddings, the
-- vision MLP's size (Qwen2.5-VL only), tensors, parameters. Keys that a config lacks are the
-- class's defaults.
local RELEASED = {
  { "qwen2_vl 2B", 1536, 8960, 28, 12, 2, 151936, true, nil, 729, 2208985600 },
  { "qwen2_vl 7B", 3584, 18944, 28, 28, 4, 152064, false, nil, 730, 8291375616 },
  { "qwen2_vl 72B", 8192, 29568, 80, 64, 8, 152064, false, nil, 1354, 73405560320 },
  { "qwen2_5_vl 3B", 2048, 11008, 36, 16, 2, 151936, true, 3420, 824, 3754622976 },
  { "qwen2_5_vl 7B", 3584, 18944, 28, 28, 4, 152064, false, 3420, 729, 8292166656 },
  { "qwen2_5_vl 32B", 5120, 27648, 64, 40, 8, 152064, false, 3456, 1161, 33452718336 },
  { "qwen2_5_vl 72B", 8192, 29568, 80, 64, 8, 152064, false, 3456, 1353, 73410777344 },
}

-- The config of a row of RELEASED.
local function config_of(row)
  local kind = row[1]:match "^%S+"
  local vision = { hidden_size = row[2] }
  if kind == "qwen2_5_vl" then
    vision = { hidden_size = 1280, intermediate_size = row[9], out_hidden_size = row[2] }
  end
  return {
    model_type = kind,
    hidden_size = row[2],
    intermediate_size = row[3],
    num_hidden_layers = row[4],
    num_attention_heads = row[5],
    num_key_value_heads = row[6],
    vocab_size = row[7],
    tie_word_embeddings = row[8],
    vision_config = vision,
    rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } },
  }
end

for _, row in ipairs(RELEASED) do
  check.case("tensors and parameters of " .. row[1], function()
    local c = sz.core.check(C.sz_qwen_new(model.parse_config(config_of(row))))
    local list = weights.list(c)
    local parameters = 0
    for _, w in ipairs(list) do
      local numel = 1
      for _, d in ipairs(w.shape) do numel = numel * d end
      parameters = parameters + numel
    end
    check.equal(#list, row[10], row[1] .. ": tensors")
    check.equal(parameters, row[11], row[1] .. ": parameters")
    C.sz_model_free(c)
  end)
end

mini.remove()
check.finish()
