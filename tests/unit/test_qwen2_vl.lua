-- test_qwen2_vl.lua - Qwen2-VL beside Qwen2.5-VL: against transformers on random weights (tests/golden/qwen2_vl), saving,
-- a training step, config errors; and the tables of weights of both families' released sizes.

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

-- ---- a saved folder: the released files' names, the same weights ----
local place = mini.folder()
do
  local folder, case, t = golden.case "qwen2_vl/V1"
  local vl = sz.qwen_vl(folder, { dtype = "bf16" })
  check.ok(tostring(vl):find("Qwen2-VL ", 1, true), "it says what it is: " .. tostring(vl))
  vl:save(place .. "/saved")
  local saved = sz.safetensors.load(place .. "/saved/model.safetensors")
  local names, wanted = 0, 0
  for name in pairs(saved) do names = names + (vl:parameters()[name] and 1 or 0) end
  for name in pairs(vl:parameters()) do wanted = wanted + (saved[name] and 1 or 0) end
  check.equal(names, #vl.weights, "every weight is saved")
  check.equal(wanted, #vl.weights, "and nothing else")
  for _, name in ipairs { "norm1.bias", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias" } do
    check.ok(saved["visual.blocks.0." .. name], name .. " has its name of the released files")
  end
  check.equal(files.read(place .. "/saved/config.json"), files.read(folder .. "/config.json"), "config.json is kept")
  local again = sz.qwen_vl(place .. "/saved", { dtype = "bf16" })
  local input = golden.input_of(case.sequences[1], t)
  check.equal(again:forward(input):totable(), vl:forward(input):totable(), "a saved model gives the same logits")
  vl:free()
  again:free()
end

-- ---- GRPO steps of a miniature, resumed bit for bit ----
local VISION = { depth = 2, embed_dim = 32, hidden_size = 32, mlp_ratio = 2, num_heads = 2, hidden_act = "quick_gelu", in_chans = 3,
  patch_size = 14, spatial_patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2 }
local KIND = { architectures = { "Qwen2VLForConditionalGeneration" }, model_type = "qwen2_vl", vision_config = VISION }
local dir = mini.write(place .. "/model", { config = KIND })
do
  local cfg = mini.settings()
  files.make_dir(place .. "/whole")
  local whole = mini.trainer(cfg, { model = dir, reference = true, folder = place .. "/whole" })
  local before = whole.policy:parameters()["visual.blocks.0.mlp.fc1.weight"]:totable()
  for _ = 1, 3 do
    local s = whole:step()
    check.ok(s.mismatch < 1e-4, ("step %d: sampler and trainer differ by %.1e"):format(s.step, s.mismatch))
    check.ok(s.grad_norm > 0 and s.grad_norm < math.huge, "step " .. s.step .. " has a gradient")
    if s.step == 2 then whole:save() end
  end
  local after = whole.policy:parameters()["visual.blocks.0.mlp.fc1.weight"]:totable()
  check.ok(cjson.encode(before) ~= cjson.encode(after), "the tower is trained")
  local resumed = mini.trainer(cfg, { model = dir, reference = true, folder = place .. "/whole" })
  resumed:resume(place .. "/whole/global_step_2")
  resumed:step()
  for _, name in ipairs { "visual.blocks.0.mlp.fc1.weight", "visual.merger.ln_q.bias", "model.embed_tokens.weight" } do
    check.equal(resumed.policy:parameters()[name]:totable(), whole.policy:parameters()[name]:totable(), "resumed " .. name)
  end
end

-- ---- configs ----
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
refused("vision_config%.mlp_ratio %* embed_dim is 0", { mlp_ratio = 0.01 })
refused("vision_config%.mlp_ratio is 1000000000000", { mlp_ratio = 1e12 })
refused("vision_config%.hidden_act is gelu, expected quick_gelu", { hidden_act = "gelu" })
refused("weights do not fit the config", { mlp_ratio = 3 })

-- ---- the released sizes: tensors and parameters, without the weights ----
-- H, I, layers, heads, kv heads, V, tied, the 2.5's Iv, tensors, parameters. Keys that a config lacks are the class's defaults.
local RELEASED = {
  { "qwen2_vl 2B", 1536, 8960, 28, 12, 2, 151936, true, nil, 729, 2208985600 },
  { "qwen2_vl 7B", 3584, 18944, 28, 28, 4, 152064, false, nil, 730, 8291375616 },
  { "qwen2_vl 72B", 8192, 29568, 80, 64, 8, 152064, false, nil, 1354, 73405560320 },
  { "qwen2_5_vl 3B", 2048, 11008, 36, 16, 2, 151936, true, 3420, 824, 3754622976 },
  { "qwen2_5_vl 7B", 3584, 18944, 28, 28, 4, 152064, false, 3420, 729, 8292166656 },
  { "qwen2_5_vl 32B", 5120, 27648, 64, 40, 8, 152064, false, 3456, 1161, 33452718336 },
  { "qwen2_5_vl 72B", 8192, 29568, 80, 64, 8, 152064, false, 3456, 1353, 73410777344 },
}
for _, r in ipairs(RELEASED) do
  local kind = r[1]:match "^%S+"
  local vision = kind == "qwen2_vl" and { hidden_size = r[2] } or { hidden_size = 1280, intermediate_size = r[9], out_hidden_size = r[2] }
  local json = { model_type = kind, hidden_size = r[2], intermediate_size = r[3], num_hidden_layers = r[4], num_attention_heads = r[5],
    num_key_value_heads = r[6], vocab_size = r[7], tie_word_embeddings = r[8], vision_config = vision,
    rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } } }
  local c = sz.core.check(C.sz_qwen_new(model.parse_config(json)))
  local list, parameters = weights.list(c), 0
  for _, w in ipairs(list) do
    local numel = 1
    for _, d in ipairs(w.shape) do numel = numel * d end
    parameters = parameters + numel
  end
  check.equal(#list, r[10], r[1] .. ": tensors")
  check.equal(parameters, r[11], r[1] .. ": parameters")
  C.sz_model_free(c)
end

mini.remove()
check.finish()
