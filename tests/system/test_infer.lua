-- test_infer.lua - examples/infer.lua as a user runs it: wrong options and bad files are one clear
-- line and write nothing; an image and a sentence give a box, points and an image with both drawn
-- in; with SAM2 a mask, too.
--
--   ./segzero tests/system/test_infer.lua [MODEL FOLDER [FRAME]]
--
-- The folder is an absolute path; the default is models/tiny/qwen2.5-vl and its own frame.
--
-- How good the answers are is not judged here.

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local draw = require "segzero.tools.draw"
local files = require "segzero.core.files"
local has_host, host = pcall(require, "segzero.host")
local SAM2 = sz.core.root .. "/tests/golden/sam2/S5"

if not has_host then
  check.skip "the host program: run it as ./segzero tests/system/test_infer.lua"
  return check.finish()
end

local MODEL = arg[1] or sz.core.root .. "/models/tiny/qwen2.5-vl"
local FRAME = arg[2]

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

local function quoted(s) return "'" .. s:gsub("'", "'\\''") .. "'" end

-- Runs the example in `dir` -> output, exit status.
local function infer(...)
  local words = {}
  for i, word in ipairs { ... } do words[i] = quoted(word) end
  local command = ("cd %s && { %s %s %s 2>&1; echo \"exit $?\"; }"):format(quoted(dir),
    quoted(host.executable),
    quoted(sz.core.root .. "/examples/infer.lua"), table.concat(words, " "))
  local pipe = assert(io.popen(command))
  local output = pipe:read "*a"
  pipe:close()
  local text, status = output:match "^(.*)exit (%d+)\n$"
  return text, tonumber(status)
end

local function written()
  local pipe, names = assert(io.popen("ls -A " .. quoted(dir))), {}
  for name in pipe:lines() do names[#names + 1] = name end
  pipe:close()
  return names
end

-- ---- refused before a model is read ----
local scene = sz.refshapes.sample { seed = 7, index = 3, split = "heldout", size = 448, level = 2,
  questions = 1 }
local img = sz.image.new(scene.width, scene.height)
ffi.copy(img:pixels(), scene.rgb, scene.width * scene.height * 3)
local photo = img:resize(640, 480, "bilinear")
photo:save(dir .. "/photo.png")
files.write(dir .. "/text.png", "this is no image\n")
files.make_dir(dir .. "/empty")
local before = written()

local function refused(status, pattern, ...)
  local output, got = infer(...)
  check.equal(got, status, "exit status of: " .. table.concat({ ... }, " "))
  local line = output:match "([^\n]*)\n$" or ""
  check.ok(line:find "^infer: " and line:find(pattern), ("%s: %s"):format(pattern, line))
  check.ok(not output:find "stack traceback", "no traceback")
end
refused(2, "no image")
refused(2, "no sentence", "--image_path", "photo.png")
refused(2, "no sentence", "--image_path", "photo.png", "--text", " ")
refused(2, "unknown setting 'image': did you mean 'image_path'", "--image", "photo.png")
refused(2, "%-%-text needs a value", "--image_path", "photo.png", "--text")
refused(2, "frame is 'big', expected a whole number from 1", "--demo", "frame=big")
refused(2, "max_new_tokens is 0, expected a whole number from 1", "--demo", "--max_new_tokens", "0")
refused(2, "dtype is 'f16', expected one of: f32, bf16, int8, int4", "--demo", "--dtype=f16")
refused(2, "leave %-%-image_path out", "--demo", "--image_path", "photo.png")
refused(2, "must end in .png", "--demo", "--output_path", "a.gif")
refused(2, "%-%-output_path: the folder nowhere does not exist", "--demo", "--output_path",
  "nowhere/a.png")
refused(2, "missing.png: No such file", "--image_path", "missing.png", "--text", "x")
refused(1, "text.png: not an? %a+", "--image_path", "text.png", "--text", "x")
refused(1, "empty", "--image_path", "empty", "--text", "x")
refused(2, "no model in nowhere", "--demo", "--model_path", "nowhere")
refused(2, "no model in empty", "--demo", "--model_path", "empty")
refused(2, "%-%-mask_path must end in .png, got m.jpg", "--demo", "--sam2_path", SAM2,
  "--mask_path", "m.jpg")
refused(2, "both a.png", "--demo", "--sam2_path", SAM2, "--mask_path", "a.png", "--output_path",
  "a.png")
refused(2, "output_path and %-%-image_path are both photo.png", "--image_path", "photo.png",
  "--text", "x", "--output_path", "photo.png")
refused(2, "mask_path and %-%-image_path are the same file, ./photo.png", "--image_path",
  "photo.png", "--text", "x", "--sam2_path", SAM2, "--mask_path", "./photo.png")
refused(2, "multi is 'maybe', expected true or false", "--demo", "--multi=maybe")
refused(2, "%-%-mask_path needs SAM2: .*%-%-sam2_path", "--image_path", "photo.png", "--text", "x",
  "--model_path", "nowhere", "--mask_path", "m.png")
refused(2, "%-%-mask_path: the folder nowhere does not exist", "--demo", "--sam2_path", SAM2,
  "--mask_path", "nowhere/m.png")
-- SAM2's path is looked at before the policy's.
for _, bad in ipairs { { "nowhere", "nowhere: there is no such file or folder" },
  { "empty", "no SAM2 in empty" }, { "text.png", "text.png: not a file of torch.save", 1 },
  { sz.core.root .. "/tests/golden/grpo", "no config.json and no .pt" } } do
  for _, name in ipairs { "--sam2_path", "--segmentation_model_path" } do
    refused(bad[3] or 2, bad[2], "--demo", "--model_path", "nowhere", name, bad[1])
  end
end
check.equal(written(), before, "nothing written")

-- ---- masks, with a policy that says one thing ----
-- A model without attention or MLP sees its last token alone: after the prompt's last one it says
-- the answer, which is a single token of its tokenizer, then it stops.
local mini = require "tests.support.miniature"

local function parrot(path, answer)
  local name = path .. "/tokenizer.json"
  local id
  mini.write(path, { config = { vocab_size = 512, tie_word_embeddings = false },
    change = function(vl)
    local tok = sz.tokenizer(path)
    id = tok:size()
    local after_prompt = tok:encode "assistant\n"
    local weights = vl:parameters()
    for key, t in pairs(weights) do
      if key:find "^model%.layers.*o_proj" or key:find "^model%.layers.*down_proj" then
        t:copy_(sz.tensor.zeros(t:shape()))
      end
    end
    local embed, head = sz.tensor.data(weights["model.embed_tokens.weight"]),
    sz.tensor.data(weights["lm_head.weight"])
    local function follows(next_id, this_id)
      for i = 0, 31 do head[next_id * 32 + i] = 100 * embed[this_id * 32 + i] end
    end
    follows(id, after_prompt[#after_prompt])
    follows(tok:id "<|im_end|>", id)
    tok:free()
  end })
  local json = files.read(name)
  local entry = ('{"id": %d, "content": "%s", "single_word": false, "lstrip": false, '
    .. '"rstrip": false, "normalized": false, "special": false}')
    :format(id, (answer:gsub('"', '\\"')))
  files.write(name, (json:gsub('("added_tokens": %[\n)',
    function(head) return head .. entry .. ",\n" end, 1)))
  return path
end

local ONE = parrot(dir .. "/one",
  '<think>a thing</think><answer>{"bbox": [20,16,50,60], "points_1": [30,30], '
    .. '"points_2": [40,50]}</answer>')
local SEVERAL = parrot(dir .. "/several",
  '<answer>[{"bbox_2d": [20,16,50,60], "point_2d": [30,30]}, '
    .. '{"bbox_2d": [52,10,80,40], "point_2d": [66,20]}]</answer>')
local NONE = parrot(dir .. "/none", "<answer>[]</answer>")

local function mask_of(path)
  local found = sz.image.load(path)                -- grey comes back as three equal channels
  local p, n, odd = found:pixels(), 0, 0
  for i = 0, found.width * found.height - 1 do
    if p[3 * i] == 255 then n = n + 1 elseif p[3 * i] ~= 0 then odd = odd + 1 end
  end
  -- colour type in the header: 0 is one channel
  local channels = (files.read(path) or ""):byte(26)
  return { found.width, found.height, odd, channels }, n
end

local sam = sz.sam2(SAM2)
local function expected(answer)
  local seg = sz.segment.new(sam)
  local r = seg:masks(seg:embed(photo), { answer })[1]
  return (sz.segment.compare(r.mask, r.mask))
end
-- Of the 84-pixel frame in the image's 640 x 480, as answer.scale rounds.
local function scaled(text, multi)
  local parse = sz.answer.parse
  local scale = sz.answer.scale
  if multi then parse, scale = sz.answer.parse_list, sz.answer.scale_list end
  return scale(assert(parse(text)), 640 / 84, 480 / 84)
end

for _, case in ipairs {
  { ONE, "one object",
    scaled('<think>a thing</think>{"bbox": [20,16,50,60], "points_1": [30,30], '
      .. '"points_2": [40,50]}'),
    "\nbox:    %[152, 91, 381, 343%]\npoints: " },
  { SEVERAL, "two objects",
    scaled('<answer>[{"bbox_2d": [20,16,50,60], "point_2d": [30,30]}, '
      .. '{"bbox_2d": [52,10,80,40], "point_2d": [66,20]}]</answer>', true),
    "\nobject 1: box %[152, 91, 381, 343%], point %[229, 171%]\nobject 2: box " },
  { NONE, "no object", {}, "\nthe answer names no object\n" },
} do
  local multi = "--multi=" .. tostring(case[1] ~= ONE)
  local output, status = infer("--image_path", "photo.png", "--text", "x", "--model_path", case[1],
    multi, "--sam2_path", SAM2, "--mask_path", "m.png", "--output_path", "o.png")
  check.equal(status, 0, case[2] .. ": exit status; " .. output)
  check.ok(output:find(case[4]), case[2] .. ": says what was answered")
  local pixels, percent = output:match("\nmask:   (%d+) pixels %(([%d.]+)%% of the image%), "
    .. "score %d%.%d%d, %d+%.%d s\n")
  local facts, count = mask_of(dir .. "/m.png")
  check.equal(facts, { 640, 480, 0, 0 },
    case[2] .. ": the mask has the image's size, one channel, 0 and 255")
  check.equal(tonumber(pixels), count, case[2] .. ": as many pixels as are told")
  check.near(tonumber(percent), 100 * count / (640 * 480), 0.051, case[2] .. ": and their share")
  check.near(count, expected(case[3]), 100,
    case[2] .. ": the mask that segment makes (threads may round otherwise at its edge)")
  local width, height = sz.image.size(dir .. "/o.png")
  check.ok(width > 2 * 640 and height > 480 + 50, case[2] .. ": two panels and words")
  check.ok(output:find "wrote m%.png\nwrote o%.png\n$", case[2] .. ": names the files")
  os.remove(dir .. "/m.png")
  os.remove(dir .. "/o.png")
end
local output, status = infer("--image_path", "photo.png", "--text", "x", "--model_path", ONE,
  "--output_path", "o.png")
check.equal(status, 0, "without SAM2")
check.ok(sz.image.size(dir .. "/o.png") > 2 * 640, "without SAM2 there are two panels too")
check.ok(output:find "\nno mask: [^\n]*%-%-sam2_path", "and a line that says so")

-- The frame of answers, in the image's 640 x 480.
for _, case in ipairs {
  { { "--resize", "none" }, "[20, 16, 50, 61]",
    "the model sees 644x476, and its answer counts in 644x476" },
  { { "--resize", "112x84" }, "[114, 91, 286, 343]" },
  { { "--data.resize", "100x80" }, "[114, 91, 286, 343]",
    "the model sees 112x84, and its answer counts in 112x84" },
  { { "--answer_frame", "1000" }, "[13, 8, 32, 29]",
    "the model sees 84x84, and its answer counts in 1000x1000" },
  { { "--answer_frame=image" }, "[20, 16, 50, 60]",
    "the model sees 84x84, and its answer counts in 640x480" },
} do
  local said = infer("--image_path", "photo.png", "--text", "x", "--model_path", ONE,
    "--sam2_path", "none", "--output_path", "o.png", unpack(case[1]))
  local name = table.concat(case[1], " ")
  check.ok(said:find("\nbox:    " .. case[2], 1, true), name .. ": " .. said)
  check.equal(said:match "the model sees [^\n]*", case[3], name .. ": the frame is said")
end
refused(2, "answer_frame is '8x', expected auto, model, image or a size", "--demo",
  "--answer_frame", "8x")
refused(2, "both say how the image is resized", "--demo", "--frame", "84", "--resize", "none")
-- VisionReasoner's arguments
refused(2, "%-%-query and %-%-text both name the question", "--demo", "--query", "x", "--text", "x")
refused(2, "%-%-hybrid_mode: there is no YOLO%-World", "--query", "x", "--hybrid_mode", "--demo")
refused(2, "image_prompt=Draw a dog is not supported: segzero does not generate images",
  "--image_prompt", "Draw a dog", "--generation_mode")
refused(2, "task is 'generation', expected one of: auto, segmentation", "--demo", "--task",
  "generation")
refused(2, "%-%-mask_path: %-%-task counting makes no mask", "--demo", "--task", "counting",
  "--mask_path", "m.png")

output, status = infer("--image_path", "photo.png", "--text", "x", "--model_path", ONE, "--multi",
  "--sam2_path", SAM2, "--mask_path", "m.png")
check.equal({ status, files.exists(dir .. "/m.png") }, { 1, false },
  "one object's answer is none of several")
check.ok(output:find "cannot be read: the answer is not a list", "and the reason is told")

-- ---- with a model ----
if not files.exists(MODEL .. "/model.safetensors") then
  check.skip("the small checkpoint " .. MODEL .. "/model.safetensors")
else
  local model_words = { "--model_path", MODEL, "--max_new_tokens", "150", "--sam2_path", "none" }
  if FRAME then
    model_words[#model_words + 1] = "--frame"
    model_words[#model_words + 1] = FRAME
  end
  local function ask(...)
    local words = { ... }
    for _, w in ipairs(model_words) do words[#words + 1] = w end
    return infer(unpack(words))
  end

  local function red_pixels(image, first, last)
    local n = 0
    local p = image:pixels()
    for y = 0, image.height - 1 do
      for x = first, last - 1 do
        local q = p + 3 * (y * image.width + x)
        if q[0] == draw.RED[1] and q[1] == draw.RED[2] and q[2] == draw.RED[3] then n = n + 1 end
      end
    end
    return n
  end

  -- An answer that cannot be read is status 1 and no image; one that can is status 0 and one.
  -- Which of the two a given checkpoint does is its own affair, but it must manage one of ten
  -- scenes.
  local numbers = "(%-?%d+), (%-?%d+)"
  local read = 0
  local function judge(output, status, path, name)
    if status == 1 then
      check.ok(output:find "infer: the answer above cannot be read: ",
        name .. ": says what is missing")
      check.ok(not files.exists(path), name .. ": no image without an answer")
      return nil
    end
    check.equal(status, 0, name .. ": exit status")
    local box = { output:match("\nbox:    %[" .. numbers .. ", " .. numbers .. "%]\n") }
    local points = { output:match("\npoints: %[" .. numbers .. "%] %[" .. numbers .. "%]\n") }
    check.ok(#box == 4 and #points == 4, name .. ": prints a box and two points")
    check.ok(output:find "<think>.*</think>" and output:find("wrote " .. path:match "[^/]+$", 1,
      true), name .. ": shows the thinking and the file")
    read = read + 1
    for i = 1, 4 do box[i] = tonumber(box[i]) end
    return box
  end

  for i = 0, 9 do
    if read < 2 then
      local path = ("%s/demo_%d_segzero.png"):format(dir, i)
      local output, status = ask("--demo", tostring(i))
      if judge(output, status, path, "demo " .. i) then
        check.ok(output:find "\ntruth:  %[", "the truth of a made image is printed")
        local w, h = sz.image.size(path)
        check.ok(w > 2 * 400 and h > 400, "a small image is enlarged")
      end
    end
  end
  check.ok(read > 0, "one of ten demo scenes has an answer that can be read")

  local path = dir .. "/photo_segzero.png"
  local output, status = ask("--image_path", "photo.png", "--text",
    scene.questions[1].problem .. ".")
  local box = judge(output, status, path, "photo")
  check.ok(output:find "image: photo.png, 640 x 480, resized to ", "says the sizes")
  if box then
    local out = sz.image.load(path)
    check.ok(out.width > 2 * 640 and out.height > 480, "two panels, which keep the image's size")
    local middle = math.floor(out.width / 2)
    check.equal(red_pixels(out, 0, middle), 0, "marks on the left panel")
    check.ok(red_pixels(out, middle, out.width) > 0, "the box is on the right panel")
  end
  local again = ask("--image_path", "photo.png", "--text", scene.questions[1].problem .. ".")
  check.equal((again:gsub("in [%d.]+ s", "")), (output:gsub("in [%d.]+ s", "")),
    "greedy decoding gives the same again")

  output, status = infer("--demo", "--model_path", MODEL, "--max_new_tokens", "1", "--output_path",
    "one.png", "--frame", FRAME or "112")
  check.equal({ status, files.exists(dir .. "/one.png") }, { 1, false }, "one token is no answer")
  check.ok(output:find "cut off at %-%-max_new_tokens", "and the reason is told")
  refused(2, "%-%-frame 100: .* multiple of 28", "--demo", "--model_path", MODEL, "--frame", "100")
  output, status = ask("--demo", "--text", "das größte Dreieck ▲ 三角形", "--output_path",
    "unicode.jpg", "--dtype", "bf16")
  check.ok(output:find("question: das größte Dreieck ▲ 三角形", 1, true), "any Unicode text")
  judge(output, status, dir .. "/unicode.jpg", "unicode")

  -- VisionReasoner's script: a question as it is, no image; and the lists that it asks for.
  output, status = ask("--demo", "--query", "What is it?", "--task", "vqa",
    "--task_router_model_path", "TaskRouter-1.5B", "--output_path", "vqa.png")
  check.equal({ status, files.exists(dir .. "/vqa.png") }, { 0, false }, output)
  check.ok(output:find "task_router_model_path has no effect here", "the router is noted")
  output, status = ask("--demo", "--query", "How many?", "--task", "auto", "--output_path", "q.png")
  check.equal(status, 1, "one object's answer is none of several")
  check.ok(output:find "task=auto is read as segmentation", "and auto is explained")
end

os.execute("rm -r " .. quoted(dir))
check.finish()
