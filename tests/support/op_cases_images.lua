-- op_cases_images.lua - the cases of the ops on images [b, h, w, c]: convolutions and resize.
-- op_cases.lua describes a call, and merges these cases:
-- require("tests.support.op_cases_images")(cases). Sizes: one pixel, edges that the kernel
-- overhangs, strides that skip pixels, kernels that tile the image, several blocks of positions,
-- both orders of resize's passes, few and many channels.

-- b, h, w, c -> o with kernel kh x kw, stride, padding
local CONVOLUTIONS = {
  { 1, 1, 1, 1, 1, 1, 1, 1, 0, name = "one pixel" },
  { 2, 7, 9, 3, 5, 3, 3, 1, 1 },
  { 1, 19, 23, 3, 20, 7, 7, 4, 3, name = "as SAM2's patches" },
  { 1, 8, 10, 1, 4, 2, 2, 2, 0, name = "tiles" },
  { 2, 6, 6, 4, 16, 2, 2, 2, 0, name = "tiles" },
  { 1, 9, 7, 4, 3, 2, 2, 2, 0, name = "last row and column unused" },
  { 1, 13, 5, 7, 3, 5, 2, 3, 2, name = "kernel not square" },
  { 1, 5, 6, 17, 9, 1, 1, 1, 0, name = "pixel by pixel" },
  { 2, 7, 7, 6, 5, 1, 1, 2, 0, name = "pixels skipped" },
  { 1, 10, 6, 3, 4, 3, 3, 4, 0, name = "pixels skipped" },
  { 1, 3, 3, 2, 3, 3, 3, 1, 3, name = "positions outside the image" },
  { 1, 4, 300, 2, 3, 3, 3, 2, 1, name = "flat" },
  { 2, 40, 44, 8, 12, 5, 5, 1, 2, name = "several blocks" },
  { 1, 64, 72, 8, 33, 4, 4, 4, 0, name = "past the parallel threshold" },
}

-- How many positions a kernel of k cells has on n cells.
local function positions(n, k, stride, padding)
  return math.floor((n + 2 * padding - k) / stride) + 1
end

-- make(g, s, oh, ow) -> call, for each size s; the tolerance is that of long sums.
local function convolution(make, bench)
  local function one(g, s)
    local call = make(g, s, positions(s[2], s[6], s[8], s[9]), positions(s[3], s[7], s[8], s[9]))
    call.sums = true
    call.name = ("%dx%d kernel, stride %d, padding %d"):format(s[6], s[7], s[8], s[9])
    if s.name then call.name = call.name .. ", " .. s.name end
    return call
  end
  return {
    calls = function(g)
      local list = {}
      for _, s in ipairs(CONVOLUTIONS) do
        local call = one(g, s)
        if call.inputs then list[#list + 1] = call end
      end
      return list
    end,
    bench = function(g)
      local call = one(g, bench)
      local oh = positions(bench[2], bench[6], bench[8], bench[9])
      local ow = positions(bench[3], bench[7], bench[8], bench[9])
      call.flops = 2 * bench[1] * oh * ow * bench[5] * bench[4] * bench[6] * bench[7]
      return call
    end,
  }
end

local PATCHES = { 1, 512, 512, 3, 112, 7, 7, 4, 3 }
-- 256 -> 64 channels, transposed, as conv2d sees it.
local UPSCALING = { 1, 128, 128, 64, 256, 2, 2, 2, 0 }

-- Every other bias is missing; biases come in both dtypes.
local function bias(g, n, s)
  if s[2] % 2 == 0 then return nil end
  return g.normal({ n }, s[3] % 2 == 1 and g.other or g.dtype)
end

-- b, h, w, c -> oh, ow
local RESIZES = {
  { 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 3, 4, 5 }, { 2, 8, 8, 1, 3, 3 }, { 1, 7, 7, 5, 16, 16 },
  { 2, 5, 9, 3, 11, 4 }, { 1, 9, 5, 3, 4, 11 }, { 1, 6, 10, 2, 6, 23 }, { 1, 10, 6, 2, 23, 6 },
  { 1, 12, 13, 3, 12, 13 }, { 1, 2, 3, 16, 1, 1 }, { 2, 6, 5, 17, 9, 12 }, { 2, 11, 12, 19, 5, 4 },
  { 1, 1, 300, 1, 2, 90 }, { 1, 40, 2, 1, 3, 3 }, { 1, 12, 40, 16, 24, 80 },
  { 1, 3, 700, 1, 5, 1100 },
  { 2, 33, 31, 3, 150, 170 }, { 1, 150, 130, 3, 64, 64 },
}
local MODES = { [0] = "nearest", "bilinear", "bicubic", "antialiased" }

-- make(s, mode) -> call, for each size s and mode
local function each_resize(make)
  local list = {}
  for _, s in ipairs(RESIZES) do
    for mode = 0, 3 do list[#list + 1] = make(s, mode) end
  end
  return list
end

return function(cases)
  cases.conv2d = convolution(function(g, s)
    local b = bias(g, s[5], s)
    return {
      inputs = { g.normal({ s[1], s[2], s[3], s[4] }), g.normal({ s[5], s[4], s[6], s[7] }), b },
      args = { s[8], s[9] }, grad = b and { 1, 2, 3 } or { 1, 2 },
    }
  end, PATCHES)

  cases.conv2d_dx = convolution(function(g, s, oh, ow)
    return {
      inputs = { g.normal({ s[1], oh, ow, s[5] }), g.normal({ s[5], s[4], s[6], s[7] }) },
      args = { s[8], s[9], s[2], s[3] },
    }
  end, PATCHES)

  cases.conv2d_dw_ = convolution(function(g, s, oh, ow)
    return {
      inputs = {
        g.normal({ s[5], s[4], s[6], s[7] }, "f32"), g.normal({ s[1], s[2], s[3], s[4] }),
        g.normal({ s[1], oh, ow, s[5] }),
      },
      args = { s[8], s[9] },
    }
  end, PATCHES)

  -- From conv2d's outputs back; sizes that the padding eats up are left out.
  cases.conv_transpose2d = convolution(function(g, s, oh, ow)
    local height = (oh - 1) * s[8] - 2 * s[9] + s[6]
    local width = (ow - 1) * s[8] - 2 * s[9] + s[7]
    if height < 1 or width < 1 then return {} end
    local b = bias(g, s[4], s)
    return {
      inputs = { g.normal({ s[1], oh, ow, s[5] }), g.normal({ s[5], s[4], s[6], s[7] }), b },
      args = { s[8], s[9] }, grad = b and { 1, 2, 3 } or { 1, 2 },
    }
  end, UPSCALING)

  cases.resize = {
    calls = function(g)
      return each_resize(function(s, mode)
        return {
          inputs = { g.normal({ s[1], s[2], s[3], s[4] }) }, args = { s[5], s[6], mode },
          grad = { 1 }, sums = true, name = ("%s to %dx%d"):format(MODES[mode], s[5], s[6]),
        }
      end)
    end,
    bench = function(g)
      return { inputs = { g.normal({ 1, 256, 256, 1 }) }, args = { 1000, 1500, 1 } }
    end,
  }

  cases.resize_backward = {
    calls = function(g)
      return each_resize(function(s, mode)
        return {
          inputs = { g.normal({ s[1], s[5], s[6], s[4] }) }, args = { s[2], s[3], mode },
          sums = true, name = ("%s to %dx%d"):format(MODES[mode], s[2], s[3]),
        }
      end)
    end,
    bench = function(g)
      return { inputs = { g.normal({ 1, 1000, 1500, 1 }) }, args = { 256, 256, 1 } }
    end,
  }
end
