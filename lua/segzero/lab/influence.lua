-- influence.lua - lab.attention: how much each part of the image moves the log-probability of an
-- answer's token.
--
--   local map = influence.of(answer, token, { sheet = path or false })
--     answer   of lab.ask
--     token    the number of a token from 1, a pair {first, last}, or a key such as "bbox": the
--              tokens of its numbers
--     map.values[y][x]   of each image token (a square of 28 pixels of what the model sees): the
--                        derivative of the log-probability along the token's feature, that is, the
--                        sum over the feature of gradient x value. Positive: without it the token
--                        would be less likely
--     map.share[y][x]    its absolute value as a share of the sum
--     map.path           the image with the map on it; map:show() shows it at the prompt
--
-- These are not attention weights. The kernels never store those, and a weight says where a head
-- looks, not what it takes from there. What is here is exact to first order: the change of the
-- log-probability if this feature were scaled down a little, through all layers and heads. Needs
-- weights that can be differentiated: f32 or bf16. Leaves out: text tokens, several images.

local core = require "segzero.core.ffi"
local draw = require "segzero.tools.draw"
local packing = require "segzero.inference.packing"
local sheets = require "segzero.lab.sheets"
local tensor = require "segzero.core.tensor"
local tokens = require "segzero.lab.tokens"
local visible = require "segzero.core.visible"

local M = {}

-- ---- which tokens ----
local function of_key(answer, key)
  local list = tokens.list(answer)
  local places = {}
  for i, one in ipairs(list) do
    if one.where and one.where:match "^(.*)%[%d+%]$" == key then places[#places + 1] = i end
  end
  if #places > 0 then return places end
  error(("lab.attention: the answer has no numbers under the key '%s'"):format(
    visible.line(key, 40)), 0)
end

local function places_of(answer, token)
  if type(token) == "string" then return of_key(answer, token) end
  local first = token
  local last = token
  if type(token) == "table" then
    first = token[1]
    last = token[2]
  end
  local is_range = type(first) == "number" and type(last) == "number" and first >= 1
    and first <= last and last <= #answer.ids and first % 1 == 0 and last % 1 == 0
  if not is_range then
    error(("lab.attention: token is %s, expected a number from 1 to %d, {first, last} or a key")
      :format(tostring(token), #answer.ids), 0)
  end
  local places = {}
  for i = first, last do places[#places + 1] = i end
  return places
end

-- ---- gradient x feature ----
local function measure(answer, places)
  local policy = answer.policy
  local features = tensor.no_grad(policy.vision, policy, { answer.input })
  if not features then error("lab.attention: the question has no image", 0) end
  features:requires_grad(true)
  local stream = packing.stream({ { input = answer.input, answers = { answer.ids } } },
    policy.image_token_id)
  local hidden = policy:hidden(stream, features, { rows = stream.rows })
  local logprob = policy:logprob_of(hidden, stream.targets)
  local chosen = {}
  for k, i in ipairs(places) do chosen[k] = i - 1 end
  local picked = logprob:reshape(logprob:numel(), 1):gather_rows(packing.list(chosen))
  picked:sum():backward()

  local gradient = features:grad():to { device = "cpu", dtype = "f32" }
  local values = features:to { device = "cpu", dtype = "f32" }
  local shape = values:shape()
  local g = tensor.data(gradient)
  local v = tensor.data(values)
  local out = {}
  for i = 1, shape[1] do
    local sum = 0
    for k = (i - 1) * shape[2], i * shape[2] - 1 do sum = sum + g[k] * v[k] end
    out[i] = sum
  end
  return out
end

-- ---- the map ----
-- Rows of `width` numbers.
local function grid(list, width)
  local rows = {}
  for i, v in ipairs(list) do
    local y = math.floor((i - 1) / width) + 1
    rows[y] = rows[y] or {}
    table.insert(rows[y], v)
  end
  return rows
end

local function shares(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + math.abs(v) end
  local out = {}
  for i, v in ipairs(list) do out[i] = sum > 0 and math.abs(v) / sum or 0 end
  return out
end

local RED = { 230, 40, 60 }
local BLUE = { 40, 90, 230 }
local MOST_ALPHA = 0.75

-- Blends a colour into the pixels of a cell.
local function tint(img, x0, y0, x1, y1, colour, alpha)
  local p = img:pixels()
  for y = y0, y1 - 1 do
    for x = x0, x1 - 1 do
      local q = p + 3 * (y * img.width + x)
      for c = 0, 2 do q[c] = math.floor(q[c] + (colour[c + 1] - q[c]) * alpha + 0.5) end
    end
  end
end

-- Red: makes the token more likely; blue: less.
local function write_image(map, answer, path)
  local k = math.max(1, math.floor(448 / math.max(answer.image.width, answer.image.height)))
  local img = draw.enlarge(answer.image, k)
  local most = 0
  for _, row in ipairs(map.share) do
    for _, v in ipairs(row) do most = math.max(most, v) end
  end
  local h = #map.values
  local w = #map.values[1]
  for y = 1, h do
    for x = 1, w do
      local colour = map.values[y][x] >= 0 and RED or BLUE
      local alpha = most > 0 and MOST_ALPHA * map.share[y][x] / most or 0
      tint(img, math.floor((x - 1) * img.width / w), math.floor((y - 1) * img.height / h),
        math.floor(x * img.width / w), math.floor(y * img.height / h), colour, alpha)
    end
  end
  map.path = sheets.save_image(path, img)
  img:free()
end

local function to_text(map)
  local lines = { ("%s: share of each image token in what moves its log-probability (gradient x "
    .. "feature), %%; - makes it less likely"):format(map.what) }
  for y, row in ipairs(map.values) do
    local cells = {}
    for x, v in ipairs(row) do
      cells[x] = ("%5.0f"):format(100 * map.share[y][x] * (v < 0 and -1 or 1))
    end
    lines[#lines + 1] = table.concat(cells)
  end
  if map.path then lines[#lines + 1] = "image: " .. map.path end
  return table.concat(lines, "\n")
end

local mt = { __tostring = to_text, __index = { show = sheets.show_of "path" } }

local function check_answer(answer)
  if type(answer) == "table" and answer.input and answer.policy and answer.ids then return end
  error("lab.attention: an answer of lab.ask is expected, got " .. tostring(answer), 0)
end

local function what_of(answer, places)
  local words = {}
  local tokenizer = answer.policy:tokenizer()
  for k, i in ipairs(places) do words[k] = tokenizer:decode { answer.ids[i] } end
  local text = ("%q"):format(visible.line(table.concat(words), 40))
  if #places == 1 then return ("token %d %s"):format(places[1], text) end
  return ("tokens %d to %d %s"):format(places[1], places[#places], text)
end

function M.of(answer, token, o)
  check_answer(answer)
  local places = places_of(answer, token)
  local path = sheets.path(o.sheet, "attention")
  local list
  local ok, why = pcall(tensor.step, function() list = measure(answer, places) end)
  if not ok then
    if core.is_interrupt(why) then error(why, 0) end
    error("lab.attention: " .. core.plain(why), 0)
  end
  local merge = answer.policy:processor().merge_size
  local width = answer.input.image_grid_thw[1][3] / merge
  local map = setmetatable({ what = what_of(answer, places), values = grid(list, width),
    share = grid(shares(list), width) }, mt)
  if path then write_image(map, answer, path) end
  return map
end

return M
