# DialoGPT fine-tuned on conversations, with the settings of the well-known tutorials:
#   data-prep -> finetune -> evaluate -> report
# What it reads and where that comes from: docs/pipelines.md.
$(call stage,data-prep,)                    ## make rows of eight turns, each closed by <|endoftext|>
$(call stage,finetune,data-prep)            ## fine-tune the model on them, and compare its replies before and after
$(call stage,evaluate,data-prep finetune)    ## measure both models side by side, on what was held out
$(call stage,report,data-prep finetune evaluate)   ## show what every stage did, on one page
chat.reads := finetune
