# A Llama that follows instructions, is aligned, and then learns to write code:
#   data-prep -> sft -> reward -> ppo -> finetune -> evaluate -> report
# What it reads and where that comes from: docs/pipelines.md.
$(call stage,data-prep,)                    ## make sets of instructions, preferences and programming tasks
$(call stage,sft,data-prep)                 ## fine-tune the model to follow instructions
$(call stage,reward,data-prep sft)          ## train a model that scores its answers, on preferences
$(call stage,ppo,data-prep sft reward)      ## train it to answer as that model prefers
$(call stage,finetune,data-prep ppo)        ## teach it to write code, all parameters, and compare before and after
$(call stage,evaluate,data-prep sft reward ppo finetune)   ## measure all models side by side, on what was held out
$(call stage,report,data-prep sft reward ppo finetune evaluate)   ## show what every stage did, on one page
chat.reads := finetune
