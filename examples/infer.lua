-- infer.lua - asks a model which object of a picture a sentence means, has SAM2 cut it out, and draws both.
--
--   segzero examples/infer.lua --image_path photo.png --text "the unusual object in the image"
--   segzero examples/infer.lua --demo            a RefShapes picture and question of its own; --demo 7 is another one
--
-- Options as --name value, --name=value or name=value:
--   image_path, text      the picture and the sentence
--   demo                  number of the made picture; image_path and text are not needed then (text replaces the question)
--   model_path            a Hugging Face folder of Qwen2.5-VL (default: the small model that comes with segzero)
--   adapter               a folder of LoRA adapters for it, in PEFT's format (a checkpoint of training with LoRA)
--   sam2_path             SAM2: a transformers folder or an original .pt file; also as segmentation_model_path, as Seg-Zero has
--                         it (default: the small one that comes with segzero, when the small model is asked; else none)
--   output_path           .png or .jpg to write (default: <picture's name>_segzero.png in the current folder)
--   mask_path             .png to write the bare mask to: one channel, 0 and 255, as large as the picture
--   multi                 several objects in one answer: VisionReasoner's prompt and answers
--   frame                 side of the square, in pixels, that the picture is resized to (default: segzero_frame of the
--                         folder's config.json, else 840 as Seg-Zero)
--   dtype, device         f32, bf16 or int8 (default: the folder's torch_dtype); as in sz.qwen_vl
--   do_sample, temperature, top_k, top_p, repetition_penalty, max_new_tokens, seed: see below
--
-- Greedy as Seg-Zero's script, until do_sample or a temperature over 0 is given. What is not given is the folder's
-- generation_config.json's, the repetition penalty of greedy answers too; max_new_tokens is 1024 where neither says.
--
-- The way of Seg-Zero's inference script: RGB, resized with Pillow's bilinear filter, its prompt, greedy decoding, its
-- reading of the answer, and its way of asking SAM2 (segment.lua; here in f32). The sentence is lower-cased, as in training
-- and evaluation (their script alone does not). With SAM2 the picture written is original | mask, box and points; without it
-- only box and points are drawn.
-- Exit status: 0 done; 1 no answer could be read, or a file or model is bad; 2 wrong options. Only 0 writes a picture.
-- Leaves out: batches.

local ffi = require "ffi"
local sz = require "segzero"
local model = require "segzero.models.qwen_vl"
local files = require "segzero.core.files"
local draw = require "segzero.tools.draw"
local tensor = require "segzero.core.tensor"

local TINY, TINY_SAM2 = sz.core.root .. "/models/tiny/qwen2.5-vl", sz.core.root .. "/models/tiny/sam2"

local function stop(status, message, ...)
  io.stdout:flush()
  io.stderr:write("infer: ", message:format(...), "\n")
  os.exit(status)
end

-- An error's text without the place in our sources.
local function reason(why) return (tostring(why):gsub("\nstack traceback:.*$", ""):gsub("^[^\n]-%.lua:%d+: ", "")) end

-- ---- options ----
local KINDS = {
  image_path = "text", text = "text", model_path = "text", adapter = "text", output_path = "text", dtype = "text", device = "text", demo = "number",
  sam2_path = "text", segmentation_model_path = "text", mask_path = "text", multi = "flag", do_sample = "flag",
  frame = "number", max_new_tokens = "number", temperature = "number", top_k = "number", top_p = "number", seed = "number",
  repetition_penalty = "number",
}
local SAME_AS = { segmentation_model_path = "sam2_path" }
local FLAGS = { [true] = true, ["true"] = true, ["1"] = true, ["false"] = false, ["0"] = false }

local function read_options(args)
  local options, i = {}, 1
  while i <= #args do
    local word = args[i]
    local key, value = word:match "^%-?%-?([%w_]+)=(.*)$"
    if not key then
      key = word:match "^%-%-([%w_]+)$"
      local following = args[i + 1]
      if key == "demo" and (not following or not tonumber(following)) then
        value = "0"
      elseif KINDS[key] == "flag" and FLAGS[following] == nil then
        value = true
      elseif key then
        value, i = following, i + 1
      end
    end
    if not key or not KINDS[key] then
      local names = {}
      for name in pairs(KINDS) do names[#names + 1] = name end
      table.sort(names)
      stop(2, "unknown option %s; there are %s", word, table.concat(names, ", "))
    end
    if not value then stop(2, "--%s needs a value", key) end
    if KINDS[key] == "number" then
      options[key] = tonumber(value)
      if not options[key] then stop(2, "--%s expects a number, got %s", key, value) end
    elseif KINDS[key] == "flag" then
      options[key] = FLAGS[value]
      if options[key] == nil then stop(2, "--%s expects true or false, got %s", key, value) end
    else
      options[SAME_AS[key] or key] = value
    end
    i = i + 1
  end
  return options
end

local function expect(options, name, good, what)
  if options[name] ~= nil and not good(options[name]) then stop(2, "--%s expects %s, got %s", name, what, tostring(options[name])) end
end

local function check_options(o)
  if not o.demo and not o.image_path then stop(2, "no picture: --image_path FILE --text SENTENCE, or --demo to try without one") end
  if o.demo and o.image_path then stop(2, "--demo makes its own picture; leave --image_path out") end
  if not o.demo and not o.text or o.text and not o.text:find "%S" then stop(2, "no sentence: --text \"the thing to find\"") end
  local function whole(least) return function(v) return v >= least and v % 1 == 0 and v < 2 ^ 31 end end
  expect(o, "demo", whole(0), "a whole number")
  expect(o, "frame", whole(1), "a whole number of pixels")
  expect(o, "max_new_tokens", whole(1), "a whole number from 1")
  expect(o, "seed", whole(0), "a whole number")
  expect(o, "temperature", function(v) return v >= 0 and v < math.huge end, "a number from 0")
  expect(o, "top_k", function(v) return v % 1 == 0 and math.abs(v) < 2 ^ 31 end, "a whole number")
  expect(o, "top_p", function(v) return v > 0 and v < math.huge end, "a number over 0")
  expect(o, "repetition_penalty", function(v) return v > 0 and v < math.huge end, "a number over 0")
  expect(o, "dtype", function(v) return v == "f32" or v == "bf16" or v == "int8" end, "f32, bf16 or int8")
end

-- Checked before any weight is read: a long run must not end at a folder that is not there.
local function in_a_folder(path, option)
  local folder = path:match "^(.*)/[^/]*$"
  if folder and folder ~= "" and not files.exists(folder .. "/.") then stop(1, "the folder %s of --%s is not there", folder, option) end
  return path
end

local function output_path(o)
  local name = o.demo and ("demo_%d"):format(o.demo) or (o.image_path:match "([^/]+)/*$" or "picture"):gsub("(.)%.[^.]*$", "%1")
  local path = o.output_path or name .. "_segzero.png"
  local ending = (path:match "%.([^./]+)$" or ""):lower()
  if ending ~= "png" and ending ~= "jpg" and ending ~= "jpeg" then stop(2, "--output_path must end in .png, .jpg or .jpeg, got %s", path) end
  return in_a_folder(path, "output_path")
end

local function mask_path(o, other)
  if not o.mask_path then return nil end
  if not o.mask_path:lower():find "%.png$" then stop(2, "--mask_path must end in .png, got %s", o.mask_path) end
  if o.mask_path == other then stop(2, "--mask_path and --output_path are both %s", other) end
  return in_a_folder(o.mask_path, "mask_path")
end

-- ---- models ----
-- Loaded before the policy, which may be large: a wrong path shows at once. nil: there is none.
local function load_sam2(o)
  local path = o.sam2_path or not o.model_path and files.exists(TINY_SAM2 .. "/config.json") and TINY_SAM2
  if not path then
    if o.mask_path then stop(2, "--mask_path needs SAM2: name a folder or an original .pt file with --sam2_path") end
    return nil
  end
  path = path:gsub("(.)/+$", "%1")
  local ok, sam = pcall(sz.sam2, path, { device = o.device })
  if not ok then stop(1, "SAM2: %s", reason(sam)) end
  print("SAM2: " .. path)
  return sam
end

local function load_model(o)
  local dir = o.model_path or TINY
  dir = dir:gsub("(.)/+$", "%1")
  if not files.exists(dir .. "/config.json") then
    if o.model_path then stop(1, "%s", model.missing(dir)) end
    stop(1, "the small model is not in %s; name another one with --model_path FOLDER", dir)
  end
  if not o.model_path then
    print("model: " .. dir .. "\n  (small, and knows pictures of coloured shapes only; --model_path FOLDER takes a real Qwen2.5-VL)")
  else
    print("model: " .. dir)
  end
  local ok, vl = pcall(function()
    local json = model.read_json(dir .. "/config.json")
    local model_of = sz.qwen_vl(dir, { dtype = o.dtype or (json.torch_dtype == "bfloat16" and "bf16" or "f32"), device = o.device,
      adapter = o.adapter })
    model_of:generation()       -- a bad generation_config.json shows now
    return model_of
  end)
  if not ok then stop(1, "%s", reason(vl)) end
  return vl
end

local function frame_of(o, vl)
  local frame = o.frame or tonumber(vl.json.segzero_frame) or 840
  local ok, plan = pcall(function() return vl:processor():plan(frame, frame) end)
  if not ok then stop(1, "frame %s: %s", frame, reason(plan)) end
  if plan.resized_width ~= frame or plan.resized_height ~= frame then
    local unit = vl:processor().patch_size * vl:processor().merge_size
    stop(2, "--frame %d: the model would resize it to %d x %d; take a multiple of %d", frame, plan.resized_width, plan.resized_height, unit)
  end
  return frame
end

-- What vl:generate shall do. Text goes out as it is made.
local function generation_options(o, vl)
  local do_sample = o.do_sample
  if do_sample == nil then do_sample = o.temperature ~= nil and o.temperature > 0 end
  return { do_sample = do_sample, temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, seed = o.seed,
    repetition_penalty = o.repetition_penalty, max_new_tokens = o.max_new_tokens or vl:generation().max_new_tokens or 1024,
    on_text = function(_, piece)
      io.write(piece)
      io.flush()
    end }
end

-- ---- the run ----
local function demo_scene(o, frame)
  -- The same scene at any size; the size of the frame is the one that the small model was trained on.
  local size = math.max(84, math.min(840, math.floor(frame / 28) * 28))
  local s = sz.refshapes.sample { seed = 2026, split = "heldout", index = o.demo, size = size, level = 3, questions = 1 }
  local img = sz.image.new(s.width, s.height)
  ffi.copy(img:pixels(), s.rgb, s.width * s.height * 3)
  local q = s.questions[1]
  return img, o.text or q.problem, not o.text and q or nil
end

local function box_text(b) return ("[%d, %d, %d, %d]"):format(b[1], b[2], b[3], b[4]) end
local function point_text(p) return ("[%d, %d]"):format(p[1], p[2]) end

-- What was answered, in the picture's own pixels: as segment.lua takes it.
local function read_answer(o, out, fx, fy)
  local parse, scale = sz.answer.parse, sz.answer.scale
  if o.multi then parse, scale = sz.answer.parse_list, sz.answer.scale_list end
  local parsed, why = parse(out.text)
  if not parsed then
    stop(1, "the answer above cannot be read: %s%s", why, out.finish == "length" and " (it was cut off at --max_new_tokens)" or "")
  end
  return scale(parsed, fx, fy)
end

local function print_answer(o, found)
  if not o.multi then
    print("box:    " .. box_text(found.bbox))
    print("points: " .. point_text(found.points[1]) .. " " .. point_text(found.points[2]))
    return
  end
  if #found == 0 then print "the answer names no object" end
  for i, object in ipairs(found) do print(("object %d: box %s, point %s"):format(i, box_text(object.bbox), point_text(object.point))) end
end

-- -> u8 tensor [h, w] of 0 and 1
local function cut_out(sam, img, found)
  local started = sz.core.C.sz_seconds()
  local seg = sz.segment.new(sam)
  local ok, r = pcall(function() return seg:masks(seg:embed(img), { found })[1] end)
  if not ok then stop(1, "SAM2: %s", reason(r)) end
  local inside = sz.segment.compare(r.mask, r.mask)
  print(("mask:   %d pixels (%.1f%% of the picture), score %.2f, %.1f s"):format(inside, 100 * inside / (img.width * img.height), r.score,
    sz.core.C.sz_seconds() - started))
  return r.mask
end

local function save_mask(mask, path)
  local shape, bytes = mask:shape(), mask:clone()
  local p = tensor.data(bytes)
  for i = 0, bytes:numel() - 1 do p[i] = p[i] * 255 end
  sz.image.write_png(path, shape[2], shape[1], 1, p)
end

local function main()
  local o = read_options(arg)
  check_options(o)
  local path = output_path(o)
  local bare = mask_path(o, path)
  local img
  if o.image_path then
    local ok, why = pcall(sz.image.load, o.image_path)
    if not ok then stop(1, "%s", reason(why)) end
    img = why
  end
  local sam = load_sam2(o)
  local vl = load_model(o)
  local frame = frame_of(o, vl)
  local text, truth = o.text, nil
  if o.demo then img, text, truth = demo_scene(o, frame) end

  print(("picture: %s, %d x %d, seen as %d x %d"):format(o.image_path or "RefShapes, held-out scene " .. o.demo, img.width, img.height, frame, frame))
  print("question: " .. text)
  io.write "\n"
  local seen = img.width == frame and img.height == frame and img or img:resize(frame, frame, "bilinear")
  local asked = o.multi and sz.prompt.vision_reasoner(text) or sz.prompt.seg_zero(text)
  local input = vl:process { { role = "user", content = { { type = "image", image = seen }, { type = "text", text = asked } } } }
  local started = sz.core.C.sz_seconds()
  local out = vl:generate(input, generation_options(o, vl))[1]
  local seconds = sz.core.C.sz_seconds() - started
  print(("\n\n%d tokens in %.1f s, after picture and prompt of %d tokens"):format(#out.ids, seconds, #input.input_ids))

  local found = read_answer(o, out, img.width / frame, img.height / frame)
  print_answer(o, found)
  if truth then print("truth:  " .. box_text(truth.bbox) .. " (green in the picture)") end
  local mask = sam and cut_out(sam, img, found)
  if not sam then print "no mask: SAM2 makes it; name a folder or an original .pt file with --sam2_path" end
  local picture, k = draw.figure(img, found, { mask = mask, truth = truth and truth.bbox })
  local ok, failure = pcall(function()
    if bare then save_mask(mask, bare) end
    picture:save(path)
  end)
  if not ok then stop(1, "%s", reason(failure)) end
  if bare then print("wrote " .. bare) end
  print("wrote " .. path .. (k > 1 and (", %d times enlarged"):format(k) or ""))
end

main()
