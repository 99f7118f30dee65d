# A Llama that follows instructions, is aligned, and then learns medical questions:
#   data-prep -> sft -> reward -> ppo -> peft -> evaluate -> report
# What it reads and where that comes from: docs/pipelines.md.
$(call stage,data-prep,)                    ## make sets of instructions, preferences and medical questions
$(call stage,sft,data-prep)                 ## fine-tune the model to follow instructions
$(call stage,reward,data-prep sft)          ## train a model that scores its answers, on preferences
$(call stage,ppo,data-prep sft reward)      ## train it to answer as that model prefers
$(call stage,peft,data-prep ppo)            ## teach it medicine through a LoRA, and compare before and after
$(call stage,evaluate,data-prep sft reward ppo peft)   ## measure all models side by side, on what was held out
$(call stage,report,data-prep sft reward ppo peft evaluate)   ## show what every stage did, on one page
chat.reads := peft
