# From raw text to a model that follows instructions:  data-prep -> pretrain -> sft
# One line a stage: its name, what it reads (earlier stages, or files), and what `make help` says of it.
$(call stage,data-prep,)                    ## make the corpus, the tokenizer and the token sets of text, instructions and preferences
$(call stage,pretrain,data-prep)            ## train a language model from scratch on the corpus
$(call stage,sft,data-prep pretrain)        ## fine-tune it to follow instructions
chat.reads := sft
