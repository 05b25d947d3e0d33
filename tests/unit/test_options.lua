-- test_options.lua - a misspelt field in any options table of the models' public interface is an error
-- at the caller's line that names the nearest known field.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"

local place = mini.folder()
local dir = mini.write(place .. "/model")
local vl = sz.qwen_vl(dir)
local tok = vl:tokenizer()
local input = vl:process { { role = "user", content = "Where is it?" } }
local sam = sz.sam2 "models/tiny/sam2"
local image = sz.image.new(84, 84)
sam:set_image(image)

-- f must raise, blame this file, and name `nearest`.
local function refuses(name, nearest, f)
  check.case(name, function()
    check.raises(f, "test_options%.lua:%d+: .*unknown option .*did you mean '" .. nearest .. "'", name)
  end)
end

-- ---- opening ----
refuses("sz.qwen_vl", "dtype", function() local m = sz.qwen_vl(dir, { dtpe = "bf16" }) return m end)
refuses("sz.model", "device", function() local m = sz.model(dir, { devcie = "cpu" }) return m end)
refuses("sz.sam2", "dtype", function() local m = sz.sam2("models/tiny/sam2", { dype = "f32" }) return m end)
refuses("qwen_vl.random", "seed", function()
  local m = require("segzero.models.qwen_vl").random(vl.json, { sed = 3 })
  return m
end)
refuses("sam2.random", "gain", function()
  local m = require("segzero.models.sam2").random(sam.json, { gian = 3 })
  return m
end)

-- ---- a policy ----
refuses("vl:generate", "max_new_tokens", function() local a = vl:generate(input, { max_tokens = 3 }) return a end)
refuses("sz.rollout.generate", "temperature", function()
  local a = sz.rollout.generate(vl, { input }, { temprature = 1 })
  return a
end)
refuses("vl:vision", "recompute", function() local f = vl:vision({ input }, { recomptue = true }) return f end)
refuses("vl:hidden", "rows", function()
  local stream = require("segzero.inference.packing").stream({ { input = input, answers = {} } }, vl.image_token_id)
  local h = vl:hidden(stream, nil, { row = 1 })
  return h
end)
refuses("lora.attach", "alpha", function() sz.lora.attach(vl, { rank = 2, alhpa = 4 }) end)

-- ---- messages and tokens ----
local function message(m) return function() local i = vl:process { m } return i end end
refuses("a message", "content", message { role = "user", contents = "a", content = "a" })
refuses("an item of a message", "image_url",
  message { role = "user", content = { { type = "text", text = "a", image_ulr = "b.png" } } })
refuses("tok:decode", "skip_special_tokens", function()
  local text = tok:decode({ 1 }, { skip_special = true })
  return text
end)
refuses("tok:chat", "add_generation_prompt", function()
  local text = tok:chat({ { role = "user", content = "a" } }, { add_generation = true })
  return text
end)
check.case("tok:encode takes no options", function()
  check.raises(function() local ids = tok:encode("a", { add_special_tokens = true }) return ids end,
    "test_options%.lua:%d+: encode: unknown option 'add_special_tokens'", "encode")
end)

-- ---- SAM2 ----
refuses("sam:predict", "box", function() local r = sam:predict { bbox = { 1, 2, 30, 40 } } return r end)
refuses("a prompt of sam:predict_all", "points", function()
  local r = sam:predict_all { { point = { { 1, 2 } } } }
  return r
end)
refuses("sam:predict_all", "multimask", function()
  local r = sam:predict_all({ { box = { 1, 2, 30, 40 } } }, { multi_mask = true })
  return r
end)
refuses("sam:encode", "stages", function() local f = sam:encode(sam:pixels(image), { stage = true }) return f end)
refuses("a prompt of sam:decode", "image", function()
  local o = sam:decode(sam.features, { { picture = 1, points = { { 1, 2, 1 } } } })
  return o
end)

check.case("sam:predict takes true or false for multimask", function()
  check.raises(function()
    local r = sam:predict { box = { 1, 2, 30, 40 }, multimask = "no" }
    return r
  end, "test_options%.lua:%d+: sam2: multimask is no, expected true or false", "a text")
end)

-- ---- data and optimizer ----
local generated = { split = "train", size = 112, seed = 1, rows = 3 }
refuses("sz.data.open", "split", function()
  local set = sz.data.open("refshapes", { spilt = "train", size = 112, seed = 1, rows = 3 })
  return set
end)
refuses("sz.refshapes.sample", "size", function()
  local scene = sz.refshapes.sample { seed = 1, index = 1, sizes = 112 }
  return scene
end)
refuses("sz.optim.adamw", "betas", function()
  local o = sz.optim.adamw({}, { beta = 1 })
  return o
end)

check.case("a data set that cannot be opened blames the caller", function()
  local function opens(pattern, name, opts)
    check.raises(function()
      local set = sz.data.open(name, opts)
      return set
    end, "test_options%.lua:%d+: data.open: " .. pattern, pattern)
  end
  opens("a data set's name is expected, got nil")
  opens("refshapes needs the option 'split'", "refshapes")
  opens("split is test, expected train or heldout", "refshapes",
    { split = "test", size = 112, seed = 1, rows = 3 })
  check.equal(sz.data.open("refshapes", generated):count(), 3, "all options")
end)

check.case("an optimizer takes named parameters", function()
  check.raises(function()
    local o = sz.optim.adamw({ sz.tensor { 1 } }, { lr = 1 })
    return o
  end, "test_options%.lua:%d+: adamw: a list of {name =, tensor =}", "a list of tensors")
end)

check.case("a generation's top_p and top_k have limits", function()
  check.raises(function() local a = vl:generate(input, { top_p = 2 }) return a end,
    "top_p is 2, expected a number from 0 to 1", "top_p")
  check.raises(function() local a = vl:generate(input, { top_k = -3 }) return a end,
    "top_k is %-3, expected a whole number from %-1", "top_k")
end)

check.case("what is saved has options, too", function()
  check.raises(function() vl:save("/tmp/none", { shrad = 1 }) end,
    "test_options%.lua:%d+: save: unknown option 'shrad'", "vl:save")
  check.raises(function() sz.safetensors.save_folder("/tmp/none", {}, { max_shard = 1 }) end,
    "test_options%.lua:%d+: save_folder: unknown option 'max_shard': did you mean 'max_shard_byt",
    "save_folder")
end)

-- ---- the seam ----
check.case("a registry takes functions", function()
  check.raises(function() sz.losses:register("x", { fn = "abs" }) end,
    "test_options%.lua:%d+: loss 'x': the field 'fn' is abs, expected a function", "a text")
  check.raises(function() sz.losses.register("x", { fn = print }) end,
    "test_options%.lua:%d+: register: write registry:register", "a dot")
end)

check.case("a family's spec", function()
  check.raises(function() sz.models:register("x", { laod = print, load = print }) end,
    "unknown option 'laod': did you mean 'load'", "register")
end)

mini.remove()
check.finish()
