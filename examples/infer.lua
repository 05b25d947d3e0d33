-- infer.lua - finds and masks the object that a sentence describes.
--
--   segzero examples/infer.lua --image_path photo.png --text "the unusual object in the image"
--   segzero examples/infer.lua --demo        a generated image and question; --demo 7 is another
--   segzero --ranks 2 examples/infer.lua ...     the model divided between two processes
--   segzero examples/infer.lua --help        all options (lua/segzero/config/infer.lua)
--
-- A Qwen-VL model answers with a box and points, SAM2 turns them into a mask, and both are drawn.
-- Follows Seg-Zero's inference script: an RGB image resized with Pillow's bilinear filter (resize),
-- its prompt, greedy decoding, its way of reading the answer and of prompting SAM2
-- (inference/segmenter.lua; here in f32). One difference: the sentence is lower-cased, as in
-- training and evaluation. do_sample, or a temperature above 0, samples instead of decoding
-- greedily. The image written has two titled panels, the original and what was found (mask, box and
-- points), with the question above and the thinking below. With --query it follows VisionReasoner's
-- script: lists of objects, and --task detection, counting (no mask) or vqa (no image is written).
-- Exit status: 0 done; 1 no answer could be read, or a file is damaged; 2 wrong options or no file.
-- An image is written only with status 0. Leaves out: batches.

local ffi = require "ffi"
local sz = require "segzero"
local coordinates = require "segzero.data.coordinates"
local cli = require "segzero.config.cli"
local infer = require "segzero.config.infer"
local model = require "segzero.models.qwen_vl"
local opening = require "segzero.models.opening"
local processors = require "segzero.models.qwen_vl.processor"
local parallel = require "segzero.train.parallel"
local paths = require "segzero.config.paths"
local files = require "segzero.core.files"
local hints = require "segzero.core.path_hints"
local frame = require "segzero.data.frame"
local mistake = require "segzero.core.mistake"
local draw = require "segzero.tools.draw"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"

local M = { schema = infer.schema, settings = infer.settings, on_ranks = true }

local seconds = sz.core.C.sz_seconds

-- stripped from both ends of a question by VisionReasoner's script
local QUERY_MARKS = '."?!'

local function fail(message, ...) error(message:format(...), 0) end

-- An error's message without its position in the source and without a traceback.
local function reason(why)
  return (tostring(why):gsub("\nstack traceback:.*$", ""):gsub("^[^\n]-%.lua:%d+: ", ""))
end

-- Checked first, so that a long run does not fail when it writes its result.
local function check_folder(path, option)
  local folder = path:match "^(.*)/[^/]*$"
  if folder and folder ~= "" and not files.exists(folder .. "/.") then
    local message = "--%s: the folder %s does not exist; make it first"
    mistake.raise(message:format(option, folder))
  end
end

-- ---- models ----
-- Returns nil without SAM2. SAM2 is loaded before the policy, which may be large, so that a wrong
-- path fails at once.
local function load_sam2(o)
  if o.sam2_path == "" then return nil end
  paths.check_sam2("--sam2_path", o.sam2_path)
  local ok, sam = pcall(sz.sam2, o.sam2_path, { device = o.device })
  if not ok then fail("SAM2: %s", reason(sam)) end
  print("SAM2: " .. o.sam2_path)
  return sam
end

local function open_policy(o, shards)
  local dtype = o.dtype
  if not dtype then
    dtype = opening.dtype(model.read_json(o.model_path .. "/config.json"))
  end
  local vl = sz.qwen_vl(o.model_path, { dtype = dtype, device = o.device, adapter = o.adapter,
    shards = shards })
  vl:tokenizer()            -- fails now if its files are missing or bad
  vl:generation()
  return vl
end

local function load_policy(o, shards)
  local ok, vl = pcall(open_policy, o, shards)
  if not ok then fail("%s", reason(vl)) end
  return vl
end

-- A square of the frame's side is what the model sees.
local function check_frame(side, processor)
  local ok, plan = pcall(processor.plan, processor, side, side)
  if not ok then fail("frame %s: %s", side, reason(plan)) end
  if plan.resized_width == side and plan.resized_height == side then return end
  local message = "--frame %d: the model would resize it to %d x %d; use a multiple of %d"
  local block = processor.patch_size * processor.merge_size
  mistake.raise(message:format(side, plan.resized_width, plan.resized_height, block))
end

-- Names the policy, and refuses what the options, the device and its small files alone forbid.
local function check_policy(o)
  local dir = o.model_path
  if o.embedded and not files.exists(dir .. "/config.json") then
    fail("the small model is not in %s; name another one with --model_path FOLDER", dir)
  end
  paths.check_policy("--model_path", dir)
  print("model: " .. dir)
  if o.embedded then
    print("  (small: it knows only images of coloured shapes; " ..
      "use --model_path FOLDER for a real Qwen2.5-VL)")
  end
  local ok, why = pcall(model.check, { dtype = o.dtype, device = o.device })
  if not ok then fail("%s", reason(why)) end
  if o.resize then return end
  local found, processor = pcall(processors.new, dir)
  if not found then fail("%s", reason(processor)) end
  check_frame(o.frame or frame.side_of_model(model.read_json(dir .. "/config.json")), processor)
end

-- How the image is resized and what answers count in (data/frame.lua); and the model's own side.
local function frames_of(o, vl)
  local side = o.frame or frame.side_of_model(vl.json)
  local frames = coordinates.for_policy(frame.settings(o), vl)
  if not o.resize then frames.resize = frame.square(side) end
  return frames, side
end

-- Options for vl:generate. The answer is printed while it is generated.
local function generation_options(o, vl)
  local do_sample = o.do_sample
  if do_sample == nil then do_sample = o.temperature ~= nil and o.temperature > 0 end
  local function print_piece(_, piece)
    io.write(visible.text(piece))
    io.flush()
  end
  return { do_sample = do_sample, temperature = o.temperature, top_k = o.top_k, top_p = o.top_p,
    seed = o.seed, repetition_penalty = o.repetition_penalty,
    max_new_tokens = o.max_new_tokens or vl:generation().max_new_tokens or 1024,
    on_text = print_piece }
end

-- ---- the image and its question ----
-- Draws a held-out scene of the model's own side, which is what the small model was trained on.
-- Returns the image, the sentence, and the true object if the sentence is the scene's own.
local function demo_scene(o, side)
  local size = sz.refshapes.nearest_size(side)
  local scene = sz.refshapes.sample { seed = 2026, split = "heldout", index = o.demo, size = size,
    level = 3, questions = 1 }
  local img = sz.image.new(scene.width, scene.height)
  ffi.copy(img:pixels(), scene.rgb, scene.width * scene.height * 3)
  local question = scene.questions[1]
  if o.text then return img, o.text, nil end
  return img, question.problem, question
end

local function load_image(path)
  local ok, img = pcall(sz.image.load, path)
  if ok then return img end
  if not files.exists(path) then
    mistake.raise(("--image_path: %s%s"):format(reason(img), hints.question(path)))
  end
  fail("--image_path: %s", reason(img))
end

-- ---- the answer ----
local function box_text(b) return ("[%d, %d, %d, %d]"):format(b[1], b[2], b[3], b[4]) end
local function point_text(p) return ("[%d, %d]"):format(p[1], p[2]) end

-- The answer in the image's own pixels, as inference/segmenter.lua takes it.
local function read_answer(o, out, answer_frame, img)
  local parse = sz.answer.parse
  if o.multi then parse = sz.answer.parse_list end
  if not o.shows_mask then parse = sz.answer.parse_boxes end
  local parsed, why = parse(out.text)
  if parsed then return frame.answer(parsed, answer_frame, img) end
  local hint = ""
  if out.finish == "length" then hint = " (it was cut off at --max_new_tokens)" end
  fail("the answer above cannot be read: %s%s", why, hint)
end

local function print_answer(o, found)
  if not o.multi then
    print("box:    " .. box_text(found.bbox))
    print("points: " .. point_text(found.points[1]) .. " " .. point_text(found.points[2]))
    return
  end
  if #found == 0 then print "the answer names no object" end
  if o.task == "counting" then print(("count:  %d"):format(#found)) end
  for i, object in ipairs(found) do
    local box = box_text(object.bbox)
    local point = "none"
    if object.point then point = point_text(object.point) end
    print(("object %d: box %s, point %s"):format(i, box, point))
  end
end

-- The answer's mask, a u8 tensor [h, w] of 0 and 1, and what is printed about it.
local function cut_out(sam, img, found)
  local started = seconds()
  local segmenter = sz.segment.new(sam)
  local ok, result = pcall(function() return segmenter:masks(segmenter:embed(img),
    { found })[1] end)
  if not ok then fail("SAM2: %s", reason(result)) end
  local inside = sz.segment.compare(result.mask, result.mask)
  local percent = 100 * inside / (img.width * img.height)
  local facts = "%d pixels (%.1f%% of the image), score %.2f"
  facts = facts:format(inside, percent, result.score)
  print(("mask:   %s, %.1f s"):format(facts, seconds() - started))
  return result.mask, "mask: " .. facts
end

local function save_mask(mask, path)
  local shape = mask:shape()
  local bytes = mask:clone()
  local p = tensor.data(bytes)
  for i = 0, bytes:numel() - 1 do p[i] = p[i] * 255 end
  sz.image.write_png(path, shape[2], shape[1], 1, p)
end

-- ---- the run ----
-- Returns the answer, and the frame that it counts in.
local function ask(o, vl, img, text, frames)
  local shown = coordinates.resized(img, frames)
  local prompt = sz.prompt.seg_zero(text)
  if o.multi then prompt = sz.prompt.vision_reasoner(text, o.query and QUERY_MARKS) end
  if o.task == "vqa" then prompt = text end
  local content = { { type = "image", image = shown }, { type = "text", text = prompt } }
  local input = vl:process { { role = "user", content = content } }
  local seen = coordinates.seen(input, shown)
  local answer_frame = frame.answers(frames.answer, img, seen)
  if not frame.equal(answer_frame, shown) then
    local line = "the model sees %s, and its answer counts in %s\n"
    print(line:format(frame.text(seen), frame.text(answer_frame)))
  end
  local started = seconds()
  local out = vl:generate(input, generation_options(o, vl))[1]
  local line = "\n\n%d tokens in %.1f s; the image and the prompt have %d tokens"
  print(line:format(#out.ids, seconds() - started, #input.input_ids))
  return out, answer_frame
end

-- shown: question, text and facts of draw.panels.
local function write_images(o, img, found, mask, truth, shown)
  shown.mask = mask
  shown.truth = truth and truth.bbox
  local figure, times = draw.panels(img, found, shown)
  local ok, failure = pcall(function()
    if o.mask_path then save_mask(mask, o.mask_path) end
    figure:save(o.output_path)
  end)
  if not ok then fail("%s", reason(failure)) end
  if o.mask_path then print("wrote " .. o.mask_path) end
  local enlarged = ""
  if times > 1 then enlarged = (", enlarged %d times"):format(times) end
  print("wrote " .. o.output_path .. enlarged)
end

-- One rank of those that hold the model together; the first one prints, masks and writes.
local function execute(p, o)
  -- Check files and models, the cheapest first.
  check_folder(o.output_path, "output_path")
  if o.mask_path then check_folder(o.mask_path, "mask_path") end
  local img, sam, vl
  p:together(function()
    if o.image_path then img = load_image(o.image_path) end
    if p:is_root() then sam = load_sam2(o) end
    check_policy(o)
    vl = load_policy(o, p.shard_group)
  end)

  -- The question.
  local frames, side = frames_of(o, vl)
  local text = o.text
  local truth, source
  if o.demo then
    img, text, truth = demo_scene(o, side)
    source = "RefShapes, held-out scene " .. o.demo
  end
  local sizes = ("%d x %d"):format(img.width, img.height)
  if frames.resize then
    sizes = ("%s, resized to %d x %d"):format(sizes, frames.resize.width, frames.resize.height)
  end
  print(("image: %s, %s"):format(source or o.image_path, sizes))
  print("question: " .. visible.text(text))
  io.write "\n"

  -- The answer, its mask, and the image that shows them.
  local out, answer_frame
  p:in_step(function() out, answer_frame = ask(o, vl, img, text, frames) end)
  if not p:is_root() then return end
  if o.task == "vqa" then return out.text end
  local found = read_answer(o, out, answer_frame, img)
  print_answer(o, found)
  if truth then print("truth:  " .. box_text(truth.bbox) .. " (green in the image)") end
  local mask, facts
  if sam then
    mask, facts = cut_out(sam, img, found)
  elseif o.shows_mask then
    print "no mask: it needs SAM2; name a folder or an original .pt file with --sam2_path"
  end
  write_images(o, img, found, mask, truth, { question = visible.text(text),
    text = visible.text(out.text), facts = facts })
  return found, mask
end

function M.execute(o)
  local p = parallel.all_shards()
  return p:run(execute, p, o)
end

M.run = cli.runner(M)

cli.main(M)

return M
