"""One command that makes the default weights, from data to default.pt: docs/weights_history.md, "The next edition".

    label maps, CTs with and without labels
      -> synthetic CTs            draw       tools/synthetic
      -> cached cases             prepare    uniseg/datasets/cases.py
      -> weights                  train      uniseg.train, from the shipped weights
      -> pseudo labels            pseudo     pseudo.py
      -> weights of two runs      finetune   uniseg.train, each without some labelled CTs, which score it
      -> the mean, and a class    extend     uniseg.train --extend
      -> two tables               score      uniseg.evaluate, scoring.py
      -> uniseg/weights/default   ship       tools/ship_weights.py

plan.py is the recipe, stages.py the stages, running.py the clock. Nothing in the package `uniseg` imports this folder.
"""
