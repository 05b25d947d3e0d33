-- test_nearest.lua - suggestions for misspelt names, and what becomes of keys of other programs.
--
-- Leaves out: the programs' messages (tests/system/test_messages.lua).

local check = require "tests.support.check"
local foreign = require "segzero.config.foreign.keys"
local grpo = require "segzero.config.grpo"
local nearest = require "segzero.core.nearest"
local values = require "segzero.config.values"

local KNOWN = { "worker.rollout.n", "worker.rollout.temperature", "worker.rollout.top_p",
  "trainer.max_steps", "trainer.save_freq", "trainer.val_only", "data.train_files", "data.seed",
  "algorithm.kl_coef", "model_path", "output_path", "parts", "image_path", "eps" }

local NEAR = {
  { "worker.rollout.temprature", "worker.rollout.temperature" },
  { "temperature", "worker.rollout.temperature" },
  { "worker.roullout.n", "worker.rollout.n" },
  { "worker.rollout.N", "worker.rollout.n" },
  { "worker.rollout.nn", "worker.rollout.n" },
  { "Worker.rollout.n", "worker.rollout.n" },
  { "actor_rollout_ref.rollout.n", "worker.rollout.n" },
  { "trainer.max_step", "trainer.max_steps" },
  { "trainer.asve_freq", "trainer.save_freq" },
  { "worker.rollout.seed", "data.seed" },
  { "image", "image_path" },
  { "epsilon", "eps" },
  { "part", "parts" },
}

local FAR = { "config", "algorithm.online_filtering", "algorithm.filter_key", "algorithm.gamma",
  "data.format_prompt", "worker.rollout.limit_images", "data.video_fps", "idx", "x", "",
  "worker.reward.reward_function", "trainer.find_last_checkpoint" }

check.case("what is near", function()
  for _, one in ipairs(NEAR) do check.equal(nearest(one[1], KNOWN), one[2], one[1]) end
  check.equal(nearest.question("max_step", KNOWN), ": did you mean 'trainer.max_steps'?",
    "as a question")
end)

check.case("no suggestion is better than a wrong one", function()
  for _, name in ipairs(FAR) do check.equal(nearest(name, KNOWN), nil, name) end
  check.equal(nearest.question("online_filtering", KNOWN), "", "no question")
  check.equal(nearest("x", {}), nil, "no names")
end)

-- The settings of a line, or the error; and the notes are on stderr.
local function read(...) return pcall(grpo.schema.read, grpo.schema, { ... }) end

local REFUSED = {
  ["data.train_batch_size=4"] = "data.rollout_batch_size",
  ["data.truncation=left"] = "data.filter_overlong_prompts",
  ["trainer.resume_mode=auto"] = "trainer.load_checkpoint_path=RUN",
  ["trainer.critic_warmup=20"] = "GRPO has no critic",
  ["worker.actor.fsdp.torch_dtype=fp16"] = "worker.actor.model.dtype",
  ["worker.rollout.do_sample=false"] = "training always samples",
  ["worker.rollout=8"] = "it is a group; --help worker.rollout lists",
  ["+worker.rollout.n=8"] = "Hydra's way",
  ["~trainer.logger"] = "Hydra's way",
}

check.case("keys whose value would change the result are errors that name ours", function()
  for word, cure in pairs(REFUSED) do
    local ok, why = read(word)
    check.equal(ok, false, word)
    check.ok(tostring(why):find(cure, 1, true), word .. ": " .. tostring(why))
    check.ok(not tostring(why):find "did you mean", word .. " has no guess: " .. tostring(why))
    check.ok(not tostring(why):find "\n", word .. ": one line")
  end
end)

local NOTED = { "algorithm.disable_kl=False", "algorithm.gamma=1.0", "data.prompt_key=problem",
  "data.truncation=error", "data.format_prompt=null", "worker.actor.fsdp.torch_dtype=null",
  "worker.actor.fsdp.torch_dtype=None", "worker.actor.optim.betas=(0.9, 0.999)",
  "worker.actor.optim.strategy=adamw", "worker.actor.optim.warmup_style=constant",
  "worker.rollout.do_sample=true", "worker.rollout.limit_images=0", "trainer.critic_warmup=0",
  "worker.actor.fsdp.param_offload=false", "worker.critic.strategy=fsdp",
  "trainer.find_last_checkpoint=false" }

check.case("values that change nothing are taken", function()
  local defaults = grpo.schema:read {}
  for _, word in ipairs(NOTED) do
    local ok, cfg = read(word)
    check.equal(ok, true, word .. ": " .. tostring(cfg))
    if ok then check.equal(cfg, defaults, word .. " changes nothing") end
  end
end)

check.case("torch_dtype and adamw_bf16 mean bf16", function()
  for _, name in ipairs { "bf16", "bfloat16", "BF16" } do
    local _, cfg = read("worker.actor.fsdp.torch_dtype=" .. name)
    check.equal(cfg.worker.actor.model.dtype, "bf16", name)
  end
  local _, cfg = read("worker.actor.model.dtype=bf16", "worker.actor.fsdp.torch_dtype=fp32")
  check.equal(cfg.worker.actor.model.dtype, "f32", "the last one counts")
  _, cfg = read "worker.ref.fsdp.torch_dtype=bf16"
  check.equal({ cfg.worker.ref.model.dtype, cfg.worker.actor.model.dtype }, { "bf16", "f32" },
    "the reference alone")
  local _, bf16, given = read "worker.actor.optim.strategy=adamw_bf16"
  check.equal({ bf16.worker.actor.model.dtype, bf16.worker.actor.optim.master_weights,
    bf16.worker.actor.optim.state_dtype }, { "bf16", false, "bf16" }, "adamw_bf16")
  check.equal(given["worker.actor.model.dtype"], true, "it counts as given")
end)

check.case("the tables fit the schema", function()
  for _, foreign_row in ipairs(foreign.rows) do
    local key = foreign_row.key
    check.equal(grpo.schema:find(key), nil, key .. " is no setting of ours")
    for value, settings in pairs(foreign_row.reads or {}) do
      for _, setting in ipairs(settings) do
        local row = grpo.schema:find(setting[1])
        check.ok(row and values.convert(row, setting[2], print), key .. "=" .. value)
      end
    end
  end
end)

check.finish()
