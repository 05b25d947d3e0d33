-- refer.lua - a folder of refer or gRefCOCO: expressions, each about objects of instances.json.
--
--   refcocog/refs(umd).p         a pickle: a list of refs; also refs(unc).p, refs(google).p, ...
--   grefcoco/grefs(unc).json     the same as JSON or as grefs(unc).p; any number of objects each
--   refcocog/instances.json      COCO's images, annotations and categories
--
--   local set = refer.open { file = path of the refs, split = name | nil, purpose =, folders = f }
--
-- ref: {ref_id, image_id, ann_id = number | list, category_id, split, sentences = {{sent, raw,
-- sent_id}, ...}}. ann_id is -1 or [-1] where the expression names nothing in the image. An entry
-- is one ref with all its sentences. Splits are those of the refs; testA takes testAB too, and test
-- all that have test in their name, as its Python class does.
-- Without a split in the name the purpose chooses one: "train" train, "test" test or testA, else
-- val; set.notes says so, but for training.
-- Leaves out: tokens, detections.

local cjson = require "cjson"
local files = require "segzero.core.files"
local image_folder = require "segzero.data.annotations.image_folder"
local instances = require "segzero.data.annotations.instances"
local json_list = require "segzero.data.jsonl.list"
local objects = require "segzero.data.annotations.objects"
local pickle_plain = require "segzero.formats.pickle_plain"
local utf8 = require "segzero.formats.utf8"
local visible = require "segzero.core.visible"

local M = {}

local NOTHING = -1              -- the annotation of an expression without a target
local SHOWN_SPLITS = 8

local methods = {}
local mt = { __index = methods }

local function fail(path, what, ...) error(path .. ": " .. what:format(...), 0) end

-- ---- the refs ----
-- Calls visit(k, ref) for each ref of the file.
local function each_ref(path, visit)
  if path:find "%.json$" then
    if not json_list.is_list(path) then fail(path, "not a JSON list of refs") end
    local list = json_list.open(path)
    for k = 1, list:count() do
      local ok, ref = pcall(cjson.decode, list:text(k))
      if not ok then fail(path, "ref %d: not valid JSON: %s", k, tostring(ref)) end
      visit(k, ref)
    end
    return
  end
  files.check_regular(path)
  local text, why = files.read(path)
  if not text then error(why, 0) end
  local list = pickle_plain.read(path, text)
  if type(list) ~= "table" or not list.n then fail(path, "the pickle is not a list of refs") end
  for k = 1, list.n do visit(k, list[k]) end
end

local function whole(v) return type(v) == "number" and v % 1 == 0 end

-- ann_id as a list without those of nothing; nil if it is neither a number nor a list of them.
local function annotations_of(ref)
  local value = ref.ann_id
  if type(value) ~= "table" then value = { value } end
  if #value == 0 then return nil end
  local list = {}
  for _, id in ipairs(value) do
    if not whole(id) then return nil end
    if id ~= NOTHING then list[#list + 1] = id end
  end
  return list
end

-- The parts of a ref that are kept.
local function compact(path, k, ref)
  -- The ids.
  if type(ref) ~= "table" then fail(path, "ref %d is a %s", k, type(ref)) end
  local list = annotations_of(ref)
  if not list then fail(path, "ref %d has no ann_id that is a number or a list of them", k) end
  if not whole(ref.image_id) then fail(path, "ref %d has no image_id that is a number", k) end
  if not whole(ref.ref_id) then fail(path, "ref %d has no ref_id that is a number", k) end

  -- The sentences.
  if type(ref.sentences) ~= "table" or #ref.sentences == 0 then
    fail(path, "ref %d has no sentences", k)
  end
  local kept = { ref_id = ref.ref_id, image_id = ref.image_id, annotations = list, texts = {},
    raw = {}, sent_ids = {} }
  for i, sentence in ipairs(ref.sentences) do
    local text = type(sentence) == "table" and (sentence.sent or sentence.raw)
    if type(text) ~= "string" then fail(path, "sentence %d of ref %d has no text", i, k) end
    local at = utf8.fault(text)
    if at then fail(path, "sentence %d of ref %d is not UTF-8", i, k) end
    kept.texts[i] = text
    kept.raw[i] = type(sentence.raw) == "string" and sentence.raw or text
    kept.sent_ids[i] = sentence.sent_id
  end
  return kept
end

-- Whether a ref of the split `of_ref` belongs to `wanted`, as its Python class decides.
local function in_split(of_ref, wanted)
  if of_ref == wanted then return true end
  if not of_ref:find "^test" then return false end
  if wanted == "test" then return true end
  local letter = wanted:match "^test([ABC])$"
  return letter ~= nil and of_ref:find(letter, 5, true) ~= nil
end

-- The splits that suit a purpose, the best first.
local ORDERS = {
  train = { "train" },
  heldout = { "val", "test", "testA" },
  test = { "test", "testA", "val" },
}

-- The refs of the wanted split, else of the first split that suits the purpose; the split's name; a
-- note if others would do as well.
local function choose(path, by_split, wanted, purpose)
  -- Which split is meant.
  local names = {}
  for name in pairs(by_split) do names[#names + 1] = name end
  table.sort(names)
  local all = visible.line(table.concat(names, ", ", 1, math.min(#names, SHOWN_SPLITS)))
  local note
  for _, name in ipairs(ORDERS[purpose] or ORDERS.heldout) do
    if not wanted and by_split[name] then
      wanted = name
      note = ("%s: no split is named, so %s is taken of %s"):format(path, name, all)
    end
  end
  if purpose == "train" or #names == 1 then note = nil end
  if not wanted and #names == 1 then wanted = names[1] end

  -- Its refs, in the order of the file.
  local refs = {}
  for _, name in ipairs(names) do
    if wanted and in_split(name, wanted) then
      for _, ref in ipairs(by_split[name]) do refs[#refs + 1] = ref end
    end
  end
  if #refs > 0 then
    table.sort(refs, function(a, b) return a.number < b.number end)
    return refs, wanted, note
  end
  -- There are none.
  if wanted then fail(path, "there is no split '%s'; there is: %s", wanted, all) end
  fail(path, "choose a split: %s", all)
end

local function read_refs(options)
  local by_split = {}
  each_ref(options.file, function(k, ref)
    local split = type(ref) == "table" and ref.split
    if type(split) ~= "string" then fail(options.file, "ref %d has no split", k) end
    local kept = compact(options.file, k, ref)
    kept.number = k
    by_split[split] = by_split[split] or {}
    table.insert(by_split[split], kept)
  end)
  if next(by_split) == nil then fail(options.file, "there are no refs") end
  return choose(options.file, by_split, options.split, options.purpose)
end

-- ---- the set ----
function methods:count() return #self.refs end

function methods:where(i) return ("%s ref_id %.17g"):format(self.path, self.refs[i].ref_id) end

function methods:texts(i) return #self.refs[i].texts end

-- The objects of ref i, and the ids of their annotations as text.
local function objects_of(self, ref, where)
  local list = {}
  local ids = {}
  for j, id in ipairs(ref.annotations) do
    local k = self.instances:annotation_number(id)
    if not k then
      error(("%s: %s has no annotation %.17g"):format(where, self.instances.path, id), 0)
    end
    local annotation = self.instances:annotation(k)
    local name = self.instances.names[annotation.category_id]
    list[j] = objects.new(annotation, name, ("%s: annotation %.17g"):format(where, id))
    ids[j] = ("%.17g"):format(id)
  end
  return list, table.concat(ids, ",")
end

function methods:meta(i)
  local ref = self.refs[i]
  local where = self:where(i)
  local k = self.instances:image_number(ref.image_id)
  if not k then
    error(("%s: %s has no image %.17g"):format(where, self.instances.path, ref.image_id), 0)
  end
  -- What the two files say of it.
  local image = self.instances:image(k)
  local list, ids = objects_of(self, ref, where)
  if #list == 0 then ids = "-1" end
  return {
    id = ("%s_%.17g"):format(self.title, ref.ref_id), where = where,
    image = self.image_folder .. "/" .. image.file_name, width = image.width,
    height = image.height, texts = ref.texts, raw = ref.raw, sent_ids = ref.sent_ids,
    objects = list, image_id = ("%.17g"):format(ref.image_id), ann_id = ids,
    ref_id = ref.ref_id, split = self.split, category = list[1] and list[1].category,
  }
end

-- ---- opening ----
-- Where the images of refer are, for a data set of this name in the folder `root`.
local function candidates(root, title)
  if title == "refclef" then return { root .. "/images/saiapr_tc-12", root .. "/images" } end
  local list = {}
  for _, place in ipairs { "images/mscoco/images/train2014", "images/train2014",
    "images/mscoco/train2014", "train2014", "coco/train2014", "images" } do
    list[#list + 1] = root .. "/" .. place
  end
  return list
end

function M.open(options)
  local folder = options.file:match "^(.*)/[^/]*$" or "."
  local title = options.title
  local self = setmetatable({ path = options.file, title = title }, mt)
  local note
  self.refs, self.split, note = read_refs(options)
  self.notes = { note }
  self.instances = instances.open(folder .. "/instances.json")
  self.several = options.file:match "([^/]*)$":find "^grefs" ~= nil
  self.files = { options.file, self.instances.path }

  -- The images.
  local root = image_folder.above(folder)
  local places = candidates(root, title)
  for _, place in ipairs(candidates(folder, title)) do places[#places + 1] = place end
  places[#places + 1] = root .. "/../train2014"
  places[#places + 1] = root .. "/../coco/train2014"
  self.image_folder = image_folder.find(options.file, options.image_dir, places, function(n)
    local ref = self.refs[n]
    local k = ref and self.instances:image_number(ref.image_id)
    return k and self.instances:image(k).file_name
  end)
  return self
end

return M
