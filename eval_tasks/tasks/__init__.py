# SPDX-License-Identifier: Apache-2.0
"""The paper's tasks as lm-eval YAML, one folder a family, each with the functions that its YAML names.

`lm_eval --include_path eval_tasks/tasks --tasks llemma_math` runs them too, in this repository's folder;
evaluate.py adds what a long evaluation needs: samples saved as they come, resuming, scoring offline.
"""
