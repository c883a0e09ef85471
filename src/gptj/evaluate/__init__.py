"""How good a model is: the harness's tasks, the article's prompts, and any text."""
