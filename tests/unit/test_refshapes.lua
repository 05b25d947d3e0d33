-- test_refshapes.lua - RefShapes samples, their sentences, the prompts, and the small BPE trainer.
--
--   ./segzero tests/unit/test_refshapes.lua
--
-- Sentences are checked by an independent reader (below): it parses the text and looks for the
-- object in the pixels (boxes and areas of masks), without knowing how the sentence was made.
-- Points are checked against a search over all pairs of pixels.
-- Left out: how images look.

local bit = require "bit"
local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local bpe = require "segzero.tools.bpe_train"
local prompt = require "segzero.data.prompt"
local refshapes = require "segzero.data.refshapes"
local scene = require "segzero.data.refshapes.scene"

-- FNV-1a of n bytes.
local function hash_bytes(p, n)
  local h = bit.tobit(0x811c9dc5)
  for i = 0, n - 1 do
    h = bit.bxor(h, p[i])
    h = bit.tobit(h + bit.lshift(h, 1) + bit.lshift(h, 4) + bit.lshift(h, 7)
      + bit.lshift(h, 8) + bit.lshift(h, 24))
  end
  return bit.tohex(h)
end

-- A hash of the pixels and one of the questions of a sample.
local function fingerprint(s)
  local text = {}
  for i, q in ipairs(s.questions) do
    text[i] = q.problem .. "|" .. q.solution .. "|" .. q.think .. "|" .. q.answer
  end
  local all = table.concat(text, "\n")
  return hash_bytes(s.rgb, s.width * s.height * 3)
    .. hash_bytes(ffi.cast("const uint8_t *", all), #all)
end

-- ---- a reader of sentences ----------------------------------------------------------------------

local KINDS = {}
local COLOURS = {}
for _, k in ipairs(refshapes.kinds) do KINDS[k] = true end
for _, c in ipairs(refshapes.colours) do COLOURS[c] = true end

-- Objects as they appear in the image: attributes, the centre of the mask's box, the number of
-- pixels.
local function seen_objects(s)
  local out = {}
  for i, o in ipairs(s.objects) do
    local b = o.bbox
    local area = 0
    for row = 0, b[4] - b[2] do area = area + o.runs[2 * row + 1] - o.runs[2 * row] + 1 end
    out[i] = { kind = o.kind, colour = o.colour, size = o.size, x = (b[1] + b[3]) / 2,
      y = (b[2] + b[4]) / 2, area = area }
  end
  return out
end

-- The indices of the objects that a noun phrase fits.
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

local RELATIONS = {
  ["left of"] = function(o, a) return o.x < a.x end,
  ["right of"] = function(o, a) return o.x > a.x end,
  above = function(o, a) return o.y < a.y end,
  below = function(o, a) return o.y > a.y end,
}

-- The objects that differ in one attribute in which all others agree.
local function odd_ones(objects)
  local found = {}
  for i in ipairs(objects) do
    for _, key in ipairs { "kind", "colour", "size" } do
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

local ODD = {
  ["the odd one out"] = true,
  ["the unusual shape"] = true,
  ["the shape that is different"] = true,
}

-- All objects that the sentence could mean.
local function read_sentence(text, objects)
  if ODD[text] then return odd_ones(objects) end
  for words, holds in pairs(RELATIONS) do
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
      if m > best then
        best = m
        out = { i }
      elseif m == best then
        out[#out + 1] = i
      end
    end
    return out
  end
  return filter(text:match "^the (.*)$", objects)
end

-- ---- boxes and points ---------------------------------------------------------------------------

-- The largest squared distance to a pixel outside mask m (0 or 1, side n) and its pixel, by trying
-- every pair of pixels. Among equals the pixel nearest to (mx, my) wins, then the first one.
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
        local away = 0
        if mx then away = (x - mx) ^ 2 + (y - my) ^ 2 end
        if d > best or (mx and d == best and away < near) then
          best = d
          near = away
          at = { x, y }
        end
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
      if m[y * n + x] == 1 then
        sx = sx + x
        sy = sy + y
        count = count + 1
      end
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

local TAGS = "<box>(N,N),(N,N)</box><points>(N,N),(N,N)</points>"

-- The box of a mask of side n.
local function mask_box(m, n)
  local box = { n, n, -1, -1 }
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      if m[y * n + x] == 1 then
        box[1] = math.min(box[1], x)
        box[2] = math.min(box[2], y)
        box[3] = math.max(box[3], x)
        box[4] = math.max(box[4], y)
      end
    end
  end
  return box
end

-- A question's box, points, solution, answer and reasoning agree with its mask.
local function check_question(s, q)
  local name = tostring(s) .. ": " .. q.problem
  local n = s.width
  local m = q.mask()
  local b = q.bbox
  local p1 = q.points[1]
  local p2 = q.points[2]
  check.equal(b, mask_box(m, n), name .. ": box")
  check.equal({ m[p1[2] * n + p1[1]], m[p2[2] * n + p2[1]] }, { 1, 1 }, name .. ": points inside")

  -- A solution has no digits besides the eight coordinates.
  local numbers = {}
  for v in q.solution:gmatch "%d+" do numbers[#numbers + 1] = tonumber(v) end
  check.equal(numbers, { b[1], b[2], b[3], b[4], p1[1], p1[2], p2[1], p2[2] }, name .. ": numbers")
  check.equal((q.solution:gsub("%d+", "N")), TAGS, name .. ": solution")
  check.equal(cjson.decode(q.answer), { bbox = b, points_1 = p1, points_2 = p2 },
    name .. ": answer")

  local _, words = q.think:gsub("%S+", "")
  check.ok(words >= 8 and words <= 22, name .. ": length of the reasoning: " .. q.think)
  check.ok(not q.think:find "[<{}]", name .. ": reasoning without <, { and }: " .. q.think)
  check.ok(q.problem == q.problem:lower() and not q.problem:find "%.$", name .. ": lower case")
end

-- Objects are large enough, inside the image, and apart from each other.
local function check_layout(s)
  for i, o in ipairs(s.objects) do
    local name = ("%s: object %d"):format(tostring(s), i)
    local b = o.bbox
    local side = math.max(b[3] - b[1], b[4] - b[2]) + 1
    check.ok(side >= s.width / 7 - 1, name .. " is large enough")
    local inside = b[1] > 0 and b[2] > 0 and b[3] < s.width - 1 and b[4] < s.height - 1
    check.ok(inside, name .. " is inside the image")
    for j = 1, i - 1 do
      local c = s.objects[j].bbox
      local apart = b[1] > c[3] + 2 or c[1] > b[3] + 2 or b[2] > c[4] + 2 or c[2] > b[4] + 2
      check.ok(apart, name .. " is apart from object " .. j)
    end
  end
end

-- ---- samples ------------------------------------------------------------------------------------

-- All arithmetic is on integers, and on doubles without library functions but sqrt.
check.case("samples have the same bytes everywhere and in any order", function()
  local a = refshapes.sample { seed = 42, index = 3, size = 168 }
  check.equal(fingerprint(a), "e2267a4f4e0c6866", "sample 3 of seed 42")
  local held_out = refshapes.sample { seed = 42, index = 3, size = 112, split = "heldout" }
  check.equal(fingerprint(held_out), "00ed9eefc190a50c", "a held-out sample")
  for index = 9, 0, -1 do
    refshapes.sample { seed = 42, index = index, size = 84, level = 1 + index % 3 }
  end
  local again = refshapes.sample { seed = 42, index = 3, size = 168 }
  check.equal(fingerprint(again), fingerprint(a), "the sample after others")

  local fewer = refshapes.sample { seed = 42, index = 3, size = 168, questions = 2 }
  check.equal(#fewer.questions, 2, "number of questions")
  check.equal({ fewer.questions[1].problem, fewer.questions[2].problem },
    { a.questions[1].problem, a.questions[2].problem },
    "the first questions do not depend on the number asked for")
  check.equal(hash_bytes(fewer.rgb, 168 * 168 * 3), hash_bytes(a.rgb, 168 * 168 * 3),
    "the image does not depend on the number of questions")
end)

local SAMPLES = 300
local OBJECTS = { { 1, 1 }, { 2, 3 }, { 3, 6 } }        -- fewest and most at each level

-- Two sizes, since the reader looks at pixels.
check.case("a sentence describes exactly one object, the right one", function()
  local types = {}
  local samples = 0
  local questions = 0
  for _, split in ipairs(refshapes.splits) do
    for level = 1, 3 do
      for index = 0, SAMPLES - 1 do
        local s = refshapes.sample {
          seed = check.seed, index = index, split = split, level = level,
          size = 84 + 84 * (index % 2),
        }
        local n = #s.objects
        local range = OBJECTS[level]
        check.ok(n >= range[1] and n <= range[2], tostring(s) .. ": number of objects")
        check.ok(#s.questions >= 1, tostring(s) .. " has a question")
        check_layout(s)

        local objects = seen_objects(s)
        local texts = {}
        for _, q in ipairs(s.questions) do
          local name = tostring(s) .. ": " .. q.problem
          check.equal(read_sentence(q.problem, objects), { q.target }, name)
          check.ok(not texts[q.problem], name .. " is asked once")
          texts[q.problem] = true
          types[level .. q.expr.type] = true
          questions = questions + 1
          if index < 40 then check_question(s, q) end
        end
        samples = samples + 1
      end
    end
  end
  check.equal(samples, 2 * 3 * SAMPLES, "samples")
  check.ok(questions > 2 * samples, ("only %d questions in %d samples"):format(questions, samples))
  check.equal(types, {
    ["1attribute"] = true, ["2attribute"] = true, ["3attribute"] = true, ["3relation"] = true,
    ["3superlative"] = true, ["3odd"] = true,
  }, "types of sentences by level")
end)

check.case("points are the centres of the largest inscribed circles", function()
  local compared = 0
  for index = 0, 11 do
    local s = refshapes.sample { seed = check.seed, index = index, size = 84, level = 3 }
    for _, q in ipairs(s.questions) do
      check_points(q, 84)
      compared = compared + 1
    end
  end
  check.ok(compared >= 12, "only " .. compared .. " questions")
end)

-- A layout's own hash says to which split it belongs, whatever the seed.
check.case("splits share no scene, and images differ", function()
  local seen = {}
  local images = 0
  for index = 0, 199 do
    for _, split in ipairs(refshapes.splits) do
      local s = refshapes.sample {
        seed = check.seed, index = index, split = split, size = 84, questions = 0,
      }
      local is_held_out = scene.layout_class(s.objects) == 0
      check.equal(is_held_out, split == "heldout", tostring(s) .. ": split of the layout")
      local h = hash_bytes(s.rgb, 84 * 84 * 3)
      if not seen[h] then images = images + 1 end
      seen[h] = true
    end
  end
  check.equal(images, 400, "different images")
end)

check.case("options are checked", function()
  check.raises(function() refshapes.sample { size = 100 } end, "multiple of 28", "size")
  check.raises(function() refshapes.sample { split = "test" } end, "split", "split")
  check.raises(function() refshapes.sample { seed = 0.5 } end, "seed", "seed")
  check.raises(function() refshapes.sample { level = 4 } end, "test_refshapes.lua.*level",
    "level, at the caller's line")
  local plain = refshapes.sample { background = "plain", size = 84 }
  check.equal(plain.rgb[0], plain.rgb[3], "neighbours on a plain background")
end)

-- Images are caught instead of written.
check.case("a data set on disk", function()
  local dir = os.tmpname()
  os.remove(dir)
  local written = {}
  local function save_png(path, w, h, channels, pixels)
    written[path] = { w, h, channels, hash_bytes(pixels, w * h * channels) }
  end
  local options = { n = 3, seed = 5, size = 112, questions = 2, split = "heldout" }
  local rows = refshapes.write_dataset(dir, options, save_png)

  local count = 0
  for line in io.lines(dir .. "/data.jsonl") do
    local row = cjson.decode(line)
    local index, k = row.id:match "^heldout_5_(%d+)_(%d+)$"
    local s = refshapes.sample {
      seed = 5, index = tonumber(index), size = 112, questions = 2, split = "heldout",
    }
    local q = s.questions[tonumber(k)]
    check.equal(row, {
      id = row.id, problem = q.problem, solution = q.solution,
      image = "images/heldout_5_" .. index .. ".png", mask = "masks/" .. row.id .. ".png",
      img_height = 112, img_width = 112,
    }, row.id)
    check.equal(written[dir .. "/" .. row.image],
      { 112, 112, 3, hash_bytes(s.rgb, 112 * 112 * 3) }, row.image)
    check.equal(written[dir .. "/" .. row.mask],
      { 112, 112, 1, hash_bytes(q.mask(255), 112 * 112) }, row.mask)
    count = count + 1
  end
  check.equal(count, rows, "rows")
  check.ok(count >= 3, "only " .. count .. " rows")
  os.remove(dir .. "/data.jsonl")
  for _, name in ipairs { "/images", "/masks", "" } do os.remove(dir .. name) end
end)

-- ---- prompts and the tokenizer ------------------------------------------------------------------

check.case("prompts are those of Seg-Zero and VisionReasoner", function()
  check.equal(prompt.seg_zero("..The Red circle."),
    "Please find 'the red circle' with bbox and points.Compare the difference between objects and "
    .. "find the most closely matched one.Output the thinking process in <think> </think> and "
    .. "final answer in <answer> </answer> tags.Output the one bbox and points of two largest "
    .. "inscribed circles inside the interested object in JSON format.i.e., <think> thinking "
    .. "process here </think><answer>{'bbox': [10,100,200,210], 'points_1': [30,110], "
    .. "'points_2': [35,180]}</answer>", "seg_zero")
  check.equal(prompt.vision_reasoner("{Answer} %1"),
    'Please find "{answer} %1" with bboxs and points.Compare the difference between object(s) and '
    .. "find the most closely matched object(s).Output the thinking process in <think> </think> "
    .. "and final answer in <answer> </answer> tags.Output the bbox(es) and point(s) inside the "
    .. "interested object(s) in JSON format.i.e., <think> thinking process here </think><answer>"
    .. '[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, {"bbox_2d": [225,296,706,786], '
    .. '"point_2d": [302,410]}]</answer>', "vision_reasoner")
  check.equal(prompt.response("a", "b"), "<think>a</think><answer>b</answer>", "response")
end)

check.case("questions are normalised as Python does", function()
  check.equal(prompt.normalize('"Which one?!"', '%."?!'), "which one", "VisionReasoner's set")
  check.equal(prompt.normalize("..."), "", "nothing but stops")
  check.equal(prompt.normalize "\200\255\195", "\200\255\195", "bytes that are not UTF-8 stay")
  local pairs_read = cjson.decode(assert(io.open "tests/golden/lower.json"):read "*a")
  check.equal(#pairs_read, 415, "texts in lower.json")
  for i, pair in ipairs(pairs_read) do
    check.equal(prompt.normalize(pair[1], "\1"), pair[2], ("text %d, %s"):format(i, pair[1]))
  end
end)

check.case("the small tokenizer: pieces, merges and added tokens", function()
  check.equal(bpe.pieces("It's a  b12 {\"x_1\":\n\n  y \n z "),
    { "It", "'s", " a", " ", " b", "1", "2", " {\"", "x", "_", "1", "\":\n\n", " ", " y", " \n",
      " z", " " }, "pieces, with lone digits")
  local model = bpe.train(bpe.corpus(40), 400)
  local tokens = {}
  for i, id in ipairs(bpe.encode(model, "the small red circle 105")) do
    tokens[i] = model.tokens[id + 1]
  end
  check.equal(tokens, { "the", "\196\160small", "\196\160red", "\196\160circle", "\196\160", "1",
    "0", "5" }, "whole words are tokens")
  check.equal(model.special["<|endoftext|>"], #model.tokens, "added tokens follow the vocabulary")
  check.equal(model.special["<|file_sep|>"], #model.tokens + 21, "22 added tokens")
  check.equal(bpe.train(bpe.corpus(40), 400).merges, model.merges, "the same merges again")
end)

check.finish()
