# From raw text to a policy that answers as people prefer:  data-prep -> pretrain -> sft -> reward -> ppo
# One line a stage: its name, what it reads (earlier stages, or files), and what `make help` says of it.
$(call stage,data-prep,)                    ## make the corpus, the tokenizer, and the sets of tokens, pairs and prompts
$(call stage,pretrain,data-prep)            ## train a language model from scratch on the corpus
$(call stage,sft,data-prep pretrain)        ## fine-tune it to follow instructions
$(call stage,reward,data-prep sft)          ## train a model that scores its answers, on preferences
$(call stage,ppo,data-prep sft reward)      ## train it to answer as that model prefers
chat.reads := sft
