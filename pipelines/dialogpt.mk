# DialoGPT fine-tuned on conversations, with the settings of the well-known tutorials:  data-prep -> finetune
# What it reads and where that comes from: docs/pipelines.md.
$(call stage,data-prep,)                    ## make rows of eight turns, each closed by <|endoftext|>
$(call stage,finetune,data-prep)            ## fine-tune the model on them, and compare its replies before and after
chat.reads := finetune
