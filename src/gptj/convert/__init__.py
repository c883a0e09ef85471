"""GPT-J's weights in every form they come in, read and written one tensor at a time.

`files` finds the bytes, `safetensors`, `pickled` and `npz` find the tensors in them; `gptj`,
`huggingface` and `mesh_transformer` know each kind's names; a `Checkpoint` is what all become.
"""
