-- test_generate.lua - generation as transformers does it: greedy answers with repetition penalty, stop tokens and stop strings
-- (tests/golden/generate.json) token for token; how generation_config.json and what is given go together; text as it is made.

local cjson = require "cjson"
local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local generation = sz.generation

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
  return { input_ids = ids, position_ids = tensor.new(positions, { dtype = "i32" }), next_position = #ids, image_grid_thw = {} }
end

-- Lets a model say these tokens, whatever it thinks; f() meanwhile.
local function saying(vl, ids, f)
  local real, at = vl.logits, 0
  function vl.logits(self, hidden)
    local rows = real(self, hidden):shape()
    local forced = tensor.zeros(rows)
    at = at + 1
    for r = 0, rows[1] - 1 do tensor.data(forced)[r * rows[2] + ids[at]] = 50 end
    return forced
  end
  local result = f()
  vl.logits = nil
  return result
end

for i, c in ipairs(cjson.decode(files.read "tests/golden/generate.json")) do
  if c.said then
    local vl, pieces = model_of "models/tiny/qwen2.5-vl", {}
    local out = saying(vl, c.said, function()
      return vl:generate(text_input(vl, c.prompt), { do_sample = false, max_new_tokens = #c.said, stop_ids = {}, stop_strings = c.stop_strings,
        on_text = function(k, piece, number)
          check.equal({ k, number }, { 1, 1 }, "which answer")
          pieces[#pieces + 1] = piece
        end })[1]
    end)
    local name = "stop strings " .. cjson.encode(c.stop_strings)
    check.equal(out.ids, { unpack(c.said, 1, c.count) }, name .. ": tokens")
    check.equal(out.finish, c.count < #c.said and "stop" or out.finish, name .. ": finish")
    check.equal(out.text, c.text, name .. ": text")
    check.equal(table.concat(pieces), c.text, name .. ": the pieces are the text")
  else
    local _, case, t = golden.case(c.model:gsub("^tests/golden/", ""))
    local s = c.settings
    local out = model_of(c.model):generate(golden.input_of(case.sequences[c.sequence + 1], t), { do_sample = false,
      repetition_penalty = s.repetition_penalty, max_new_tokens = s.max_new_tokens, stop_ids = s.eos_token_id or {} })[1]
    local name = ("case %d (%s %s)"):format(i, c.model, cjson.encode(s))
    check.equal(out.ids, c.ids, name .. ": tokens")
    check.equal(out.finish, #c.ids < s.max_new_tokens and "stop" or out.finish, name .. ": finish")
  end
end

-- ---- the file and what is given ----
local function options(file, given)
  local o = generation.options(file, given)
  return { o.temperature, o.top_k or "none", o.top_p or "none", o.repetition_penalty, o.max_new_tokens }
end
local base = { do_sample = true, temperature = 1e-6, repetition_penalty = 1.05, eos_token_id = { 7, 8 } }
check.equal(options({}, {}), { 0, "none", "none", 1, 512 }, "nothing said: greedy")
check.equal(options(base, {}), { 1e-6, 50, 1, 1.05, 512 }, "the file's sampling, transformers' top_k and top_p")
check.equal(options(base, { do_sample = false }), { 0, "none", "none", 1.05, 512 }, "greedy keeps the penalty")
check.equal(options(base, { temperature = 0 }), { 0, "none", "none", 1.05, 512 }, "temperature 0 is greedy")
check.equal(options(base, { temperature = 0.7, top_k = 0, repetition_penalty = 1 }), { 0.7, 0, 1, 1, 512 }, "what is given wins")
check.equal(options({ temperature = 0.5, top_p = 0.9 }, {}), { 0, "none", "none", 1, 512 }, "without do_sample the file's temperature does nothing")
check.equal(options({ temperature = 0.5, top_p = 0.9 }, { do_sample = true }), { 0.5, 50, 0.9, 1, 512 }, "with it, it does")
check.equal(options({}, { n = 4 }), { 1, 50, 1, 1, 512 }, "several answers are sampled")
check.equal(options({}, { n = 4, temperature = 0 }), { 0, "none", "none", 1, 512 }, "unless greedy is asked for")
check.equal(options({ max_new_tokens = 9, top_k = 1 }, { temperature = 1 }), { 1, 1, 1, 1, 9 }, "top_k and max_new_tokens of the file")
check.equal(options({ max_new_tokens = 9 }, { max_new_tokens = 3 })[5], 3, "max_new_tokens given")
check.equal(generation.options(base, {}).stop_ids, { 7, 8 }, "several stop tokens")
check.equal(generation.options(base, { stop_ids = { 1 } }).stop_ids, { 1 }, "given stop tokens")
check.equal(generation.options({ stop_strings = { "x" } }, {}).stop_strings, { "x" }, "stop strings of the file")
check.equal(generation.options({}, { stop_strings = "x" }).stop_strings, { "x" }, "a single stop string")
for _, bad in ipairs { { "temperature", -1 }, { "top_k", 1.5 }, { "repetition_penalty", 0 }, { "max_new_tokens", 0 }, { "do_sample", 1 }, { "stop_strings", "" } } do
  check.raises(function() generation.options({}, { [bad[1]] = bad[2] }) end, "generate: " .. bad[1], bad[1])
end

local place = mini.folder()
local dir = mini.write(place .. "/model")
local path = dir .. "/generation_config.json"
local vl = sz.qwen_vl(dir)
local input = mini.input(vl, 1)
local eos = { vl:tokenizer():id "<|im_end|>", vl:tokenizer():id "<|endoftext|>" }
local function configured(json, given)
  files.write(path, cjson.encode(json))
  return vl:generate(input, given)[1]
end
local greedy = configured({ eos_token_id = eos, max_new_tokens = 7 }, {})
check.equal(greedy.ids, vl:generate(input, { temperature = 0, max_new_tokens = 7 })[1].ids, "greedy by default")
check.ok(#greedy.ids <= 7, "max_new_tokens of the file")
local penalised = configured({ eos_token_id = eos, max_new_tokens = 7, repetition_penalty = 0.25 }, {})
check.equal(penalised.ids, vl:generate(input, { temperature = 0, max_new_tokens = 7, repetition_penalty = 0.25 })[1].ids, "the file's penalty in greedy mode")
check.ok(table.concat(penalised.ids, " ") ~= table.concat(greedy.ids, " "), "it changes the answer")
check.equal(configured({ eos_token_id = eos, do_sample = true, top_k = 1, max_new_tokens = 7 }, { seed = 3 }).ids, greedy.ids, "top_k = 1 of the file")
local a = configured({ eos_token_id = eos, do_sample = true, temperature = 5, top_k = 0, max_new_tokens = 7 }, { seed = 3 })
local b = configured({ eos_token_id = eos, do_sample = true, temperature = 5, top_k = 0, max_new_tokens = 7 }, { seed = 4 })
check.ok(table.concat(a.ids, " ") ~= table.concat(b.ids, " "), "do_sample of the file samples")
local one = configured({ eos_token_id = greedy.ids[3], max_new_tokens = 7 }, {})
check.equal({ one.finish, one.ids[#one.ids] }, { "stop", greedy.ids[3] }, "a single eos_token_id")
-- Training's sampler takes no notice, except of the stop tokens.
files.write(path, cjson.encode { eos_token_id = eos, repetition_penalty = 1.5, do_sample = true })
check.equal(sz.rollout.generate(vl, { input }, { temperature = 0, max_new_tokens = 7 })[1][1].ids, greedy.ids, "rollout.generate takes what it is given")

for _, bad in ipairs { { '{"temperature": "hot"}', "temperature is hot, expected a number" }, { '{"eos_token_id": []}', "eos_token_id is a list" },
  { '{"max_new_tokens": 0}', "max_new_tokens is 0" }, { "[", "generation_config.json: " }, { "7", "not a JSON object" } } do
  files.write(path, bad[1])
  check.raises(function() vl:generate(input, {}) end, "generation_config.json: .*" .. bad[2]:gsub("^generation_config.json: ", ""), bad[1])
end
os.remove(path)
check.equal(vl:generate(input, { max_new_tokens = 3 })[1].ids, { unpack(greedy.ids, 1, 3) }, "no file: greedy")

-- ---- whole characters ----
-- The head is made to say one byte of an emoji after the other: the text comes in whole characters, however tokens cut it.
do
  local tok = vl:tokenizer()
  local rollout = require "segzero.inference.rollout"
  local want = "aß\240\159\153\130 b\240\159"         -- ends inside a character
  local ids = {}
  for i = 1, #want do
    for id = 0, tok:size() - 1 do
      if tok:bytes(id) == want:sub(i, i) then
        ids[i] = id
        break
      end
    end
  end
  check.equal(#ids, #want, "every byte has a token")
  local pieces = {}
  local out = saying(vl, ids, function()
    return rollout.generate(vl, { input }, { temperature = 0, max_new_tokens = #ids, on_text = function(_, piece) pieces[#pieces + 1] = piece end })[1][1]
  end)
  check.equal(out.ids, ids, "the bytes were said")
  check.equal(pieces, { "a", "ß", "\240\159\153\130", " ", "b", "\239\191\189" }, "whole characters, and what is left at the end")
  check.equal(table.concat(pieces), out.text, "together the text")
end

-- Several answers at a time, each with its own pieces.
do
  local texts = { {}, {}, {} }
  local answers = vl:generate(input, { n = 3, temperature = 2, seed = 5, max_new_tokens = 12, on_text = function(k, piece) table.insert(texts[k], piece) end })
  for k, x in ipairs(answers) do check.equal(table.concat(texts[k]), x.text, "answer " .. k) end
end

-- At the prompt of ./segzero an answer is shown when nobody else takes it.
do
  local shown = {}
  generation.echo = function(_, piece) shown[#shown + 1] = piece end
  local out = vl:generate(input, { max_new_tokens = 5 })[1]
  check.equal(table.concat(shown), out.text .. "\n", "echoed")
  local before = #shown
  vl:generate(input, { max_new_tokens = 5, on_text = false })
  vl:generate(input, { max_new_tokens = 5, on_text = function() end })
  vl:generate(input, { max_new_tokens = 5, n = 2 })
  check.equal(#shown, before, "not when it is taken, nor several answers")
  generation.echo = nil
end

check.raises(function() sz.rollout.generate(vl, { input }, { stop_strings = { "" } }) end, "stop_strings must be texts", "an empty stop string")
local bare = sz.qwen_vl "tests/golden/qwen_vl/Q1"
check.raises(function() sz.rollout.generate(bare, {}, { stop_strings = { "x" } }) end, "need a tokenizer", "stop strings without a tokenizer")
check.raises(function() sz.rollout.generate(bare, {}, { on_text = print }) end, "needs a tokenizer", "text without a tokenizer")

mini.remove()
check.finish()
