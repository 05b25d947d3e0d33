-- test_options.lua - a field that a function of the public interface does not know is an error at
-- the caller's line that names the nearest known one; so is a prompt or a row that cannot be.

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
    check.raises(f,
      "test_options%.lua:%d+: .*unknown option .*did you mean '" .. nearest .. "'", name)
  end)
end

-- ---- opening ----
refuses("sz.qwen_vl", "dtype", function() local m = sz.qwen_vl(dir, { dtpe = "bf16" }) return m end)
refuses("sz.model", "device", function() local m = sz.model(dir, { devcie = "cpu" }) return m end)
refuses("sz.sam2", "dtype", function()
  local m = sz.sam2("models/tiny/sam2", { dype = "f32" })
  return m
end)
refuses("qwen_vl.random", "seed", function()
  local m = require("segzero.models.qwen_vl").random(vl.json, { sed = 3 })
  return m
end)
refuses("sam2.random", "gain", function()
  local m = require("segzero.models.sam2").random(sam.json, { gian = 3 })
  return m
end)

-- ---- a policy ----
refuses("vl:generate", "max_new_tokens", function()
  local a = vl:generate(input, { max_tokens = 3 })
  return a
end)
refuses("sz.rollout.generate", "temperature", function()
  local a = sz.rollout.generate(vl, { input }, { temprature = 1 })
  return a
end)
refuses("vl:vision", "recompute", function()
  local f = vl:vision({ input }, { recomptue = true })
  return f
end)
refuses("vl:hidden", "rows", function()
  local packing = require "segzero.inference.packing"
  local stream = packing.stream({ { input = input, answers = {} } }, vl.image_token_id)
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
refuses("sam:predict", "box", function()
  local r = sam:predict { bbox = { 1, 2, 30, 40 } }
  return r
end)
refuses("a prompt of sam:predict_all", "points", function()
  local r = sam:predict_all { { point = { { 1, 2 } } } }
  return r
end)
refuses("sam:predict_all", "multimask", function()
  local r = sam:predict_all({ { box = { 1, 2, 30, 40 } } }, { multi_mask = true })
  return r
end)
refuses("sam:encode", "stages", function()
  local f = sam:encode(sam:pixels(image), { stage = true })
  return f
end)
refuses("a prompt of sam:decode", "image", function()
  local o = sam:decode(sam.features, { { imag = 1, points = { { 1, 2, 1 } } } })
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

check.case("a list of inputs is told where to go", function()
  check.raises(function() local a = vl:generate({ input }, {}) return a end,
    "generate: it takes one input, got a list; sz.rollout.generate%(vl, inputs, options%)",
    "a list")
end)

check.case("what is saved has options, too", function()
  check.raises(function() vl:save("/tmp/none", { shrad = 1 }) end,
    "test_options%.lua:%d+: save: unknown option 'shrad'", "vl:save")
  check.raises(function() sz.safetensors.save_folder("/tmp/none", {}, { max_shard = 1 }) end,
    "test_options%.lua:%d+: save_folder: unknown option 'max_shard': did you mean 'max_shard_byt",
    "save_folder")
end)

-- ---- functions without options ----
local BLAMES = "test_options%.lua:%d+: "

-- f gets a table that its function does not take.
local function takes_none(name, f)
  check.case(name .. " takes no options", function()
    check.raises(f, BLAMES .. ".*unknown option 'colour': .* takes ", name)
  end)
end

local more = { colour = "red" }
takes_none("vl:forward", function() local l = vl:forward(input, more) return l end)
takes_none("vl:logprobs", function() local l = vl:logprobs(input, { { 1 } }, more) return l end)
takes_none("vl:process", function()
  local i = vl:process({ { role = "user", content = "a" } }, more)
  return i
end)
takes_none("vl:parameters", function() local p = vl:parameters(more) return p end)
takes_none("vl:generate with a third table", function()
  local a = vl:generate(input, { max_new_tokens = 1 }, more)
  return a
end)
takes_none("sz.qwen_vl with a third table", function()
  local m = sz.qwen_vl(dir, {}, more)
  return m
end)
takes_none("sz.tokenizer", function() local t = sz.tokenizer(dir, more) return t end)
takes_none("sz.processor.new", function() local p = sz.processor.new(dir, more) return p end)
takes_none("sz.tensor with a third table", function()
  local t = sz.tensor({ 1 }, {}, more)
  return t
end)
takes_none("sz.devices", function() local d = sz.devices(more) return d end)
takes_none("sam:set_image", function() sam:set_image(image, more) end)
takes_none("sam:predict", function()
  local r = sam:predict({ box = { 1, 1, 9, 9 } }, more)
  return r
end)
takes_none("sam:parameters", function() local p = sam:parameters(more) return p end)
takes_none("sam:save", function() sam:save(place .. "/sam", more) end)
takes_none("sz.image.load", function()
  local i = sz.image.load(place .. "/a.png", more)
  return i
end)
takes_none("sz.image.new", function() local i = sz.image.new(2, 3, more) return i end)
takes_none("img:resize", function() local i = image:resize(2, 3, "bilinear", more) return i end)
takes_none("img:save", function() image:save(place .. "/a.png", more) end)
takes_none("img:totensor", function() local t = image:totensor(more) return t end)
takes_none("sz.safetensors.load", function()
  local t = sz.safetensors.load(dir .. "/model.safetensors", more)
  return t
end)

check.case("other arguments too many", function()
  check.raises(function() image:save(place .. "/a.png", 90) end,
    BLAMES .. "save: takes at most 1 argument, got 90 as well", "a number")
  check.raises(function() local p = vl:parameters { "norm" } return p end,
    BLAMES .. "parameters: takes no argument, got a table as well", "a list")
  check.raises(function() local i = image:resize(2, 3, { filter = "bilinear" }) return i end,
    BLAMES .. "resize: the filter is a table, expected bilinear, bicubic or area",
    "a table as filter")
  check.raises(function() sz.safetensors.save(place .. "/t", {}, nil, { shards = 2 }) end,
    BLAMES .. "save: the fourth argument is a list of files", "a table as list of files")
  image:save(place .. "/a.png", nil)
  check.equal(sz.image.load(place .. "/a.png", nil).width, 84, "nil is no argument")
end)

-- ---- prompts of SAM2 ----
check.case("a prompt of SAM2 has a box, points or a mask", function()
  local function refused(prompt, pattern)
    check.raises(function() local r = sam:predict(prompt) return r end, BLAMES .. pattern, pattern)
  end
  refused({}, "sam2: the prompt is empty, expected box, points or mask_input")
  refused({ points = {} }, "sam2: the prompt is empty")
  refused({ box = { 30, 2, 1, 40 } }, "sam2: box is {30, 2, 1, 40}, expected {left, top, right, b")
  refused({ box = { 3, 42, 10, 40 } }, "sam2: box is {3, 42, 10, 40}, expected")
  refused({ box = "large" }, "sam2: box must be 4 numbers")
  refused({ boxes = 3 }, "sam2: boxes is a number, expected a list of boxes")
  refused({ boxes = { { 1, 1, 9, 9 }, { 9, 1, 1, 9 } } }, "sam2: box 2 is {9, 1, 1, 9}, expected")
  refused({ boxes = { { 1, 1, 9, 9 } }, points = { { 1, 1 } } },
    "sam2: boxes and points cannot be given together")
  check.raises(function() local r = sam:predict_all { { box = { 1, 1, 9, 9 } }, {} } return r end,
    BLAMES .. "sam2: the prompt is empty", "the second of several")

  -- Prompts of predict_all have a box each, and all of them the same multimask.
  local function refused_of_all(prompts, message, name)
    check.raises(function() local r = sam:predict_all(prompts) return r end, BLAMES .. message,
      name)
  end
  refused_of_all({ { boxes = { { 1, 1, 9, 9 } } } },
    "sam2: unknown option 'boxes': did you mean 'box'", "several boxes in a prompt")
  refused_of_all({ { box = { 1, 1, 9, 9 }, multimask = false } },
    "sam2: unknown option 'multimask'", "a prompt's own multimask")
  refused_of_all({ { box = { 1, 1, 9, 9 } }, 5 }, "sam2: prompt 2 is a number, not a table",
    "no prompt")
  refused_of_all(5, "sam2: predict_all wants a list of prompts, got number", "no list")
  check.equal(#sam:predict({ box = { 9, 9, 9, 9 } }).scores, 3, "a box of one pixel")
end)

-- ---- places that a script names ----
check.case("what cannot be opened blames the caller", function()
  local function opens(pattern, f) check.raises(f, BLAMES .. pattern, pattern) end
  opens("no model in nope", function() local m = sz.qwen_vl "nope" return m end)
  opens("no model in nope", function() local m = sz.model "nope" return m end)
  opens("[^\n]*nope", function() local m = sz.sam2 "nope" return m end)
  opens("nope/tokenizer.json: No such file", function() local t = sz.tokenizer "nope" return t end)
  opens("data set /nope: there is no such file or folder", function()
    local set = sz.data.open "/nope"
    return set
  end)
end)

check.case("rows are counted from 1 to the set's count", function()
  local shapes = sz.data.open("refshapes", { split = "train", size = 84, seed = 1, rows = 3 })
  image:save(place .. "/a.png")
  local file = assert(io.open(place .. "/data.jsonl", "w"))
  file:write '{"problem": "a", "solution": "[]", "image": "a.png"}\n'
  file:close()
  local lines = sz.data.open(place)
  for set, last in pairs { [shapes] = 3, [lines] = 1 } do
    for _, i in ipairs { 0, last + 1, 1.5, "a" } do
      check.raises(function() local row = set:row(i) return row end,
        ("%srow %s: the data set .* has the rows 1 to %d"):format(BLAMES, i, last), "row " .. i)
    end
    check.equal(set:row(last).index, last, "the last row")
  end
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
