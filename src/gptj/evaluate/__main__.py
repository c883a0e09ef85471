"""`python -m gptj.evaluate` is the harness's own command, which then knows `--model gptj`.

The harness has no plugin mechanism: a model's class is known once its module has been imported.
"""

from lm_eval.__main__ import cli_evaluate

import gptj.evaluate.harness  # noqa: F401, which registers the model

if __name__ == "__main__":
    cli_evaluate()
