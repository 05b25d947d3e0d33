-- sentence.lua - referring sentences for a RefShapes scene, each true of exactly one object, and
-- the short reasoning for each.
--
-- A noun phrase is {size=, colour=, kind=}; any field may be absent. Without a kind it says
-- "shape". An expression is
--   { type="attribute", np= }                        the small red circle
--   { type="relation", np=, rel=, anchor=np }        the red circle left of the blue square
--   { type="superlative", word=, np= }               the leftmost circle
--   { type="odd", word= }                            the odd one out
-- evaluate() checks every object and returns the one that the expression means. It returns nil if
-- there is none, if there are several, or if the case is too close to call: relations and
-- superlatives have a band around equality that is never asked about.
--
-- Texts are lower-case ASCII without a final period. Reasoning contains no '<', '{' or '}', because
-- answers are parsed by these characters.

local M = {}

local max = math.max

-- in units of 1/840 of the frame: clearly true, clearly false
local YES_GAP = 60
local NO_GAP = 15
local AREA_RATIO = 1.3

local NUMBER = { "one", "two", "three", "four", "five", "six" }
local PLURAL = { cross = "crosses" }
local RELATION_WORDS = { left = "left of", right = "right of", above = "above", below = "below" }
local SUPERLATIVES = { "largest", "smallest", "leftmost", "rightmost", "topmost", "bottommost" }
local ODD = { "the odd one out", "the unusual shape", "the shape that is different" }

local function plural(kind)
  return PLURAL[kind] or kind .. "s"
end
M.plural = plural

local function matches(np, o)
  if np.size and np.size ~= o.size then return false end
  if np.colour and np.colour ~= o.colour then return false end
  return not np.kind or np.kind == o.kind
end
M.matches = matches

local function count(np, objects)
  local n = 0
  local last = nil
  for i = 1, #objects do
    if matches(np, objects[i]) then n, last = n + 1, i end
  end
  return n, last
end

-- The distance of o from a towards the named side; negative on the other side.
local function offset(rel, o, a)
  if rel == "left" then return a.cx - o.cx end
  if rel == "right" then return o.cx - a.cx end
  if rel == "above" then return a.cy - o.cy end
  return o.cy - a.cy
end

local function evaluate_relation(e, objects)
  local n, anchor = count(e.anchor, objects)
  if n ~= 1 then return nil end
  local a = objects[anchor]
  local found
  for i = 1, #objects do
    if i ~= anchor and matches(e.np, objects[i]) then
      local d = offset(e.rel, objects[i], a)
      if d >= YES_GAP then
        if found then return nil end
        found = i
      elseif d > -NO_GAP then
        return nil
      end
    end
  end
  return found, anchor
end

-- Whether o clearly beats p: by centre and by edge, or by area and by extent.
local function beats(word, o, p)
  if word == "largest" then
    return o.area >= AREA_RATIO * p.area and max(o.hw, o.hh) >= max(p.hw, p.hh)
  elseif word == "smallest" then
    return p.area >= AREA_RATIO * o.area and max(o.hw, o.hh) <= max(p.hw, p.hh)
  elseif word == "leftmost" then
    return p.cx - o.cx >= YES_GAP and (p.cx - p.hw) - (o.cx - o.hw) >= NO_GAP
  elseif word == "rightmost" then
    return o.cx - p.cx >= YES_GAP and (o.cx + o.hw) - (p.cx + p.hw) >= NO_GAP
  elseif word == "topmost" then
    return p.cy - o.cy >= YES_GAP and (p.cy - p.hh) - (o.cy - o.hh) >= NO_GAP
  end
  return o.cy - p.cy >= YES_GAP and (o.cy + o.hh) - (p.cy + p.hh) >= NO_GAP
end

local function evaluate_superlative(e, objects)
  local best = nil
  local n = 0
  for i = 1, #objects do
    if matches(e.np, objects[i]) then
      n = n + 1
      if not best or beats(e.word, objects[i], objects[best]) then best = i end
    end
  end
  if n < 2 then return nil end
  for i = 1, #objects do
    if i ~= best and matches(e.np, objects[i]) and not beats(e.word, objects[best], objects[i]) then
      return nil
    end
  end
  return best
end

-- The object whose value of key is unique while all others share one value.
local function odd_in(key, objects)
  local n = #objects
  for i = 1, n do
    local other = 1
    if i == 1 then other = 2 end
    local common = objects[other][key]
    local ok = objects[i][key] ~= common
    for j = 1, n do
      if j ~= i and objects[j][key] ~= common then ok = false end
    end
    if ok then return i, common end
  end
end

local function evaluate_odd(objects)
  if #objects < 3 then return nil end
  local found, why, common
  for _, key in ipairs { "colour", "kind", "size" } do
    local i, value = odd_in(key, objects)
    if i then
      if found and found ~= i then return nil end
      if not found then found, why, common = i, key, value end
    end
  end
  return found, why, common
end

-- The index of the one object that e means, or nil. A relation also returns its anchor's index; an
-- odd one out also returns the attribute and the value that the others share.
function M.evaluate(e, objects)
  if e.type == "attribute" then
    local n, i = count(e.np, objects)
    if n == 1 then return i end
    return nil
  elseif e.type == "relation" then
    return evaluate_relation(e, objects)
  elseif e.type == "superlative" then
    return evaluate_superlative(e, objects)
  end
  return evaluate_odd(objects)
end

local function phrase(np)
  local text = np.kind or "shape"
  if np.colour then text = np.colour .. " " .. text end
  if np.size then text = np.size .. " " .. text end
  return text
end
M.phrase = phrase

function M.text(e)
  if e.type == "attribute" then return "the " .. phrase(e.np) end
  if e.type == "relation" then
    return "the " .. phrase(e.np) .. " " .. RELATION_WORDS[e.rel] .. " the " .. phrase(e.anchor)
  end
  if e.type == "superlative" then return "the " .. e.word .. " " .. phrase(e.np) end
  return ODD[e.word]
end

-- "at the top left", "in the center", ...: thirds of the frame.
local function third(c, low, high)
  if c < 280 then return low end
  if c > 560 then return high end
  return nil
end

local function where(o)
  local v = third(o.cy, "top", "bottom")
  local h = third(o.cx, "left", "right")
  if v and h then return "at the " .. v .. " " .. h end
  if v or h then return "at the " .. (v or h) end
  return "in the center"
end

local function article(text)
  if text:find "^[aeiou]" then return "an " .. text end
  return "a " .. text
end

-- "There are three red circles": the objects that np describes, or the only one.
local function crowd(np, n)
  if n == 1 then return "There is one " .. phrase(np) end
  local text = plural(np.kind or "shape")
  if np.colour then text = np.colour .. " " .. text end
  if np.size then text = np.size .. " " .. text end
  return "There are " .. NUMBER[n] .. " " .. text
end
M.crowd = crowd

-- The reasoning for e, whose target is objects[t]: 8 to 22 words from a few templates, with the
-- target's place at the end.
function M.think(e, objects, t, r)
  local o = objects[t]
  local at = where(o)
  local full = o.size .. " " .. o.colour .. " " .. o.kind
  local pick = r:int(1, 2)
  if e.type == "attribute" then
    local same = count({ kind = o.kind }, objects)
    if #objects > 1 and same > 1 and e.np.kind and pick == 1 then
      return crowd({ kind = o.kind }, same) .. ". The " .. o.size .. " " .. o.colour .. " one is "
        .. at .. "."
    end
    if #objects == 1 then
      if pick == 1 then
        return "There is one shape. The " .. o.colour .. " " .. o.kind .. " is " .. at .. "."
      end
      return "There is one shape. It is " .. article(o.colour .. " " .. o.kind) .. " " .. at .. "."
    end
    if pick == 1 then
      return crowd({}, #objects) .. ". The " .. full .. " is " .. at .. "."
    end
    return crowd({}, #objects) .. ". Only one is " .. article(phrase(e.np)) .. ", " .. at .. "."
  elseif e.type == "relation" then
    local _, a = M.evaluate(e, objects)
    local anchor = "The " .. phrase(e.anchor) .. " is " .. where(objects[a])
    local np = { kind = e.np.kind, colour = e.np.colour }
    local n = count(np, objects)
    if pick == 1 or n == 1 then
      return anchor .. ". The " .. full .. " is " .. RELATION_WORDS[e.rel] .. " it, " .. at .. "."
    end
    local others = { size = np.size, colour = np.colour, kind = np.kind and plural(np.kind)
      or "shapes" }
    return anchor .. ". Of " .. NUMBER[n] .. " " .. phrase(others) .. ", one is "
      .. RELATION_WORDS[e.rel] .. " it, " .. at
      .. "."
  elseif e.type == "superlative" then
    local first = crowd(e.np, (count(e.np, objects)))
    if pick == 1 then
      return first .. ". The " .. full .. " is the " .. e.word .. ", " .. at .. "."
    end
    return first .. ". The " .. e.word .. " one is " .. o.colour .. ", " .. at .. "."
  end
  local _, why, common = evaluate_odd(objects)
  local others = common
  if why == "kind" then others = plural(common) end
  return "All other shapes are " .. others .. ". The " .. full .. " " .. at .. " is different."
end

-- A noun phrase that fits o. Each field is kept with the given probability.
local function fitting(o, r, p_size, p_colour, p_kind)
  local np = {}
  if r:chance(p_size) then np.size = o.size end
  if r:chance(p_colour) then np.colour = o.colour end
  if r:chance(p_kind) then np.kind = o.kind end
  return np
end

-- Which type of expression to try.
local function draw_type(level, objects, r, has_odd)
  if level < 3 then return "attribute" end
  local u = r:uniform()
  if has_odd and u < 0.3 then return "odd" end
  if u < 0.55 then return "attribute" end
  if u < 0.82 and #objects > 1 then return "relation" end
  return "superlative"
end

-- An expression of that type, which may or may not hold. For a relation and an attribute,
-- objects[t] fits it.
local function propose(kind, level, objects, t, r)
  local o = objects[t]
  if kind == "odd" then return { type = "odd", word = r:int(1, #ODD) } end
  if kind == "attribute" then
    local p_size = 0.5
    if level == 1 then p_size = 0.25 end
    local np = fitting(o, r, p_size, 0.8, 0.85)
    if not (np.size or np.colour or np.kind) then return nil end
    return { type = "attribute", np = np }
  elseif kind == "relation" then
    local a = r:int(1, #objects - 1)
    if a >= t then a = a + 1 end
    local np = fitting(o, r, 0.25, 0.6, 0.85)
    -- mostly where the relation is needed to tell objects apart
    if count(np, objects) == 1 and r:chance(0.85) then return nil end
    local anchor = fitting(objects[a], r, 0.3, 0.85, 0.9)
    for _, rel in ipairs(r:shuffle { "left", "right", "above", "below" }) do
      if offset(rel, o, objects[a]) >= YES_GAP then
        return { type = "relation", np = np, rel = rel, anchor = anchor }
      end
    end
    return nil
  end
  return { type = "superlative", word = r:pick(SUPERLATIVES), np = fitting(o, r, 0, 0.3, 0.6) }
end

-- A full description of an object that no other object shares, for when proposals run out.
local function describe_any(objects, said)
  for t = 1, #objects do
    local o = objects[t]
    local e = { type = "attribute", np = { size = o.size, colour = o.colour, kind = o.kind } }
    if M.evaluate(e, objects) and not said[M.text(e)] then return e, t end
  end
end

-- Up to n different expressions about the scene, as a list of {expr=, text=, target=, think=}.
-- Objects not asked about yet are preferred. The list is shorter if the scene offers no more.
function M.compose(objects, n, level, r)
  local out = {}
  local said = {}
  local asked = {}
  local has_odd = level == 3 and evaluate_odd(objects)
  local fresh = #objects
  for _ = 1, n do
    local e, t, text, kind
    for try = 1, 60 do
      if try % 20 == 1 then kind = draw_type(level, objects, r, has_odd) end
      local guess = propose(kind, level, objects, r:int(1, #objects), r)
      local got = guess and M.evaluate(guess, objects)
      local wanted = try > 20 or fresh == 0 or not asked[got]
      if got and wanted and not said[M.text(guess)] then
        e = guess
        t = got
        break
      end
    end
    if not e then e, t = describe_any(objects, said) end
    if not e then break end
    text = M.text(e)
    said[text] = true
    if e.type == "odd" then has_odd = false end -- asked once, whatever the words
    if not asked[t] then asked[t], fresh = true, fresh - 1 end
    out[#out + 1] = { expr = e, text = text, target = t, think = M.think(e, objects, t, r) }
  end
  return out
end

return M
