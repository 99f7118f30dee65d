# Ways to fine-tune, side by side: the quickstart's model learns to answer at the clinic, by all of its parameters and by small
# parts of them. `make PIPELINE=methods table` runs them all and prints what each learned, forgot and took.
methods.reads := runs/quickstart/sft/manifest.json runs/quickstart/data-prep/manifest.json
$(call stage,full,$(methods.reads),finetune)        ## all parameters
$(call stage,lora,$(methods.reads),peft)            ## low-rank updates
$(call stage,lora-plus,$(methods.reads),peft)       ## the same, B faster than A
$(call stage,rslora,$(methods.reads),peft)          ## the same, rank-stabilised
$(call stage,dora,$(methods.reads),peft)            ## directions and lengths apart
$(call stage,pissa,$(methods.reads),peft)           ## beginning with the principal part of each weight
$(call stage,qlora,$(methods.reads),peft)           ## low-rank updates over weights in 4 bits
$(call stage,ia3,$(methods.reads),peft)             ## factors on activations
$(call stage,houlsby,$(methods.reads),peft)         ## bottlenecks behind attention and MLP
$(call stage,pfeiffer,$(methods.reads),peft)        ## bottlenecks behind the MLP
.PHONY: table
table: $(STAGES)                            ## run them all and print the table
	@$(BIN)/peft table $(foreach stage,$(STAGES),$(call run_dir,$(stage)))
chat.reads := lora

runs/quickstart/%/manifest.json:
	@$(MAKE) PIPELINE=quickstart $*
