# Reinforcement learning from AI feedback over the quickstart's models:  cai-label -> reward -> ppo -> evaluate -> report
# What it reads of the quickstart is made first where it is missing.
$(call stage,cai-label,runs/quickstart/cai-train/manifest.json runs/quickstart/helpful/manifest.json runs/quickstart/data-prep/manifest.json configs/constitution.toml,cai label) ## let a model say which of two answers is better
$(call stage,reward,runs/quickstart/cai-train/manifest.json cai-label)   ## train a model that scores answers, on those labels
$(call stage,ppo,runs/quickstart/cai-train/manifest.json runs/quickstart/data-prep/manifest.json reward)   ## train a policy against it
rlaif.began := $(foreach stage,data-prep helpful cai-train,runs/quickstart/$(stage)/manifest.json)
$(call stage,evaluate,$(rlaif.began) cai-label reward ppo configs/constitution.toml)   ## measure all models side by side, on what was held out
$(call stage,report,$(rlaif.began) cai-label reward ppo evaluate)   ## show what every stage did, on one page
chat.reads := ppo

runs/quickstart/%/manifest.json:
	@$(MAKE) PIPELINE=quickstart $*
