# From raw text to a policy that answers as people prefer:  data-prep -> pretrain -> sft -> reward -> ppo
# and to one that keeps to a constitution:                  sft -> helpful -> cai-generate -> cai-train
# and to tasks that it did not know:                        sft -> finetune, sft -> peft
# and from all of them, side by side, to one page:          evaluate -> report
# One line a stage: its name, what it reads (earlier stages, or files), and what `make help` says of it.
$(call stage,data-prep,)                    ## make the corpus, the tokenizer, and the sets of tokens, pairs and prompts
$(call stage,pretrain,data-prep)            ## train a language model from scratch on the corpus
$(call stage,sft,data-prep pretrain)        ## fine-tune it to follow instructions
$(call stage,reward,data-prep sft)          ## train a model that scores its answers, on preferences
$(call stage,ppo,data-prep sft reward)      ## train it to answer as that model prefers
$(call stage,helpful,data-prep sft,sft)     ## fine-tune it to do whatever it is asked, and to criticise and compare answers
$(call stage,cai-generate,data-prep helpful configs/constitution.toml,cai generate)   ## let that model revise its answers
$(call stage,cai-train,data-prep helpful cai-generate,cai train)   ## train it on the revisions, and compare before and after
$(call stage,finetune,data-prep sft)        ## teach it to write the village paper, all parameters
$(call stage,peft,data-prep sft)            ## teach it to answer at the clinic, a small part of them
$(call stage,evaluate,data-prep pretrain sft reward ppo helpful cai-train finetune peft configs/constitution.toml)   ## measure all models side by side
$(call stage,report,data-prep pretrain sft reward ppo helpful cai-generate cai-train finetune peft evaluate)   ## show what every stage did, on one page
.PHONY: cai
cai: cai-train                              ## Constitutional AI: cai-generate and cai-train
chat.reads := sft
