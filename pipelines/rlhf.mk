# InstructGPT's order over a GPT-2 (Ouyang et al. 2022):  data-prep -> sft -> reward -> ppo -> evaluate -> report
# What it reads and where that comes from: docs/pipelines.md.
$(call stage,data-prep,)                    ## make sets of demonstrations, rankings and text
$(call stage,sft,data-prep)                 ## fine-tune the model on demonstrations
$(call stage,reward,data-prep sft)          ## train a model that scores its answers, on all pairs of each ranking
$(call stage,ppo,data-prep sft reward)      ## train it to answer as that model prefers, with the loss on text mixed in
$(call stage,evaluate,data-prep sft reward ppo)   ## measure all models side by side, on what was held out
$(call stage,report,data-prep sft reward ppo evaluate)   ## show what every stage did, on one page
chat.reads := ppo
