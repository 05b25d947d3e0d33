-- test_named_rewards.lua - rewards by the names that EasyR1's command lines give them
-- (FILE.lua:NAME, FILE.py:NAME with a Lua file next to it, arguments), and prompts from a file
-- (data.format_prompt) with the image where the text has it.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local format_prompt = require "segzero.data.format_prompt"
local inputs = require "segzero.train.inputs"
local loading = require "segzero.reward.loading"
local mini = require "tests.support.miniature"
local prompts = require "segzero.data.prompt"
local runner = require "segzero.reward.runner"

local place = mini.folder()
local function write(name, text)
  files.write(place .. "/" .. name, text)
  return place .. "/" .. name
end

local function score(reward, text)
  local sample = { text = text, ids = { 1, 2, 3 } }
  runner.score(reward, { id = "1", problem = "p", solution = "truth" }, sample)
  return sample.score, sample.parts
end

-- ---- rewards ----
local FILE = write("several.lua", [[
local M = {}
function M.length(text) return #text, { half = #text / 2 } end
function M.like_easy_r1(text, truth, row, kwargs)
  return { overall = #text * (kwargs and kwargs.weight or 1), truth = #truth, id = #row.id }
end
return M
]])

check.case("FILE.lua:NAME", function()
  check.equal({ score(loading.load(FILE .. ":length"), "four") }, { 4, { half = 2 } }, "a number")
  local like_easy_r1 = loading.load(FILE .. ":like_easy_r1")
  check.equal({ score(like_easy_r1, "four") }, { 4, { truth = 5, id = 1 } },
    "a table with overall")
  local weighted = loading.load(FILE .. ":like_easy_r1", { weight = 0.5 })
  check.equal((score(weighted, "four")), 2, "arguments")
end)

check.case("a file that returns a function gets the arguments, too", function()
  local path = write("one.lua", "return function(text, _, _, kwargs) return kwargs.a + #text end")
  check.equal((score(loading.load(path, { a = 10 }), "four")), 14, "the fourth argument")
  local length = write("length.lua", "return function(_, _, row) return row.response_length end")
  check.equal((score(loading.load(length), "")), 3, "the row says how many tokens the answer has")
  local plain = write("plain.lua", "return function(...) return select('#', ...) end")
  check.equal((score(loading.load(plain, {}), "")), 3, "without any, three")
end)

check.case("FILE.py:NAME is the Lua file next to it", function()
  write("several.py", "def length(reward_inputs): pass")
  check.equal((score(loading.load(place .. "/several.py:length"), "four")), 4, "of the Lua file")
  write("main.lua", "return { main = function() return 7 end }")
  check.equal((score(loading.load(place .. "/main.py"), "")), 7, "main is EasyR1's default")
end)

check.case("what cannot be loaded", function()
  local function refused(pattern, name)
    check.raises(function() loading.load(name) end, pattern, name)
  end
  refused("several.lua has no function lenght: did you mean 'length'%?; it ends with return { " ..
    "lenght = function }", FILE .. ":lenght")
  write("one.lua", "return function() return 1 end")
  refused("one.lua returns a function; write it without :score", place .. "/one.lua:score")
  write("five.lua", "return 5")
  refused("five.lua has no function score", place .. "/five.lua:score")
  refused("the reward .*five.lua returns a number, expected a function", place .. "/five.lua")
  refused("other.lua that ends with return { score = function%(text, ground_truth, row, kwargs%)",
    place .. "/other.py:score")
  refused("compute_score=math: it compares formulas by symbolic algebra", "math")
  refused("compute_score=r1v: it compares formulas by symbolic algebra", "r1v")
  refused("the reward does not load: .*gone.lua", place .. "/gone.lua:score")
end)

-- ---- prompts ----
local function ask(text, question) return format_prompt.open(write("t.jinja", text))(question) end

check.case("the question in a file's text", function()
  check.equal(ask("{{ content | trim }} Think.\n", "  a \n"), "a Think.", "trimmed")
  check.equal(ask("\nA:{{content}}|{{ content }}\n\n", " a "), "A: a | a ", "as it is, twice")
  check.equal(ask("{'x': 1} {{ content }}", "a"), "{'x': 1} a", "braces of other kinds")
  check.equal(ask("{{ content }}", "{{ content }} %1"), "{{ content }} %1", "not filled again")
end)

check.case("the rest of Jinja is refused with the line", function()
  for text, shown in pairs {
    ["a\n{% if x %}b{% endif %}"] = "line 2: .*, not '{%% if x %%}", ["{{ name }}"] = "line 1",
    ["{{ content | upper }}"] = "line 1", ["{# a #}"] = "line 1", ["{{ content"] = "line 1",
    ["{{- content }}"] = "line 1",
  } do
    check.raises(function() ask(text, "q") end, "t.jinja: " .. shown, text)
  end
  check.raises(function() ask("Think first.", "q") end,
    "t.jinja: there is no {{ content }}, so no prompt would have its question", "no question")
  check.raises(function() format_prompt.open(place .. "/none.jinja") end,
    "data.format_prompt: .*none", "no such file")
end)

local function contents(cfg, problem)
  local style = prompts.style(cfg)
  local messages = inputs.messages({ id = "1", problem = problem, image = "the image" }, style.ask,
    "system")
  local words = {}
  for i, item in ipairs(messages[2].content) do words[i] = item.text or item.image end
  return words
end

check.case("the image stands where the text has its marker", function()
  local plain = { data = { prompt = "plain" }, worker = { reward = { compute_score = "seg" } } }
  check.equal(contents(plain, "<image>where?"), { "the image", "where?" }, "first")
  check.equal(contents(plain, "see <image> now"), { "see ", "the image", " now" }, "in the middle")
  check.equal(contents(plain, "where?"), { "the image", "where?" }, "no marker")
  check.raises(function() contents(plain, "<image><image>") end, "<image> twice", "two")
  local path = write("p.jinja", "Rules.\n\n{{ content }}")
  local cfg = { data = { format_prompt = path }, worker = { reward = { compute_score = "seg" } } }
  check.equal(contents(cfg, "<image>where?"), { "Rules.\n\n", "the image", "where?" }, "a file")
end)

-- ---- evaluation ----
check.case("an evaluation can sample, and average several answers", function()
  local model = mini.write(place .. "/model")
  local function held_out(...)
    local cfg = mini.settings { ... }
    local rows = mini.rows(cfg)
    local t = mini.trainer(cfg, { model = model, held_out = rows })
    local reward, parts, records = t:evaluate()
    t.policy:free()
    check.equal(#records, 7, "a record for each row")
    return reward, parts.letters, records
  end
  local KEY = "worker.rollout.val_override_config."
  local greedy, _, plain = held_out()
  local sampled, _, other = held_out(KEY .. "temperature=1")
  local again = held_out(KEY .. "temperature=1", "data.val_batch_size=2")
  check.equal(sampled, again, "the same answers in other batches")
  local differ = 0
  for i, record in ipairs(other) do
    if record.text ~= plain[i].text then differ = differ + 1 end
  end
  check.ok(differ > 0, "they are not the greedy ones")
  check.ok(greedy ~= sampled, "and neither are the rewards")

  -- The mean over two answers, of which the first is the one alone.
  local mean, letters, first = held_out(KEY .. "temperature=1", KEY .. "n=2")
  check.equal(first[1].text, other[1].text, "the first of two")
  check.ok(mean ~= sampled and mean > 0 and letters > 0, "the mean of both")
end)

mini.remove()
check.finish()
