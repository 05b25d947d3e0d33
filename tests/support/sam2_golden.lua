-- sam2_golden.lua - what tests of SAM2 read of tests/golden/sam2: stored samples, and the formulas behind pictures, logits and
-- weights (tests/golden/README.md, "sam2").
--
--   local golden = require "tests.support.sam2_golden"
--   local case = golden.open "S1"               case.json, case.tensors; case:error(key, t): worst difference / largest magnitude
--   golden.picture(h, w) -> image object        golden.pixels(size) -> f32 [1, S, S, 3] as the model gets it
--   golden.logits(c, h, w) -> f32 tensor [c, h, w]
--   golden.formula(case) -> a model of the case's config with the formula's weights

local bit = require "bit"
local cjson = require "cjson"
local sz = require "segzero"
local check = require "tests.support.check"
local tensor = require "segzero.core.tensor"
local sam2 = require "segzero.models.sam2"

local band, bxor, rshift, lshift, tobit = bit.band, bit.bxor, bit.rshift, bit.lshift, bit.tobit

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

local PICTURE, LOGITS = fnv1a "picture", fnv1a "logits"

function M.picture(height, width)
  local img = sz.image.new(width, height)
  local p, i = img:pixels(), 0
  for y = 0, height - 1 do
    for x = 0, width - 1 do
      for c = 0, 2 do
        p[i] = math.abs((5 * y + 3 * x + 64 * c) % 256 - 128) + rshift(mix(tobit(PICTURE + i)), 26)
        i = i + 1
      end
    end
  end
  return img
end

function M.pixels(size)
  return M.picture(size, size):totensor():cast(0):affine(1 / 64, -2):reshape(1, size, size, 3)
end

function M.logits(channels, height, width)
  local t, i = tensor.empty { channels, height, width }, 0
  local p = tensor.data(t)
  for c = 0, channels - 1 do
    for y = 0, height - 1 do
      for x = 0, width - 1 do
        p[i] = (math.abs((7 * y + 4 * x + 50 * c) % 256 - 128) - 64 + rshift(mix(tobit(LOGITS + i)), 27) - 16) / 8
        i = i + 1
      end
    end
  end
  return t
end

local SHARED = "shared_image_embedding.positional_embedding"
local HEADS = { "output_hypernetworks_mlps", "iou_prediction_head", "pred_obj_score_head" }

local function has(name, word) return name:find(word, 1, true) ~= nil end

-- The power of two that a weight's values are divided by.
local function exponent(name, shape, hyper0)
  if name:match "bias$" then return 3 end
  if name:match "positional_embedding$" then return 0 end
  if has(name, "pos_embed") then return 1 end
  if name:match "tokens?%.weight$" or has(name, "_embed") and #shape == 2 or name == "no_memory_embedding" then return 0 end
  local elements = 1
  for _, n in ipairs(shape) do elements = elements * n end
  local inputs, e = has(name, "upscale_conv") and shape[1] or elements / shape[1], 0
  while 3 * 4 ^ e < inputs do e = e + 1 end
  for _, head in ipairs(HEADS) do
    if has(name, head) then e = e - 1 end
  end
  if has(name, HEADS[1]) and name:match "proj_out%.weight$" then e = e - 1 - (has(name, HEADS[1] .. ".0.") and hyper0 or 0) end
  return e
end

-- Fills one weight; returns the sum of its values.
local function fill(t, name, salt, hyper0)
  local shape, p = t:shape(), tensor.data(t)
  local h, sum = fnv1a(name .. salt), 0
  local norm = has(name, "norm") and name:match "weight$" ~= nil
  local scale = norm and 0 or 2 ^ -exponent(name, shape, hyper0) / 256
  for i = 0, t:numel() - 1 do
    local x = mix(tobit(h + i))
    local v = norm and 1 + (rshift(x, 27) - 16) / 64 or (2 * rshift(x, 24) - 255) * scale
    p[i] = v
    sum = sum + v
  end
  return sum
end

function M.formula(case)
  local sam = sam2.random(case.config, { gain = 0 })
  local sum = 0
  for name, t in pairs(sam:parameters()) do
    local here = t:device() == "cpu" and t or tensor.empty(t:shape())
    local s = fill(here, name, case.json.salt, case.json.hyper0)
    if here ~= t then
      t:copy_(here)
      here:free()
    end
    sum = sum + (name == SHARED and 2 * s or s)         -- transformers stores this one twice
  end
  return sam, sum
end

local Case = {}
Case.__index = Case

function M.open(id)
  local dir = M.root .. id .. "/"
  return setmetatable({ id = id, dir = dir, json = M.read_json(dir .. "case.json"), config = M.read_json(dir .. "config.json"),
    tensors = sz.safetensors.load(dir .. "case.safetensors") }, Case)
end

-- Worst difference of t from the stored samples of `key`, over the samples' largest magnitude. from: t's element 0 is the
-- stored tensor's element `from`.
function Case:error(key, t, from)
  local want, stride = self.tensors[key], self.json.maps[key] and self.json.maps[key].stride or 1
  t = check.host(t)
  local w, g, worst, largest = tensor.data(want), tensor.data(t), 0, 1e-30
  from = from or 0
  for i = 0, want:numel() - 1 do
    local at = i * stride - from
    if at >= 0 and at < t:numel() then
      local d = math.abs(g[at] - w[i])
      if not (d <= worst) then worst = d ~= d and math.huge or d end
    end
    largest = math.max(largest, math.abs(w[i]))
  end
  return worst / largest
end

return M
