-- tokens.lua - lab.logprobs: an answer token by token, with the probability of each, which number
-- of a box or a point it belongs to, and what the model would have said instead.
--
--   local list = tokens.logprobs(answer, { top = 3, least = 8 })
--     answer   of lab.ask, or of vl:generate (without alternatives then)
--     list[i]  {id =, text =, logprob =, probability =, where = "bbox[2]" or nil,
--               others = {{text =, probability =}, ...} of the least sure ones}
--     tostring(list)     the `least` least sure tokens as a table
--   On a terminal the text is printed at once, coloured: plain from 0.9 on, then yellow (0.5), then
--   red. NO_COLOR switches that off.
--   tokens.list(answer) -> the list, and the tokenizer
--   tokens.places(text) -> f(offset) -> "bbox[2]" or nil      offset: of a byte, from 1
--
-- Probabilities are those of the model's own distribution at temperature 1 if the answer was
-- greedy, else at the temperature that sampled it; alternatives are at temperature 1.
-- Leaves out: beams.

local packing = require "segzero.inference.packing"
local tensor = require "segzero.core.tensor"
local text_of = require "segzero.workbench.text"
local visible = require "segzero.core.visible"

local M = {}

-- ---- where a token stands ----
-- {{first =, last =, key =}, ...}: the lists of numbers of a text, as byte ranges inside [ ].
local function lists_of(text)
  local lists = {}
  for key, first, last in text:gmatch '"([^"]*)"%s*:%s*%[()[^%[%]]*()%]' do
    lists[#lists + 1] = { key = key, first = first, last = last - 1 }
  end
  return lists
end

function M.places(text)
  local lists = lists_of(text)
  return function(offset)
    for _, list in ipairs(lists) do
      if offset >= list.first and offset <= list.last then
        local before = text:sub(list.first, offset - 1)
        local number = 1 + select(2, before:gsub(",", ""))
        if text:sub(offset, offset):find "[,%s]" then return nil end
        return ("%s[%d]"):format(list.key, number)
      end
    end
    return nil
  end
end

-- ---- the tokens ----
-- Byte offsets of the tokens in the answer's text; special tokens have none.
local function offsets_of(tokenizer, ids)
  local offsets = {}
  local sofar = {}
  local length = 0
  for i, id in ipairs(ids) do
    sofar[i] = id
    local now = #tokenizer:decode(sofar, { skip_special_tokens = true })
    if now > length then offsets[i] = length + 1 end
    length = now
  end
  return offsets
end

local function tokens_of(answer, tokenizer)
  local list = {}
  local offsets = offsets_of(tokenizer, answer.ids)
  local place = M.places(answer.text or "")
  for i, id in ipairs(answer.ids) do
    -- A token that begins with a space or a comma belongs to what follows.
    local text = tokenizer:decode { id }
    local skipped = #text:match "^[%s,%[]*"
    list[i] = { id = id, text = text, logprob = answer.logprobs[i],
      probability = math.exp(answer.logprobs[i]),
      where = offsets[i] and place(offsets[i] + skipped) }
  end
  return list
end

-- ---- alternatives ----
-- The logits of some answer tokens: a list of C arrays of the vocabulary.
local function logits_of(answer, places)
  local policy = answer.policy
  local stream = packing.stream({ { input = answer.input, answers = { answer.ids } } },
    policy.image_token_id)
  local rows = {}
  local all = tensor.data(stream.rows)
  for k, i in ipairs(places) do rows[k] = all[i - 1] end
  local hidden = policy:hidden(stream, policy:vision { answer.input },
    { rows = packing.list(rows) })
  local logits = policy:logits(hidden)
  if logits:device() ~= "cpu" then logits = logits:to { device = "cpu" } end
  return logits:to { dtype = "f32" }
end

-- The most likely ids but one, with their probabilities.
local function most_likely(data, from, vocab, skip, count)
  local largest = -math.huge
  for id = 0, vocab - 1 do largest = math.max(largest, data[from + id]) end
  local sum = 0
  for id = 0, vocab - 1 do sum = sum + math.exp(data[from + id] - largest) end
  local list = {}
  for id = 0, vocab - 1 do
    if id ~= skip then
      local p = math.exp(data[from + id] - largest) / sum
      if #list < count or p > list[#list].probability then
        list[#list + 1] = { id = id, probability = p }
        table.sort(list, function(a, b) return a.probability > b.probability end)
        list[count + 1] = nil
      end
    end
  end
  return list
end

local function add_others(answer, list, places, count, tokenizer)
  if #places == 0 or not answer.input or not answer.policy then return end
  local function run()
    local logits = logits_of(answer, places)
    local vocab = logits:shape()[2]
    local data = tensor.data(logits)
    for k, i in ipairs(places) do
      list[i].others = most_likely(data, (k - 1) * vocab, vocab, answer.ids[i], count)
      for _, other in ipairs(list[i].others) do other.text = tokenizer:decode { other.id } end
    end
  end
  tensor.no_grad(tensor.step, run)
end

-- ---- the text ----
local function shown(text) return ("%q"):format(visible.line(text, 20)):gsub("\\\n", "\\n") end

local function to_text(list)
  local rows = { { "token", "text", "where", "probability", "instead" } }
  for _, i in ipairs(list.least) do
    local one = list[i]
    local others = {}
    for k, other in ipairs(one.others or {}) do
      others[k] = ("%s %.2f"):format((shown(other.text)), other.probability)
    end
    rows[#rows + 1] = { tostring(i), (shown(one.text)), one.where or "", ("%.3f"):format(
      one.probability), table.concat(others, "  ") }
  end
  local left = { false, true, true, false, true }
  return ("the %d least sure of %d tokens\n"):format(#list.least, #list)
    .. table.concat(text_of.table(rows, left), "\n")
end

local mt = { __tostring = to_text }

local PLAIN = 0.9
local YELLOW = 0.5

local function coloured(one)
  local text = visible.text(one.text)
  if one.probability >= PLAIN then return text end
  local colour = "31"
  if one.probability >= YELLOW then colour = "33" end
  return ("\27[%sm%s\27[0m"):format(colour, text)
end

local function is_terminal()
  local none = os.getenv "NO_COLOR"
  if none and none ~= "" then return false end
  return require("posix.unistd").isatty(1) == 1
end

function M.coloured(list)
  local parts = {}
  for i, one in ipairs(list) do parts[i] = coloured(one) end
  return table.concat(parts)
end

-- The places of the least sure tokens, the least sure first.
local function least_sure(list, count)
  local places = {}
  for i = 1, #list do places[i] = i end
  table.sort(places, function(a, b)
    if list[a].logprob ~= list[b].logprob then return list[a].logprob < list[b].logprob end
    return a < b
  end)
  for i = #places, count + 1, -1 do places[i] = nil end
  return places
end

local function check_answer(answer)
  local is_answer = type(answer) == "table" and type(answer.ids) == "table"
    and type(answer.logprobs) == "table"
  if is_answer then return end
  error("lab.logprobs: an answer of lab.ask or of vl:generate is expected, got "
    .. tostring(answer), 0)
end

-- The tokens alone, without printing.
function M.list(answer)
  check_answer(answer)
  local policy = answer.policy or require("segzero.lab.session").model()
  return tokens_of(answer, policy:tokenizer()), policy:tokenizer()
end

local LEAST = 8
local TOP = 2

-- options[name], or the default.
local function count_of(o, name, default)
  local v = o[name]
  if v == nil then return default end
  if type(v) == "number" and v >= 0 and v % 1 == 0 then return v end
  error(("lab.logprobs: %s is %s, expected a whole number from 0"):format(name, tostring(v)), 0)
end

function M.logprobs(answer, o)
  local least = count_of(o, "least", LEAST)
  local top = count_of(o, "top", TOP)
  local list, tokenizer = M.list(answer)
  list.least = least_sure(list, least)
  if top > 0 then add_others(answer, list, list.least, top, tokenizer) end
  if is_terminal() then io.write(M.coloured(list), "\n") end
  return setmetatable(list, mt)
end

return M
