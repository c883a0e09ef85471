"""Answering over HTTP: OpenAI's protocol, the original's own, and KoboldAI's, on one engine.

`run.serve` is the whole of it. A request passes `logs` (an id, a line in the log), `keys` (who
asks) and `limits` (how long a body may be and take) to its route; `completions`, `chat`, `original`
and `kobold` turn it into the engine's requests and the answer into their protocol's; `service` lets
them into the `queue`; `worker` is the engine's one thread.
"""
