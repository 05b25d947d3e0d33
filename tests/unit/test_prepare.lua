-- test_prepare.lua - what turns masks into training data: OpenCV's area resize, and the box and
-- points of a mask, against tests/golden/make_prepare.py.
--
--   ./segzero tests/unit/test_prepare.lua
--   ./segzero tests/unit/test_prepare.lua golden=FILE      values that the script wrote elsewhere

local ffi = require "ffi"
local check = require "tests.support.check"
local points = require "segzero.prepare.points"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"

local given = (arg[1] or ""):match "^golden=(.+)$"
local golden = sz.safetensors.load(given or "tests/golden/prepare.safetensors")

check.case("area resizes equal OpenCV's", function()
  local count = 0
  for name, want in pairs(golden) do
    local k, h, w = name:match "^area%.(%d+)%.(%d+)x(%d+)$"
    if k then
      count = count + 1
      local from = sz.image.from_tensor(golden["area." .. k])
      local got = from:resize(tonumber(w), tonumber(h), "area")
      local bytes = ffi.string(got:pixels(), got.width * got.height * 3)
      check.ok(bytes == ffi.string(tensor.data(want), want:numel()), name)
      from:free()
      got:free()
    end
  end
  check.equal(count, given and 0 or 21, "resizes compared")
end)

check.case("boxes and points equal those of Seg-Zero's script", function()
  local count = 0
  for name, want in pairs(golden) do
    local k = name:match "^points%.(%d+)$"
    if k then
      count = count + 1
      local mask = golden["mask." .. k]
      local shape = mask:shape()
      local box = points.box(tensor.data(mask), shape[2], shape[1])
      local p, q = points.two(tensor.data(mask), shape[2], shape[1])
      check.equal({ box[1], box[2], box[3], box[4], p[1], p[2], q[1], q[2] }, want:totable(), name)
    end
  end
  check.ok(count >= 60, count .. " masks compared")
end)

check.case("an empty mask has no box", function()
  local mask = ffi.new("uint8_t[12]")
  check.equal(points.box(mask, 4, 3), nil, "box")
  check.raises(function() return points.two(mask, 4, 3) end, "the mask is empty", "points")
end)

check.case("coordinates round as int(v * factor + 0.5) does", function()
  check.equal(points.scaled(639, 640, 840), 839, "639 of 640")
  check.equal(points.scaled(0, 640, 840), 0, "0")
  check.equal(points.scaled(10, 427, 840), 20, "10 of 427: 19.67")
  check.equal(points.scaled(4, 1680, 840), 2, "4 of 1680")
  check.equal(points.scaled(3, 1680, 840), 2, "3 of 1680: 1.5 rounds up")
end)

check.finish()
