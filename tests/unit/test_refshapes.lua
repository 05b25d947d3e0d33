-- test_refshapes.lua - RefShapes samples, their sentences, the prompts, and the small BPE trainer.
--
--   luajit tests/unit/test_refshapes.lua          from the repository's root
--
-- Sentences are checked by a reader of their own (below): it parses the text and looks for the
-- object in pixels (mask boxes and mask areas), knowing nothing of how the sentence was made.
-- Points are checked against a search over all pairs of pixels. Left out: what images look like.

package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path

local bit = require "bit"
local ffi = require "ffi"
local check = require "tests.support.check"
local bpe = require "segzero.tools.bpe_train"
local prompt = require "segzero.data.prompt"
local refshapes = require "segzero.data.refshapes"

local function hash_bytes(p, n)
  local h = bit.tobit(0x811c9dc5)
  for i = 0, n - 1 do
    h = bit.bxor(h, p[i])
    h = bit.tobit(h + bit.lshift(h, 1) + bit.lshift(h, 4) + bit.lshift(h, 7) + bit.lshift(h,
      8) + bit.lshift(h, 24))
  end
  return bit.tohex(h)
end

-- Pixels and questions of a sample in one word.
local function fingerprint(s)
  local text = {}
  for i, q in ipairs(s.questions) do
    text[i] = q.problem .. "|" .. q.solution .. "|" .. q.think .. "|" .. q.answer
  end
  local all = table.concat(text, "\n")
  return hash_bytes(s.rgb, s.width * s.height * 3)
    .. hash_bytes(ffi.cast("const uint8_t *", all), #all)
end

-- ---- a reader -----------------------------------------------------------------------------------

local KINDS = {}
local COLOURS = {}
for _, k in ipairs(refshapes.kinds) do KINDS[k] = true end
for _, c in ipairs(refshapes.colours) do COLOURS[c] = true end

-- Objects as the image has them: attributes, the centre of the mask's box, the number of pixels.
local function seen_objects(s)
  local out = {}
  for i, o in ipairs(s.objects) do
    local b = o.bbox
    local area = 0
    for row = 0, b[4] - b[2] do area = area + o.runs[2 * row + 1] - o.runs[2 * row] + 1 end
    out[i] = {kind = o.kind, colour = o.colour, size = o.size, x = (b[1] + b[3]) / 2,
      y = (b[2] + b[4]) / 2, area = area}
  end
  return out
end

local function filter(words, objects)
  local out = {}
  for i, o in ipairs(objects) do
    local fits = true
    for word in words:gmatch "%a+" do
      if word == "small" or word == "large" then
        fits = fits and o.size == word
      elseif COLOURS[word] then
        fits = fits and o.colour == word
      elseif KINDS[word] then
        fits = fits and o.kind == word
      elseif word ~= "shape" then
        error("unknown word: " .. word)
      end
    end
    if fits then out[#out + 1] = i end
  end
  return out
end

local MEASURE = {
  largest = function(o) return o.area end,
  smallest = function(o) return -o.area end,
  leftmost = function(o) return -o.x end,
  rightmost = function(o) return o.x end,
  topmost = function(o) return -o.y end,
  bottommost = function(o) return o.y end,
}

local BESIDE = {
  ["left of"] = function(o, a) return o.x < a.x end,
  ["right of"] = function(o, a) return o.x > a.x end,
  above = function(o, a) return o.y < a.y end,
  below = function(o, a) return o.y > a.y end,
}

local function odd_ones(objects)
  local found = {}
  for i in ipairs(objects) do
    for _, key in ipairs {"kind", "colour", "size"} do
      local values = {}
      local n = 0
      for j, o in ipairs(objects) do
        if j ~= i and not values[o[key]] then
          values[o[key]] = true
          n = n + 1
        end
      end
      if n == 1 and not values[objects[i][key]] then
        found[#found + 1] = i
        break
      end
    end
  end
  return found
end

-- All objects that the sentence could mean.
local function read_sentence(text, objects)
  if text == "the odd one out" or text == "the unusual shape"
    or text == "the shape that is different" then
    return odd_ones(objects)
  end
  for words, holds in pairs(BESIDE) do
    local subject, anchor = text:match("^the ([%a ]-) " .. words .. " the ([%a ]+)$")
    if subject then
      local anchors = filter(anchor, objects)
      if #anchors ~= 1 then return anchors end
      local out = {}
      for _, i in ipairs(filter(subject, objects)) do
        if i ~= anchors[1] and holds(objects[i], objects[anchors[1]]) then out[#out + 1] = i end
      end
      return out
    end
  end
  local first, rest = text:match "^the (%a+) ?(.*)$"
  if MEASURE[first] then
    local best = -math.huge
    local out = {}
    for _, i in ipairs(filter(rest, objects)) do
      local m = MEASURE[first](objects[i])
      if m > best then best, out = m, {i} elseif m == best then out[#out + 1] = i end
    end
    return out
  end
  return filter(text:match "^the (.*)$", objects)
end

-- ---- boxes, points ------------------------------------------------------------------------------

-- Largest distance to a pixel outside mask m (0/1, side n) by looking at every pair; ties as
-- refshapes has them.
local function widest(m, n, box, mx, my)
  local best = 0
  local near = 0
  local at = nil
  for y = box[2], box[4] do
    for x = box[1], box[3] do
      if m[y * n + x] == 1 then
        local d = math.huge
        for v = math.max(box[2] - 1, 0), math.min(box[4] + 1, n - 1) do
          for u = math.max(box[1] - 1, 0), math.min(box[3] + 1, n - 1) do
            if m[v * n + u] == 0 then d = math.min(d, (x - u) ^ 2 + (y - v) ^ 2) end
          end
        end
        local away = mx and (x - mx) ^ 2 + (y - my) ^ 2 or 0
        if d > best or (mx and d == best and away < near) then best, near, at = d, away, {x, y} end
      end
    end
  end
  return best, at
end

local function check_points(q, n)
  local m = q.mask()
  local b = q.bbox
  local sx = 0
  local sy = 0
  local count = 0
  for y = b[2], b[4] do
    for x = b[1], b[3] do
      if m[y * n + x] == 1 then sx, sy, count = sx + x, sy + y, count + 1 end
    end
  end
  local r2, p = widest(m, n, b, sx / count, sy / count)
  check.equal(q.points[1], p, q.problem .. ": first point")
  for i = 0, n * n - 1 do
    if (i % n - p[1]) ^ 2 + (math.floor(i / n) - p[2]) ^ 2 <= r2 then m[i] = 0 end
  end
  local _, second = widest(m, n, b)
  check.equal(q.points[2], second or p, q.problem .. ": second point")
end

-- One check per question, since there are thousands.
local function check_question(s, q)
  local n = s.width
  local m = q.mask()
  local b = q.bbox
  local box = {n, n, -1, -1}
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      if m[y * n + x] == 1 then
        box = {math.min(box[1], x), math.min(box[2], y), math.max(box[3], x), math.max(box[4], y)}
      end
    end
  end
  local p1 = q.points[1]
  local p2 = q.points[2]
  local numbers = {}
  for v in q.solution:gmatch "%d+" do numbers[#numbers + 1] = tonumber(v) end
  local answer = require "cjson".decode(q.answer)
  local name = tostring(s) .. ": " .. q.problem
  check.equal({
    box = b, inside1 = m[p1[2] * n + p1[1]], inside2 = m[p2[2] * n + p2[1]],
    -- the `1` and `2` of points_1 and points_2 are not in a solution, so its digits are the eight
    -- coordinates
    numbers = numbers, answer = answer, tags = (q.solution:gsub("%d+", "N")),
  }, {
    box = box, inside1 = 1, inside2 = 1,
      numbers = {b[1], b[2], b[3], b[4], p1[1], p1[2], p2[1], p2[2]},
    answer = {bbox = b, points_1 = p1, points_2 = p2},
      tags = "<box>(N,N),(N,N)</box><points>(N,N),(N,N)</points>",
  }, name)
  local _, words = q.think:gsub("%S+", "")
  check.ok(words >= 8 and words <= 22 and not q.think:find "[<{}]", name .. ": reasoning: "
    .. q.think)
  check.ok(q.problem == q.problem:lower() and not q.problem:find "%.$", name)
end

-- ---- the checks ---------------------------------------------------------------------------------

-- The same bytes everywhere and always: integers, and doubles without library functions but sqrt.
local a = refshapes.sample {seed = 42, index = 3, size = 168}
check.equal(fingerprint(a), "e2267a4f4e0c6866", "sample 3 of seed 42")
check.equal(fingerprint(refshapes.sample {seed = 42, index = 3, size = 112, split = "heldout"}),
  "00ed9eefc190a50c", "held out")
for index = 9, 0, -1 do
  refshapes.sample {seed = 42, index = index, size = 84, level = 1 + index % 3}
end
check.equal(fingerprint(refshapes.sample {seed = 42, index = 3, size = 168}), fingerprint(a),
  "order of calls")
local fewer = refshapes.sample {seed = 42, index = 3, size = 168, questions = 2}
check.equal({fewer.questions[1].problem, fewer.questions[2].problem, #fewer.questions},
  {a.questions[1].problem, a.questions[2].problem, 2},
    "the first questions do not depend on how many are asked for")
check.equal(hash_bytes(fewer.rgb, 168 * 168 * 3), hash_bytes(a.rgb, 168 * 168 * 3),
  "nor does the image")

-- Sentences: exactly one object, the right one; at two sizes, since the reader looks at pixels.
local types = {}
local questions = 0
for _, split in ipairs(refshapes.splits) do
  for level = 1, 3 do
    for index = 0, 299 do
      local s = refshapes.sample {seed = check.seed, index = index, split = split, level = level,
        size = 84 + 84 * (index % 2)}
      local objects = seen_objects(s)
      local texts = {}
      check.ok(#s.questions >= 1, tostring(s) .. " has a question")
      for _, q in ipairs(s.questions) do
        check.equal(read_sentence(q.problem, objects), {q.target}, tostring(s) .. ": " .. q.problem)
        check.ok(not texts[q.problem], "asked once: " .. q.problem)
        texts[q.problem] = true
        types[level .. q.expr.type] = true
        questions = questions + 1
        if index < 40 then check_question(s, q) end
      end
      local n = #objects
      check.ok(level == 1 and n == 1 or level == 2 and n >= 2 and n <= 3 or level == 3 and n >= 3
        and n <= 6, "objects")
      for i = 1, n do
        local b = s.objects[i].bbox
        local side = math.max(b[3] - b[1], b[4] - b[2]) + 1
        check.ok(side >= s.width / 7 - 1 and b[1] > 0 and b[2] > 0 and b[3] < s.width - 1
          and b[4] < s.height - 1, "size")
        for j = 1, i - 1 do
          local c = s.objects[j].bbox
          check.ok(b[1] > c[3] + 2 or c[1] > b[3] + 2 or b[2] > c[4] + 2 or c[2] > b[4] + 2, "gap")
        end
      end
    end
  end
end
check.equal(types, {["1attribute"] = true, ["2attribute"] = true, ["3attribute"] = true,
  ["3relation"] = true,
  ["3superlative"] = true, ["3odd"] = true}, "sorts of sentences by level")

for index = 0, 11 do
  local s = refshapes.sample {seed = check.seed, index = index, size = 84, level = 3}
  for _, q in ipairs(s.questions) do check_points(q, 84) end
end

-- Splits: no layout is in both, whatever the seeds, because its own hash says where it belongs.
local scene = require "segzero.data.refshapes.scene"
local held = true
local pictures = {}
for index = 0, 199 do
  for _, split in ipairs(refshapes.splits) do
    local s = refshapes.sample {seed = check.seed, index = index, split = split, size = 84,
      questions = 0}
    held = held and (scene.layout_class(s.objects) == 0) == (split == "heldout")
    local h = hash_bytes(s.rgb, 84 * 84 * 3)
    held = held and not pictures[h]
    pictures[h] = true
  end
end
check.ok(held, "splits share no scene and images differ")

check.raises(function() refshapes.sample {size = 100} end, "multiple of 28", "size")
check.raises(function() refshapes.sample {split = "test"} end, "split", "split")
check.raises(function() refshapes.sample {seed = 0.5} end, "seed", "seed")
check.raises(function() refshapes.sample {level = 4} end, "test_refshapes.lua.*level",
  "level, at the caller's line")
check.equal(refshapes.sample {background = "plain", size = 84}.rgb[0],
  refshapes.sample {background = "plain", size = 84}.rgb[3],
  "plain background")

-- A data set on disk, with images caught instead of written.
local dir = os.tmpname()
os.remove(dir)
local written = {}
local rows = refshapes.write_dataset(dir,
  {n = 3, seed = 5, size = 112, questions = 2, split = "heldout"},
  function(path, w, h, channels, pixels)
    written[path] = {w, h, channels, hash_bytes(pixels, w * h * channels)}
  end)
local cjson = require "cjson"
local count = 0
for line in io.lines(dir .. "/data.jsonl") do
  local row = cjson.decode(line)
  local index, k = row.id:match "^heldout_5_(%d+)_(%d+)$"
  local s = refshapes.sample {seed = 5, index = tonumber(index), size = 112, questions = 2,
    split = "heldout"}
  local q = s.questions[tonumber(k)]
  check.equal(row, {id = row.id, problem = q.problem, solution = q.solution,
    image = "images/heldout_5_" .. index .. ".png",
    mask = "masks/" .. row.id .. ".png", img_height = 112, img_width = 112}, row.id)
  check.equal(written[dir .. "/" .. row.image], {112, 112, 3, hash_bytes(s.rgb, 112 * 112 * 3)},
    row.image)
  check.equal(written[dir .. "/masks/" .. row.id .. ".png"],
    {112, 112, 1, hash_bytes(q.mask(255), 112 * 112)}, "mask")
  count = count + 1
end
check.equal(count, rows, "rows")
os.remove(dir .. "/data.jsonl")
for _, name in ipairs {"/images", "/masks", ""} do os.remove(dir .. name) end

-- Prompts.
check.equal(prompt.seg_zero("..The Red circle."),
  "Please find 'the red circle' with bbox and points.Compare the difference "
  .. "between objects and find the most closely matched one.Output the thinking process in <think> </think> and final answer "
  .. "in <answer> </answer> tags.Output the one bbox and points of two largest inscribed circles inside the interested object "
  .. "in JSON format.i.e., <think> thinking process here </think><answer>{'bbox': [10,100,200,210], 'points_1': [30,110], "
  .. "'points_2': [35,180]}</answer>", "seg_zero")
check.equal(prompt.vision_reasoner("{Answer} %1"),
  'Please find "{answer} %1" with bboxs and points.Compare the difference '
  .. "between object(s) and find the most closely matched object(s).Output the thinking process in <think> </think> and final "
  .. "answer in <answer> </answer> tags.Output the bbox(es) and point(s) inside the interested object(s) in JSON format.i.e., "
  .. '<think> thinking process here </think><answer>[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, {"bbox_2d": '
  .. '[225,296,706,786], "point_2d": [302,410]}]</answer>', "vision_reasoner")
check.equal(prompt.normalize('"Which one?!"', '%."?!'), "which one", "VisionReasoner's set")
check.equal(prompt.normalize("..."), "", "nothing but stops")
for i, pair in ipairs(cjson.decode(assert(io.open "tests/golden/lower.json"):read "*a")) do
  check.equal(prompt.normalize(pair[1], "\1"), pair[2], "lower case of text " .. i .. ", "
    .. pair[1])
end
check.equal(prompt.normalize "\200\255\195", "\200\255\195", "bytes that are no UTF-8 stay")
check.equal(prompt.response("a", "b"), "<think>a</think><answer>b</answer>", "response")

-- The tokenizer: pieces as the pattern cuts them, whole words, lone digits.
check.equal(bpe.pieces("It's a  b12 {\"x_1\":\n\n  y \n z "),
  {"It", "'s", " a", " ", " b", "1", "2", " {\"", "x", "_", "1",
  "\":\n\n", " ", " y", " \n", " z", " "}, "pieces")
local model = bpe.train(bpe.corpus(40), 400)
local tokens = {}
for i, id in ipairs(bpe.encode(model, "the small red circle 105")) do
  tokens[i] = model.tokens[id + 1]
end
check.equal(tokens, {"the", "\196\160small", "\196\160red", "\196\160circle", "\196\160", "1", "0",
  "5"}, "tokens")
check.equal(model.special["<|endoftext|>"], #model.tokens, "added tokens follow the vocabulary")
check.equal(model.special["<|file_sep|>"], #model.tokens + 21, "22 added tokens")
check.equal(bpe.train(bpe.corpus(40), 400).merges, model.merges, "the same merges again")

-- Speed, for reading; the machine may be busy, so nothing is required of it.
for _, size in ipairs {112, 168, 840} do
  local n = size == 840 and 20 or 300
  local start = os.clock()
  for index = 1, n do refshapes.sample {seed = 7, index = index, size = size} end
  print(string.format("%d px, 4 questions: %.2f ms a sample", size, (os.clock() - start) / n * 1e3))
end
print(string.format("%d sentences read back", questions))
check.finish()
