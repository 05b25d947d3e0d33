-- test_generate.lua - generation as transformers does it: greedy answers with repetition penalty,
-- stop tokens and stop strings (tests/golden/generate.json) token for token; how
-- generation_config.json and the given options combine; the text while it is generated.
--
--   ./segzero tests/unit/test_generate.lua
--
-- Leaves out: the scheduler (test_scheduler.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local generation = sz.generation
local rollout = sz.rollout

-- ---- transformers' answers ----

local models = {}
local function model_of(path)
  models[path] = models[path] or sz.qwen_vl(path, { dtype = "f32" })
  return models[path]
end

local function text_input(vl, prompt)
  local ids = vl:tokenizer():encode(prompt)
  local positions = {}
  for axis = 1, 3 do
    positions[axis] = {}
    for i = 1, #ids do positions[axis][i] = i - 1 end
  end
  return {
    input_ids = ids,
    position_ids = tensor.new(positions, { dtype = "i32" }),
    next_position = #ids,
    image_grid_thw = {},
  }
end

-- Runs f() while the model generates these tokens, whatever its logits are.
local function forcing(vl, ids, f)
  local real = vl.logits
  local count = 0
  function vl.logits(self, hidden)
    local shape = real(self, hidden):shape()
    local forced = tensor.zeros(shape)
    count = count + 1
    for r = 0, shape[1] - 1 do tensor.data(forced)[r * shape[2] + ids[count]] = 50 end
    return forced
  end
  local result = f()
  vl.logits = nil
  return result
end

-- A case of stop strings: the model is made to generate c.said.
local function check_stop_strings(c)
  local vl = model_of "models/tiny/qwen2.5-vl"
  local pieces = {}
  local options = {
    do_sample = false,
    max_new_tokens = #c.said,
    stop_ids = {},
    stop_strings = c.stop_strings,
    on_text = function(k, piece, number)
      check.equal({ k, number }, { 1, 1 }, "which answer")
      pieces[#pieces + 1] = piece
    end,
  }
  local out = forcing(vl, c.said, function()
    return vl:generate(text_input(vl, c.prompt), options)[1]
  end)
  local name = "stop strings " .. cjson.encode(c.stop_strings)
  local finish = out.finish     -- the record has no reason where all tokens are generated
  if c.count < #c.said then finish = "stop" end
  check.equal(out.ids, { unpack(c.said, 1, c.count) }, name .. ": tokens")
  check.equal(out.finish, finish, name .. ": finish")
  check.equal(out.text, c.text, name .. ": text")
  check.equal(table.concat(pieces), c.text, name .. ": the pieces are the text")
end

-- A case of a greedy answer with repetition penalty and stop tokens.
local function check_greedy(c, i)
  local _, case, t = golden.case(c.model:gsub("^tests/golden/", ""))
  local s = c.settings
  local input = golden.input_of(case.sequences[c.sequence + 1], t)
  local out = model_of(c.model):generate(input, {
    do_sample = false,
    repetition_penalty = s.repetition_penalty,
    max_new_tokens = s.max_new_tokens,
    min_new_tokens = s.min_new_tokens,
    min_length = s.min_length,
    stop_ids = s.eos_token_id or {},
  })[1]
  local name = ("case %d (%s %s)"):format(i, c.model, cjson.encode(s))
  local finish = out.finish
  if #c.ids < s.max_new_tokens then finish = "stop" end
  check.equal(out.ids, c.ids, name .. ": tokens")
  check.equal(out.finish, finish, name .. ": finish")
end

check.case("answers equal transformers'", function()
  for i, c in ipairs(cjson.decode(files.read "tests/golden/generate.json")) do
    if c.said then
      check_stop_strings(c)
    else
      check_greedy(c, i)
    end
  end
end)

-- ---- the file and the given options ----

local BASE = {
  do_sample = true, temperature = 1e-6, repetition_penalty = 1.05, eos_token_id = { 7, 8 },
}

check.case("given options override the file, and greedy is the default", function()
  -- want: temperature, top_k, top_p, repetition_penalty, max_new_tokens.
  local function combined(file, given, want, name)
    local o = generation.options(file, given)
    local top_k = o.top_k or "none"
    local top_p = o.top_p or "none"
    local got = { o.temperature, top_k, top_p, o.repetition_penalty, o.max_new_tokens }
    check.equal(got, want, name)
  end
  combined({}, {}, { 0, "none", "none", 1, 512 }, "no options: greedy")
  combined(BASE, {}, { 1e-6, 50, 1, 1.05, 512 },
    "the file's sampling, transformers' top_k and top_p")
  combined(BASE, { do_sample = false }, { 0, "none", "none", 1.05, 512 },
    "greedy keeps the penalty")
  combined(BASE, { temperature = 0 }, { 0, "none", "none", 1.05, 512 }, "temperature 0 is greedy")
  combined(BASE, { temperature = 0.7, top_k = 0, repetition_penalty = 1 }, { 0.7, 0, 1, 1, 512 },
    "given options win")
  local warm = { temperature = 0.5, top_p = 0.9 }
  combined(warm, {}, { 0, "none", "none", 1, 512 },
    "without do_sample the file's temperature does nothing")
  combined(warm, { do_sample = true }, { 0.5, 50, 0.9, 1, 512 }, "with it, it does")
  combined({}, { n = 4 }, { 1, 50, 1, 1, 512 }, "several answers are sampled")
  combined({}, { n = 4, temperature = 0 }, { 0, "none", "none", 1, 512 },
    "unless greedy is asked for")
  combined({ max_new_tokens = 9, top_k = 1 }, { temperature = 1 }, { 1, 1, 1, 1, 9 },
    "top_k and max_new_tokens of the file")
end)

check.case("single options from the file and from the caller", function()
  local options = generation.options
  check.equal(options({ max_new_tokens = 9 }, { max_new_tokens = 3 }).max_new_tokens, 3,
    "max_new_tokens given")
  check.equal(options(BASE, {}).stop_ids, { 7, 8 }, "several stop tokens")
  check.equal(options(BASE, { stop_ids = { 1 } }).stop_ids, { 1 }, "given stop tokens")
  check.equal(options({ stop_strings = { "x" } }, {}).stop_strings, { "x" },
    "stop strings of the file")
  check.equal(options({}, { stop_strings = "x" }).stop_strings, { "x" }, "a single stop string")
end)

check.case("bad options are refused", function()
  local BAD = {
    { "temperature", -1 }, { "top_k", 1.5 }, { "repetition_penalty", 0 }, { "max_new_tokens", 0 },
    { "do_sample", 1 }, { "stop_strings", "" }, { "max_new_tokens", 2 ^ 25 }, { "n", 2 ^ 21 },
  }
  for _, bad in ipairs(BAD) do
    local key = bad[1]
    local value = bad[2]
    check.raises(function() generation.options({}, { [key] = value }) end, "generate: " .. key, key)
  end
end)

check.case("the least length of a call or of the file", function()
  local function least(file, given)
    local o = generation.options(file, given)
    return { o.min_new_tokens or "none", o.min_length or "none" }
  end
  check.equal(least({}, {}), { "none", "none" }, "nothing is said")
  check.equal(least({ min_new_tokens = 3, min_length = 9 }, {}), { 3, 9 }, "the file's")
  check.equal(least({ min_new_tokens = 3 }, { min_new_tokens = 0 }), { 0, "none" }, "the call's")
end)

-- ---- a miniature with a generation_config.json ----

local place = mini.folder()
local dir = mini.write(place .. "/model")
local config_path = dir .. "/generation_config.json"
local vl = sz.qwen_vl(dir)
local input = mini.input(vl, 1)
local EOS = { vl:tokenizer():id "<|im_end|>", vl:tokenizer():id "<|endoftext|>" }

-- The miniature's answer with this generation_config.json; the file is removed again.
local function configured(json, given)
  files.write(config_path, cjson.encode(json))
  local out = vl:generate(input, given)[1]
  os.remove(config_path)
  return out
end

local function words(answer) return table.concat(answer.ids, " ") end

-- The greedy answer of at most seven tokens.
local function greedy_answer()
  return configured({ eos_token_id = EOS, max_new_tokens = 7 }, {})
end

check.case("the file's settings reach the sampler", function()
  local greedy = greedy_answer()
  check.ok(#greedy.ids <= 7, "max_new_tokens of the file")
  local sampled = { eos_token_id = EOS, do_sample = true, top_k = 1, max_new_tokens = 7 }
  check.equal(configured(sampled, { seed = 3 }).ids, greedy.ids, "top_k = 1 of the file")
  local hot = {
    eos_token_id = EOS, do_sample = true, temperature = 5, top_k = 0, max_new_tokens = 7,
  }
  local a = configured(hot, { seed = 3 })
  local b = configured(hot, { seed = 4 })
  check.ok(words(a) ~= words(b), "do_sample of the file samples")
  local one = configured({ eos_token_id = greedy.ids[3], max_new_tokens = 7 }, {})
  local last = one.ids[#one.ids]
  check.equal({ one.finish, last }, { "stop", greedy.ids[3] }, "a single eos_token_id")
end)

-- transformers 5.24 has no stop token then, also if config.json names one.
check.case("a generation_config.json without eos_token_id", function()
  local script = place .. "/stops.lua"
  files.write(script, ([[
    local model = require("segzero").qwen_vl %q
    print("stops " .. table.concat(model:stop_ids(), " "))
  ]]):format(dir))
  local note = ("note: %s: there is no eos_token_id: answers end at the token"):format(config_path)
  for _, case in ipairs { { "none", nil, false }, { "no id", { max_new_tokens = 7 }, true },
    { "null", { eos_token_id = cjson.null }, true }, { "an id", { eos_token_id = 5 }, false } } do
    local name, json, is_noted = unpack(case, 1, 3)
    if json then files.write(config_path, cjson.encode(json)) end
    local text = mini.run { script }
    os.remove(config_path)
    local stops = name == "an id" and "stops 5\n" or ("stops %d"):format(EOS[1])
    check.ok(text:find(stops, 1, true), name .. ": " .. text)
    check.equal(text:find(note, 1, true) ~= nil, is_noted, name .. ": " .. text)
  end
end)

check.case("greedy is the default, with the file's penalty", function()
  local file = { eos_token_id = EOS, max_new_tokens = 7 }
  local options = { temperature = 0, max_new_tokens = 7 }
  files.write(config_path, cjson.encode(file))
  local greedy = vl:generate(input, {})[1]
  check.equal(greedy.ids, vl:generate(input, options)[1].ids, "greedy by default")

  file.repetition_penalty = 0.25
  options.repetition_penalty = 0.25
  files.write(config_path, cjson.encode(file))
  local penalised = vl:generate(input, {})[1]
  check.equal(penalised.ids, vl:generate(input, options)[1].ids,
    "the file's penalty in greedy mode")
  check.ok(words(penalised) ~= words(greedy), "it changes the answer")
  os.remove(config_path)
end)

check.case("some answers of a batch may not end yet", function()
  -- Stop tokens that come often, and prompts of two lengths, so that min_length parts the batch.
  local long = mini.input(vl, 2)
  local inputs = { input, long }
  local least = math.max(#input.input_ids, #long.input_ids) + 3
  local stops = {}
  for id = 20, 45 do stops[#stops + 1] = id end
  local function answers(list, row_ids, extra)
    local opts = { n = 6, temperature = 1, max_new_tokens = 10, seed = 5, stop_ids = stops,
      row_ids = row_ids }
    for k, v in pairs(extra) do opts[k] = v end
    return rollout.generate(vl, list, opts)
  end
  local function is_stop(id) return id >= 20 and id <= 45 end
  local stopped = 0
  for _, extra in ipairs { { min_new_tokens = 4 }, { min_length = least } } do
    local together = answers(inputs, { 0, 1 }, extra)
    for g, group in ipairs(together) do
      local first = extra.min_new_tokens or least - #inputs[g].input_ids
      local alone = answers({ inputs[g] }, { g - 1 }, extra)[1]
      for k, a in ipairs(group) do
        for i = 1, first do check.ok(not is_stop(a.ids[i]), "no stop token") end
        check.equal(a.ids, alone[k].ids, "the same answer in a batch of its own")
        if a.finish == "stop" then stopped = stopped + 1 end
      end
    end
  end
  local early = 0
  for _, group in ipairs(answers(inputs, { 0, 1 }, {})) do
    for _, a in ipairs(group) do
      if #a.ids <= 3 and a.finish == "stop" then early = early + 1 end
    end
  end
  check.ok(early >= 2, early .. " would end too early")
  check.ok(stopped >= 4, stopped .. " end later")
end)

check.case("rollout.generate takes only the file's stop tokens", function()
  local greedy = greedy_answer()
  local file = { eos_token_id = EOS, repetition_penalty = 1.5, do_sample = true }
  files.write(config_path, cjson.encode(file))
  local answers = rollout.generate(vl, { input }, { temperature = 0, max_new_tokens = 7 })
  os.remove(config_path)
  check.equal(answers[1][1].ids, greedy.ids, "rollout.generate takes the given options")
end)

check.case("a bad file is refused, and a missing one means greedy", function()
  local greedy = greedy_answer()
  local BAD = {
    { '{"temperature": "hot"}', ".*temperature is 'hot', expected a number" },
    { '{"eos_token_id": []}', ".*eos_token_id is empty, expected a token id" },
    { '{"max_new_tokens": 0}', ".*max_new_tokens is 0" },
    { '{"max_new_tokens": 1e300}',
      ".*max_new_tokens is 1e%+300, expected a whole number from 1 to" },
    { "[", ".*" },
    { "7", ".*not a JSON object" },
  }
  for _, bad in ipairs(BAD) do
    files.write(config_path, bad[1])
    check.raises(function() vl:generate(input, {}) end, "generation_config.json: " .. bad[2],
      bad[1])
  end
  os.remove(config_path)
  local short = vl:generate(input, { max_new_tokens = 3 })[1].ids
  check.equal(short, { unpack(greedy.ids, 1, 3) }, "no file: greedy")
end)

-- ---- text ----

-- The token of each byte of the text.
local function byte_tokens(text)
  local tok = vl:tokenizer()
  local token_of = {}
  for id = tok:size() - 1, 0, -1 do
    local bytes = tok:bytes(id)
    if bytes then token_of[bytes] = id end
  end
  local ids = {}
  for i = 1, #text do ids[i] = token_of[text:sub(i, i)] end
  return ids
end

-- The model is made to generate an emoji byte by byte: however tokens cut a character, the text
-- comes in whole ones.
check.case("text comes in whole characters", function()
  local text = "aß\240\159\153\130 b\240\159"         -- ends inside a character
  local ids = byte_tokens(text)
  check.equal(#ids, #text, "every byte has a token")
  local pieces = {}
  local options = {
    temperature = 0,
    max_new_tokens = #ids,
    on_text = function(_, piece) pieces[#pieces + 1] = piece end,
  }
  local out = forcing(vl, ids, function()
    return rollout.generate(vl, { input }, options)[1][1]
  end)
  check.equal(out.ids, ids, "the model generated the bytes")
  check.equal(pieces, { "a", "ß", "\240\159\153\130", " ", "b", "\239\191\189" },
    "whole characters, and the rest at the end")
  check.equal(table.concat(pieces), out.text, "together they are the text")
end)

check.case("several answers have pieces of their own", function()
  local texts = { {}, {}, {} }
  local answers = vl:generate(input, {
    n = 3,
    temperature = 2,
    seed = 5,
    max_new_tokens = 12,
    on_text = function(k, piece) table.insert(texts[k], piece) end,
  })
  for k, answer in ipairs(answers) do
    check.equal(table.concat(texts[k]), answer.text, "answer " .. k)
  end
end)

-- The prompt of ./segzero sets generation.echo: an answer whose text nobody takes is shown.
check.case("a single answer is echoed at the prompt", function()
  local shown = {}
  generation.echo = function(_, piece) shown[#shown + 1] = piece end
  local out = vl:generate(input, { max_new_tokens = 5 })[1]
  check.equal(table.concat(shown), out.text .. "\n", "echoed")
  local before = #shown
  vl:generate(input, { max_new_tokens = 5, on_text = false })
  vl:generate(input, { max_new_tokens = 5, on_text = function() end })
  vl:generate(input, { max_new_tokens = 5, n = 2 })
  check.equal(#shown, before, "not if the caller takes the text, nor several answers")
  generation.echo = nil
end)

check.case("stop strings and text need a tokenizer", function()
  local bare = sz.qwen_vl "tests/golden/qwen_vl/Q1"
  local function refused(model, inputs, options, pattern, name)
    check.raises(function() rollout.generate(model, inputs, options) end, pattern, name)
  end
  refused(vl, { input }, { stop_strings = { "" } }, "stop_strings must be texts",
    "an empty stop string")
  refused(bare, {}, { stop_strings = { "x" } }, "need a tokenizer",
    "stop strings without a tokenizer")
  refused(bare, {}, { on_text = print }, "needs a tokenizer", "text without a tokenizer")
end)

mini.remove()
check.finish()
