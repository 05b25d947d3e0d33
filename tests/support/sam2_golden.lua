-- sam2_golden.lua - what the tests of SAM2 read from tests/golden/sam2: the stored samples, and the
-- formulas that make images, logits and weights (tests/golden/README.md, "sam2").
--
--   local golden = require "tests.support.sam2_golden"
--   local case = golden.open "S1"       its id, dir, json, config and tensors
--   case:error(key, t)                  worst difference, over the largest stored magnitude
--   golden.image(h, w)                  an image object
--   golden.pixels(size)                 f32 [1, size, size, 3] as the model gets it
--   golden.logits(c, h, w)              f32 [c, h, w]
--   golden.formula(case)                a model of the case's config with the formula's weights,
--                                       and the sum of the weights
-- Leaves out: the checks themselves; they are in tests/unit/test_sam2.lua.

local bit = require "bit"
local cjson = require "cjson"
local sz = require "segzero"
local check = require "tests.support.check"
local tensor = require "segzero.core.tensor"
local sam2 = require "segzero.models.sam2"

local band = bit.band
local bxor = bit.bxor
local lshift = bit.lshift
local rshift = bit.rshift
local tobit = bit.tobit

local M = { root = "tests/golden/sam2/" }

function M.read_json(path)
  local file = assert(io.open(path, "r"))
  local text = file:read "*a"
  file:close()
  return cjson.decode(text)
end

-- a * b mod 2^32; b below 2^32.
local function multiply(a, b)
  return tobit(band(a, 0xffff) * b + lshift(tobit(rshift(a, 16) * b), 16))
end

local function mix(x)
  x = multiply(bxor(x, rshift(x, 16)), 0x85EBCA6B)
  x = multiply(bxor(x, rshift(x, 13)), 0xC2B2AE35)
  return bxor(x, rshift(x, 16))
end

local function fnv1a(text)
  local h = tobit(0x811C9DC5)
  for i = 1, #text do h = multiply(bxor(h, text:byte(i)), 16777619) end
  return h
end

-- The seeds' texts belong to the stored data.
local IMAGE = fnv1a "picture"
local LOGITS = fnv1a "logits"

function M.image(height, width)
  local img = sz.image.new(width, height)
  local p = img:pixels()
  local i = 0
  for y = 0, height - 1 do
    for x = 0, width - 1 do
      for c = 0, 2 do
        local slope = math.abs((5 * y + 3 * x + 64 * c) % 256 - 128)
        p[i] = slope + rshift(mix(tobit(IMAGE + i)), 26)
        i = i + 1
      end
    end
  end
  return img
end

function M.pixels(size)
  return M.image(size, size):totensor():cast(0):affine(1 / 64, -2):reshape(1, size, size, 3)
end

function M.logits(channels, height, width)
  local t = tensor.empty { channels, height, width }
  local p = tensor.data(t)
  local i = 0
  for c = 0, channels - 1 do
    for y = 0, height - 1 do
      for x = 0, width - 1 do
        local slope = math.abs((7 * y + 4 * x + 50 * c) % 256 - 128) - 64
        local noise = rshift(mix(tobit(LOGITS + i)), 27) - 16
        p[i] = (slope + noise) / 8
        i = i + 1
      end
    end
  end
  return t
end

local SHARED = "shared_image_embedding.positional_embedding"
local HYPERNETWORKS = "output_hypernetworks_mlps"
local HEADS = { HYPERNETWORKS, "iou_prediction_head", "pred_obj_score_head" }

local function has(name, word) return name:find(word, 1, true) ~= nil end

local function is_token(name, shape)
  if name:match "tokens?%.weight$" or name == "no_memory_embedding" then return true end
  return has(name, "_embed") and #shape == 2
end

-- The number of products that one output of this weight sums.
local function inputs_of(name, shape)
  if has(name, "upscale_conv") then return shape[1] end
  local elements = 1
  for _, n in ipairs(shape) do elements = elements * n end
  return elements / shape[1]
end

-- The power of two that a weight's values are divided by.
local function exponent(name, shape, hyper0)
  if name:match "bias$" then return 3 end
  if name:match "positional_embedding$" then return 0 end
  if has(name, "pos_embed") then return 1 end
  if is_token(name, shape) then return 0 end
  local inputs = inputs_of(name, shape)
  local e = 0
  while 3 * 4 ^ e < inputs do e = e + 1 end
  for _, head in ipairs(HEADS) do
    if has(name, head) then e = e - 1 end
  end
  if has(name, HYPERNETWORKS) and name:match "proj_out%.weight$" then
    e = e - 1
    if has(name, HYPERNETWORKS .. ".0.") then e = e - (hyper0 or 0) end
  end
  return e
end

-- Fills one weight; returns the sum of its values. The weights of norms are near 1.
local function fill(t, name, salt, hyper0)
  local shape = t:shape()
  local p = tensor.data(t)
  local h = fnv1a(name .. salt)
  local norm = has(name, "norm") and name:match "weight$" ~= nil
  local scale = 0
  if not norm then scale = 2 ^ -exponent(name, shape, hyper0) / 256 end
  local sum = 0
  for i = 0, t:numel() - 1 do
    local x = mix(tobit(h + i))
    local v
    if norm then
      v = 1 + (rshift(x, 27) - 16) / 64
    else
      v = (2 * rshift(x, 24) - 255) * scale
    end
    p[i] = v
    sum = sum + v
  end
  return sum
end

function M.formula(case)
  local sam = sam2.random(case.config, { gain = 0 })
  local sum = 0
  for name, t in pairs(sam:parameters()) do
    local host = t
    if t:device() ~= "cpu" then host = tensor.empty(t:shape()) end
    local s = fill(host, name, case.json.salt, case.json.hyper0)
    if host ~= t then
      t:copy_(host)
      host:free()
    end
    if name == SHARED then s = 2 * s end        -- transformers stores this one twice
    sum = sum + s
  end
  return sam, sum
end

local Case = {}
Case.__index = Case

-- A case from its parts: json.maps[key].stride is 1 where it is missing.
function M.case(json, tensors)
  return setmetatable({ json = json, tensors = tensors }, Case)
end

function M.open(id)
  local dir = M.root .. id .. "/"
  local tensors = sz.safetensors.load(dir .. "case.safetensors")
  local case = M.case(M.read_json(dir .. "case.json"), tensors)
  case.id = id
  case.dir = dir
  case.config = M.read_json(dir .. "config.json")
  return case
end

-- The worst difference of t from the stored samples of `key`, over the samples' largest magnitude.
-- from: element 0 of t is the stored tensor's element `from`.
function Case:error(key, t, from)
  local want = self.tensors[key]
  local map = self.json.maps[key]
  local stride = 1
  if map and map.stride then stride = map.stride end
  t = check.host(t)
  local w = tensor.data(want)
  local g = tensor.data(t)
  local worst = 0
  local largest = 1e-30
  from = from or 0
  for i = 0, want:numel() - 1 do
    local at = i * stride - from
    if at >= 0 and at < t:numel() then
      local d = math.abs(g[at] - w[i])
      if d ~= d then d = math.huge end
      if d > worst then worst = d end
    end
    largest = math.max(largest, math.abs(w[i]))
  end
  return worst / largest
end

return M
