# Reinforcement learning from AI feedback over the quickstart's models:  cai-label -> reward -> ppo
# What it reads of the quickstart is made first where it is missing.
$(call stage,cai-label,runs/quickstart/cai-train/manifest.json runs/quickstart/helpful/manifest.json runs/quickstart/data-prep/manifest.json configs/constitution.toml,cai label) ## let a model say which of two answers is better
$(call stage,reward,runs/quickstart/cai-train/manifest.json cai-label)   ## train a model that scores answers, on those labels
$(call stage,ppo,runs/quickstart/cai-train/manifest.json runs/quickstart/data-prep/manifest.json reward)   ## train a policy against it
chat.reads := ppo

runs/quickstart/%/manifest.json:
	@$(MAKE) PIPELINE=quickstart $*
